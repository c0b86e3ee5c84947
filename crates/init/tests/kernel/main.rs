//! unum-init on the real kernel. Without root or namespaces each test says so in a line and passes.

mod common;
mod programs;
mod terminal;
