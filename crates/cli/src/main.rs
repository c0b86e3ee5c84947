//! The program `unum`.

fn main() -> std::process::ExitCode {
    unum_cli::main().into()
}
