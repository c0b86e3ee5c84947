//! The program `unum-init`.

fn main() {
    std::process::exit(unum_init::main(std::env::args_os().skip(1)));
}
