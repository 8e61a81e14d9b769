//! `cargo xtask soak`: the long runs of what the tests run briefly.
//!
//! The same test executables run with larger numbers, which they take from the environment: `KVASIR_KILL_ROUNDS`,
//! `KVASIR_POWER_SEEDS`, `KVASIR_POWER_SECONDS`, `KVASIR_SIMULATION_SEEDS`, `KVASIR_SIMULATION_SECONDS`, and those of
//! `tests/tests/cluster/main.rs`.
//!
//! **Invariant:** a soak that was asked for and did not run fails.

use std::time::Instant;

use anyhow::{Result, bail};

use crate::shell::Cmd;
use crate::{clients, test, workspace};

/// One long run.
struct Soak {
    name: &'static str,
    what: &'static str,
    /// The file in `tests/tests` whose tests it runs.
    test: &'static str,
    /// What the tests' names contain that it runs; empty: all of the file.
    filter: &'static str,
    environment: &'static [(&'static str, &'static str)],
}

const SOAKS: [Soak; 7] = [
    Soak {
        name: "kill",
        what: "kill -9 at random points under load, 300 rounds",
        test: "crash",
        filter: "",
        environment: &[("KVASIR_KILL_ROUNDS", "300")],
    },
    Soak {
        name: "power",
        what: "power cuts at the disk seam, 20,000 seeds",
        test: "power_cut",
        filter: "",
        // The seeds decide when it ends, not the time.
        environment: &[("KVASIR_POWER_SEEDS", "20000"), ("KVASIR_POWER_SECONDS", "0")],
    },
    Soak {
        name: "simulation",
        what: "clusters in simulation, 20,000 seeds",
        test: "simulation",
        filter: "",
        environment: &[("KVASIR_SIMULATION_SEEDS", "20000"), ("KVASIR_SIMULATION_SECONDS", "0")],
    },
    Soak {
        name: "nemesis",
        what: "a cluster under mixed load while every kind of fault strikes, an hour",
        test: "cluster",
        filter: "nemesis::",
        environment: &[("KVASIR_NEMESIS_SECONDS", "3600")],
    },
    Soak {
        name: "rolling",
        what: "every member restarted and replaced under a Go client's load, 20 times",
        test: "cluster",
        filter: "rolling::",
        environment: &[("KVASIR_ROLLS", "20")],
    },
    Soak {
        name: "rejoin",
        what: "a member brought up from nothing with 1 GiB while writes flow",
        test: "cluster",
        filter: "rejoin::",
        environment: &[("KVASIR_REJOIN_MIB", "1024")],
    },
    Soak {
        name: "flood",
        what: "16,000 writes a second, or what the machine gives, with purges all along, 30 minutes",
        test: "cluster",
        filter: "flood::",
        environment: &[("KVASIR_FLOOD_SECONDS", "1800")],
    },
];

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let only = match arguments {
        [] => None,
        [flag, name] if flag == "--only" && SOAKS.iter().any(|soak| soak.name == name) => Some(name.as_str()),
        _ => {
            let names: Vec<&str> = SOAKS.iter().map(|soak| soak.name).collect();
            bail!("usage: cargo xtask soak [--only {}]", names.join("|"))
        }
    };
    test::toolchain()?;
    test::guests()?;
    let clients = clients::prepare()?.found;
    let mut figures = Vec::new();
    for soak in SOAKS.iter().filter(|soak| only.is_none_or(|name| name == soak.name)) {
        println!("\n=== soak {}: {}", soak.name, soak.what);
        let begin = Instant::now();
        let mut counts = test::Counts::default();
        let mut cargo = Cmd::cargo().args(["test", "--workspace", "--locked", "--test", soak.test, "--", "--nocapture"]);
        if !soak.filter.is_empty() {
            cargo = cargo.args([soak.filter]);
        }
        for (variable, path) in &clients {
            cargo = cargo.env(variable, path);
        }
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
