//! The project's own commands: `cargo xtask <demo|test|soak|wasm-target|tidy>`.
//!
//! It drives cargo, Go and the machine's package tools as a person at a terminal would, and says what it is doing while it works.
//!
//! **Invariant:** it never uses the product's crates: it is the first thing a fresh clone builds, so it depends on nothing
//! heavy. No process it started outlives it when it fails.

// A tool at a terminal prints.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod clients;
mod demo;
mod deny;
mod shell;
mod soak;
mod test;
mod tidy;
mod wasm_target;
mod workspace;

use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask <command>

  demo           everything at once: builds, starts a node, installs plugins, shows them work, stops it
  test           every check there is, in stages; ends with a table of what each cost
                   --only STAGE   only this stage (may be given again)
                   --skip STAGE   not this stage (may be given again)
                   --list         names the stages
  soak           the long runs: kill -9, power cuts, and clusters under faults and floods, for minutes and hours
                   --only kill|power|simulation|nemesis|rolling|rejoin|flood
  wasm-target    makes sure that Rust can build for wasm32-wasip2, from source if need be
  tidy           holds the source to its rules
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((command, rest)) = arguments.split_first() else {
        eprint!("{USAGE}");
        return ExitCode::from(2);
    };
    let done = match command.as_str() {
        "demo" if rest.is_empty() => demo::run(),
        "test" => test::run(rest),
        "soak" => soak::run(rest),
        "wasm-target" if rest.is_empty() => wasm_target::ensure(),
        "tidy" if rest.is_empty() => tidy::run(),
        "help" | "--help" | "-h" => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprintln!("error: no such command: {}", arguments.join(" "));
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
