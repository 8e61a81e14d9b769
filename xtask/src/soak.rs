//! `cargo xtask soak`: the long runs of what the tests run briefly.
//!
//! The same test executables run with larger numbers, which they take from the environment: `KVASIR_KILL_ROUNDS`,
//! `KVASIR_POWER_SEEDS`, `KVASIR_POWER_SECONDS`.
//!
//! **Invariant:** a soak that was asked for and did not run fails.

use std::time::Instant;

use anyhow::{Result, bail};

use crate::shell::Cmd;
use crate::{test, workspace};

/// One long run.
struct Soak {
    name: &'static str,
    what: &'static str,
    /// The file in `tests/tests` whose tests it runs.
    test: &'static str,
    environment: &'static [(&'static str, &'static str)],
}

const SOAKS: [Soak; 2] = [
    Soak {
        name: "kill",
        what: "kill -9 at random points under load, 300 rounds",
        test: "crash",
        environment: &[("KVASIR_KILL_ROUNDS", "300")],
    },
    Soak {
        name: "power",
        what: "power cuts at the disk seam, 20,000 seeds",
        test: "power_cut",
        // The seeds decide when it ends, not the time.
        environment: &[("KVASIR_POWER_SEEDS", "20000"), ("KVASIR_POWER_SECONDS", "0")],
    },
];

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let only = match arguments {
        [] => None,
        [flag, name] if flag == "--only" && SOAKS.iter().any(|soak| soak.name == name) => Some(name.as_str()),
        _ => bail!("usage: cargo xtask soak [--only kill|power]"),
    };
    test::toolchain()?;
    test::guests()?;
    let mut figures = Vec::new();
    for soak in SOAKS.iter().filter(|soak| only.is_none_or(|name| name == soak.name)) {
        println!("\n=== soak {}: {}", soak.name, soak.what);
        let begin = Instant::now();
        let mut counts = test::Counts::default();
        let mut cargo = Cmd::cargo().args(["test", "--workspace", "--locked", "--test", soak.test, "--", "--nocapture"]);
        for (name, value) in soak.environment {
            cargo = cargo.env(name, value);
        }
        let status = cargo.folder(workspace::root()).stream(|line| {
            println!("{line}");
            counts.read(line);
        })?;
        figures.push((soak, begin.elapsed(), counts, status.success()));
    }
    println!("\n{:<8} {:>8} {:>7} {:>7}", "soak", "seconds", "passed", "failed");
    for (soak, took, counts, _) in &figures {
        println!("{:<8} {:>8.0} {:>7} {:>7}  {}", soak.name, took.as_secs_f64(), counts.passed, counts.failed, soak.what);
    }
    if figures.iter().any(|(_, _, counts, success)| !success || counts.passed == 0) {
        bail!("a soak failed");
    }
    Ok(())
}
