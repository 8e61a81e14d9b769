//! The binary `kvasir`: its allocator and its exit code; everything else is the library's.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    kvasir_node::run(std::env::args_os())
}
