//! What the rows work on: a tree of text files, and C files to compile.

use std::fs;
use std::path::Path;

use anyhow::Result;

use crate::random::Random;

/// Sizes are spread evenly over the powers of two from 2^8 to 2^16: 12 KB on the average.
const SIZE_BITS: std::ops::Range<u64> = 8..16;
const DIRECTORY_FILES: u64 = 16;
const PARENT_DIRECTORIES: u64 = 20;
const VOCABULARY: u64 = 4096;
const LINE_WORDS_MAX: u64 = 12;
const C_FUNCTIONS: u64 = 60;
const SEED: u64 = 1;

/// Writes a tree of `count` files.
pub fn tree(dir: &Path, count: u64) -> Result<()> {
    let mut random = Random(SEED);
    for number in 0..count {
        let group = number / DIRECTORY_FILES;
        let parent = dir.join(format!("part{}/group{group}", group % PARENT_DIRECTORIES));
        if number % DIRECTORY_FILES == 0 {
            fs::create_dir_all(&parent)?;
        }
        let name = format!("{}{number}.txt", word(random.below(VOCABULARY)));
        fs::write(parent.join(name), text(&mut random))?;
    }
    Ok(())
}

fn text(random: &mut Random) -> String {
    let power = SIZE_BITS.start + random.below(SIZE_BITS.end - SIZE_BITS.start);
    let size = (1 << power) + random.below(1 << power);
    let mut text = String::new();
    while (text.len() as u64) < size {
        for _ in 0..=random.below(LINE_WORDS_MAX) {
            text.push_str(&word(random.below(VOCABULARY)));
            text.push(' ');
        }
        text.push('\n');
    }
    text
}

/// A word of the vocabulary: two to four syllables.
fn word(number: u64) -> String {
    const SYLLABLES: [&str; 16] = [
        "ba", "cor", "di", "el", "fa", "gen", "hu", "im", "ko", "lar", "me", "nor", "pi", "ra",
        "sen", "tu",
    ];
    let mut random = Random(number);
    let syllables = 2 + random.below(3);
    (0..syllables).map(|_| SYLLABLES[random.below(SYLLABLES.len() as u64) as usize]).collect()
}

/// Writes `count` C files and a Makefile that links them into one program.
pub fn c_files(dir: &Path, count: u64) -> Result<()> {
    fs::create_dir_all(dir)?;
    let mut random = Random(SEED);
    let mut header = String::from("#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n");
    for file in 0..count {
        header += &format!("int part{file}(int);\n");
        fs::write(dir.join(format!("part{file}.c")), c_file(file, &mut random))?;
    }
    fs::write(dir.join("parts.h"), header)?;
    let sum: String = (0..count).map(|file| format!(" + part{file}(n)")).collect();
    let main =
        format!("#include \"parts.h\"\nint main(int n, char **v) {{ return (0{sum}) & 1; }}\n");
    fs::write(dir.join("main.c"), main)?;
    fs::write(dir.join("Makefile"), MAKEFILE)?;
    Ok(())
}

const MAKEFILE: &str = "\
OBJECTS := $(patsubst %.c,%.o,$(wildcard *.c))
program: $(OBJECTS)
\t$(CC) -o $@ $(OBJECTS)
%.o: %.c parts.h
\t$(CC) -O1 -pipe -c -o $@ $<
";

fn c_file(file: u64, random: &mut Random) -> String {
    let mut text = String::from("#include \"parts.h\"\n");
    for function in 0..C_FUNCTIONS {
        let (a, b, c) = (random.below(97) + 2, random.below(1000), random.below(64));
        text += &format!(
            "static int step{function}(int n, char *s) {{\n\
             \tchar buffer[256];\n\
             \tfor (int i = 0; i < n % {a}; i++) n = n * {a} + {b} - (n >> 3);\n\
             \tsnprintf(buffer, sizeof buffer, \"%d %s\", n, s);\n\
             \tswitch (n & 7) {{ case 0: n += {c}; break; case 3: n ^= {b}; break;\n\
             \tcase 5: n = (int)strlen(buffer); break; default: n -= atoi(buffer); }}\n\
             \treturn n + (int)strlen(s);\n}}\n"
        );
    }
    let calls: String = (0..C_FUNCTIONS)
        .map(|function| format!("\tn = step{function}(n, \"{file}\");\n"))
        .collect();
    text + &format!("int part{file}(int n) {{\n{calls}\treturn n;\n}}\n")
}
