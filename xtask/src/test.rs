//! `cargo xtask test`: every check there is, in stages, with what each cost.
//!
//! A stage that fails does not stop the others: one run shows everything that is wrong.
//!
//! **Invariant:** what was not checked is said out loud and counted as skipped; the last line is `N passed, N failed,
//! N skipped`, of tests and of the stages that are no tests themselves.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::shell::Cmd;
use crate::{clients, deny, tidy, wasm_target, workspace};

/// How a stage ended.
enum Outcome {
    Passed,
    /// Passed, but for what is listed.
    Incomplete(Vec<String>),
    /// A stage that ran tests.
    Tests(Counts),
}

/// One stage: its name, what it does, and how.
struct Stage {
    name: &'static str,
    what: &'static str,
    run: fn() -> Result<Outcome>,
}

const STAGES: [Stage; 10] = [
    Stage { name: "toolchain", what: "rustfmt, clippy and the wasm32-wasip2 target", run: || passed(toolchain()) },
    Stage { name: "fmt", what: "cargo fmt --check", run: || passed(fmt()) },
    Stage { name: "tidy", what: "the rules of the house", run: || passed(tidy::run()) },
    Stage { name: "deny", what: "licences, bans, sources, advisories", run: deny_stage },
    Stage { name: "clients", what: "etcdctl and the Go programs", run: clients_stage },
    Stage { name: "clippy", what: "clippy over every target, warnings denied", run: || passed(clippy()) },
    Stage { name: "build", what: "the node and every test", run: || passed(build()) },
    Stage { name: "guests", what: "the plugins, as wasm components", run: || passed(guests()) },
    Stage { name: "tests", what: "cargo test over the workspace", run: tests },
    Stage { name: "doc", what: "cargo doc, warnings denied", run: || passed(doc()) },
];

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let Some(wanted) = wanted(arguments)? else {
        for stage in &STAGES {
            println!("{:<10} {}", stage.name, stage.what);
        }
        return Ok(());
    };
    let begin = Instant::now();
    let mut rows = Vec::new();
    for (nth, stage) in wanted.iter().enumerate() {
        println!(
            "\n=== {} of {}: {}: {} ({:.0} s so far)",
            nth + 1,
            wanted.len(),
            stage.name,
            stage.what,
            begin.elapsed().as_secs_f64()
        );
        let stage_begin = Instant::now();
        let outcome = (stage.run)();
        if let Err(error) = &outcome {
            println!("FAILED: {}: {error:#}", stage.name);
        }
        rows.push((stage.name, stage_begin.elapsed(), outcome));
    }
    summary(&rows, begin.elapsed())
}

/// The stages that are asked for; `None` when only their names are.
fn wanted(arguments: &[String]) -> Result<Option<Vec<&'static Stage>>> {
    let (mut only, mut skip) = (Vec::new(), Vec::new());
    let mut words = arguments.iter().map(String::as_str);
    while let Some(word) = words.next() {
        let list = match word {
            "--only" => &mut only,
            "--skip" => &mut skip,
            "--list" => return Ok(None),
            other => bail!("unknown argument {other}; known are --only STAGE, --skip STAGE, --list"),
        };
        let names: Vec<&str> = STAGES.iter().map(|stage| stage.name).collect();
        match words.next() {
            Some(name) if names.contains(&name) => list.push(name),
            other => bail!("{word} wants one of {}, not {}", names.join(", "), other.unwrap_or("nothing")),
        }
    }
    let chosen = |stage: &&Stage| (only.is_empty() || only.contains(&stage.name)) && !skip.contains(&stage.name);
    Ok(Some(STAGES.iter().filter(chosen).collect()))
}

fn summary(rows: &[(&str, Duration, Result<Outcome>)], took: Duration) -> Result<()> {
    let (mut passed, mut failed, mut skipped) = (0, 0, Vec::new());
    println!("\n{:<10} {:>8}  result", "stage", "seconds");
    for (name, took, outcome) in rows {
        let result = match outcome {
            Ok(Outcome::Passed) => {
                passed += 1;
                "passed".to_owned()
            }
            Ok(Outcome::Incomplete(reasons)) => {
                passed += 1;
                skipped.extend(reasons.iter().map(|reason| format!("{name}: {reason}")));
                format!("passed, {} skipped", reasons.len())
            }
            Ok(Outcome::Tests(counts)) => {
                passed += counts.passed;
                // A test program that ends without counting its tests has failed all the same.
                failed += if counts.success { counts.failed } else { counts.failed.max(1) };
                skipped.extend(counts.skipped.iter().cloned());
                let verdict = if counts.success { "passed" } else { "FAILED" };
                format!("{verdict}: {} passed, {} failed, {} skipped", counts.passed, counts.failed, counts.skipped.len())
            }
            Err(error) => {
                failed += 1;
                format!("FAILED: {}", format!("{error:#}").lines().next().unwrap_or_default())
            }
        };
        println!("{name:<10} {:>8.1}  {result}", took.as_secs_f64());
    }
    println!("{:<10} {:>8.1}", "in all", took.as_secs_f64());
    for reason in &skipped {
        println!("SKIPPED: {reason}");
    }
    println!("{passed} passed, {failed} failed, {} skipped", skipped.len());
    if failed > 0 {
        bail!("{failed} checks failed");
    }
    Ok(())
}

fn passed(done: Result<()>) -> Result<Outcome> {
    done.map(|()| Outcome::Passed)
}

fn cargo(words: &[&str]) -> Cmd {
    Cmd::cargo().args(words).folder(workspace::root())
}

/// Gets what the other stages need of the toolchain.
pub(crate) fn toolchain() -> Result<()> {
    println!("  {}", Cmd::new("rustc").arg("--version").read()?.trim());
    for (component, tool) in [("rustfmt", "fmt"), ("clippy", "clippy")] {
        let there = Cmd::cargo().args([tool, "--version"]).output()?;
        if there.status.success() {
            println!("  {}", there.stdout.trim());
        } else {
            println!("  {component} is not here");
            Cmd::new("rustup").args(["component", "add", component]).run()?;
        }
    }
    wasm_target::ensure()
}

fn fmt() -> Result<()> {
    cargo(&["fmt", "--all", "--check", "--", "-l"]).run().context("the files above are not formatted: run `cargo fmt --all`")
}

fn deny_stage() -> Result<Outcome> {
    Ok(match deny::check()? {
        None => Outcome::Passed,
        Some(reason) => {
            println!("SKIPPED: advisories: {reason}");
            Outcome::Incomplete(vec![format!("advisories: {reason}")])
        }
    })
}

fn clients_stage() -> Result<Outcome> {
    let missing = clients::prepare()?.missing;
    if missing.is_empty() {
        return Ok(Outcome::Passed);
    }
    Ok(Outcome::Incomplete(missing.into_iter().map(|(name, why)| format!("{name}: {why}")).collect()))
}

fn clippy() -> Result<()> {
    cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "--deny", "warnings"]).run()
}

/// Builds everything that `cargo test` runs, with the features it runs with: the node is compiled once.
pub(crate) fn build() -> Result<()> {
    cargo(&["build", "--workspace", "--all-targets", "--locked"]).run()
}

/// Builds every guest of the workspace as a component.
pub(crate) fn guests() -> Result<()> {
    let packages = workspace::packages()?;
    let mut build = cargo(&["build", "--locked", "--profile", "guest", "--target", wasm_target::TARGET]);
    for guest in packages.iter().filter(|package| package.guest) {
        build = build.args(["--package", &guest.name]);
    }
    build.run()
}

fn tests() -> Result<Outcome> {
    let mut counts = Counts::default();
    let mut test = cargo(&["test", "--workspace", "--locked", "--no-fail-fast"]);
    for (variable, path) in clients::prepare()?.found {
        test = test.env(variable, path);
    }
    let binary = workspace::target().join("debug/kvasir");
    if binary.is_file() {
        test = test.env("KVASIR_BIN", binary);
    }
    let status = test.stream(|line| {
        println!("{line}");
        counts.read(line);
    })?;
    counts.success = status.success();
    if counts.passed + counts.failed == 0 {
        bail!("no test ran");
    }
    Ok(Outcome::Tests(counts))
}

fn doc() -> Result<()> {
    cargo(&["doc", "--workspace", "--no-deps", "--document-private-items", "--locked"])
        .env("RUSTDOCFLAGS", "--deny warnings")
        .run()
}

/// What the lines of a test run add up to.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: Vec<String>,
    /// Whether the run itself said that all is well.
    pub(crate) success: bool,
}

impl Counts {
    /// Reads one line: `test result: ok. 3 passed; 0 failed; ...`, `test name ... ignored`, or `SKIPPED: case: reason`.
    pub(crate) fn read(&mut self, line: &str) {
        if let Some(reason) = line.split_once("SKIPPED: ").map(|(_, reason)| reason) {
            self.skipped.push(reason.to_owned());
        } else if let Some(name) = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... ignored")) {
            self.skipped.push(format!("{}: ignored{}", name.0, name.1));
        } else if let Some(result) = line.strip_prefix("test result: ") {
            let count = |what: &str| {
                let words: Vec<&str> = result.split([' ', ';']).filter(|word| !word.is_empty()).collect();
                words.windows(2).find(|pair| pair[1] == what).and_then(|pair| pair[0].parse().ok()).unwrap_or(0)
            };
            self.passed += count("passed");
            self.failed += count("failed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_a_test_run_are_counted() {
        let mut counts = Counts::default();
        for line in [
            "test a ... ok",
            "test b ... ignored, takes an hour",
            "SKIPPED: etcdctl lock: no etcdctl",
            "test result: FAILED. 3 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test result: ok. 4 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
        ] {
            counts.read(line);
        }
        assert_eq!((counts.passed, counts.failed), (7, 1));
        assert_eq!(counts.skipped, ["b: ignored, takes an hour", "etcdctl lock: no etcdctl"]);
    }

    #[test]
    fn stages_are_chosen_by_name_and_wrong_names_are_refused() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let names =
            |text: &str| wanted(&words(text)).map(|it| it.unwrap_or_default().iter().map(|s| s.name).collect::<Vec<_>>());
        assert_eq!(names("--only fmt --only doc").expect("both are stages"), ["fmt", "doc"]);
        assert!(!names("--skip deny").expect("a stage").contains(&"deny"));
        assert!(names("--only nonsense").is_err());
        assert!(names("--fast").is_err());
    }
}
