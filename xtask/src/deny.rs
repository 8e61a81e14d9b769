//! Licences, bans and sources of everything we depend on, by cargo-deny; advisories where their database can be reached.
//!
//! **Invariant:** an unreachable advisory database is said out loud, and never taken for a database without advisories.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::shell::{Cmd, has};
use crate::workspace;

/// The version `deny.toml` is written for.
const VERSION: &str = "0.20.2";

/// Checks `deny.toml`; answers why advisories were not checked, if they were not.
pub(crate) fn check() -> Result<Option<String>> {
    let deny = cargo_deny()?;
    Cmd::new(&deny)
        .args(["--all-features", "--log-level", "warn", "check", "--hide-inclusion-graph"])
        .args(["bans", "licenses", "sources"])
        .run()?;

    let advisories = Cmd::new(&deny).args(["--all-features", "--log-level", "warn", "check", "advisories"]);
    let advisories = advisories.env("GIT_TERMINAL_PROMPT", "0").limit(Duration::from_secs(120));
    println!("  $ {advisories}");
    let output = match advisories.output() {
        Ok(output) => output,
        Err(error) => return Ok(Some(format!("{error:#}"))),
    };
    if output.stderr.contains("failed to fetch advisory database") {
        return Ok(Some("the advisory database cannot be reached".to_owned()));
    }
    print!("{}", output.stdout);
    eprint!("{}", output.stderr);
    if !output.status.success() {
        bail!("cargo-deny found advisories");
    }
    Ok(None)
}

/// cargo-deny as the machine has it, or built once into `target/tools`.
fn cargo_deny() -> Result<PathBuf> {
    if has("cargo-deny") {
        return Ok("cargo-deny".into());
    }
    let tools = workspace::target().join("tools");
    let program = tools.join("bin/cargo-deny");
    if !program.is_file() {
        println!("  cargo-deny is not here: building it once, about a minute");
        // Nobody debugs it, and it runs for seconds: the quickest build will do.
        Cmd::cargo()
            .args(["install", "cargo-deny", "--version", VERSION, "--locked", "--quiet"])
            .args(["--profile", "dev", "--config", "profile.dev.debug=false"])
            .args(["--config", "profile.dev.opt-level=0", "--root"])
            .arg(&tools)
            .env("CARGO_TARGET_DIR", tools.join("build"))
            // Outside the workspace, so that its profiles do not apply.
            .folder(std::env::temp_dir())
            .run()
            .context("cargo-deny could not be built")?;
        std::fs::remove_dir_all(tools.join("build")).context("cannot remove what building cargo-deny left")?;
    }
    Ok(program)
}
