//! `cargo xtask tidy`: the rules of the house that no compiler checks.
//!
//! - nothing imports upward, and each engine has one importer (`layers`);
//! - every Rust file says first what it is; product code gives a reason beside whatever may panic; the machine stays pure
//!   (`rules`);
//! - no file names a folder of the machine it was written on, or a page of `docs/` that is not there (`rules`).
//!
//! Long files are reported, not refused.
//!
//! **Invariant:** read-only.

mod layers;
mod rules;
mod source;

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::workspace;

/// Files above this length are reported.
const LINES_LONG: usize = 400;

/// One broken rule at one place.
#[derive(Debug)]
struct Problem {
    path: PathBuf,
    /// Counted from 1; 0 is about the whole file.
    line: usize,
    what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.strip_prefix(workspace::root()).unwrap_or(&self.path);
        match self.line {
            0 => write!(f, "{}: {}", path.display(), self.what),
            line => write!(f, "{}:{line}: {}", path.display(), self.what),
        }
    }
}

/// Checks the workspace and reports.
pub(crate) fn run() -> Result<()> {
    let report = check()?;
    let mut long: Vec<_> = report.lengths.iter().filter(|(_, lines)| *lines > LINES_LONG).collect();
    long.sort_by_key(|(_, lines)| std::cmp::Reverse(*lines));
    if !long.is_empty() {
        println!("files of more than {LINES_LONG} lines:");
        for (path, lines) in long {
            println!("  {lines:5} {}", path.strip_prefix(workspace::root()).unwrap_or(path).display());
        }
    }
    for problem in &report.problems {
        println!("{problem}");
    }
    let lines: usize = report.lengths.iter().map(|(_, lines)| lines).sum();
    println!("tidy: {} Rust files, {lines} lines, {} problems", report.lengths.len(), report.problems.len());
    if !report.problems.is_empty() {
        bail!("{} rules are broken", report.problems.len());
    }
    Ok(())
}

struct Report {
    problems: Vec<Problem>,
    /// Each Rust file and its lines.
    lengths: Vec<(PathBuf, usize)>,
}

fn check() -> Result<Report> {
    let packages = workspace::packages()?;
    let mut report = Report { problems: layers::check(&packages), lengths: Vec::new() };
    let mut files = Vec::new();
    walk(workspace::root(), &mut files)?;
    files.sort();
    let mut sources = Vec::new();
    for path in files {
        let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        // What is not text (fixtures) is nobody's prose.
        let Ok(text) = String::from_utf8(bytes) else { continue };
        rules::foreign_paths(&path, &text, &mut report.problems);
        rules::pages(&path, &text, &mut report.problems);
        if path.extension().is_some_and(|it| it == "rs") {
            report.lengths.push((path.clone(), text.lines().count()));
            sources.push(source::Source::parse(path, text));
        }
    }
    let of_tests = source::test_files(&sources);
    for source in &sources {
        rules::header(source, &mut report.problems);
        if !of_tests.contains(&source.path) {
            rules::product(source, &mut report.problems);
            rules::machine(source, &mut report.problems);
        }
    }
    Ok(report)
}

/// All files of the workspace, without what is built and what git keeps.
fn walk(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let kind = entry.file_type()?;
        if kind.is_dir() {
            if name != "target" && name != ".git" && name != "kvasir-data" {
                walk(&entry.path(), files)?;
            }
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_is_tidy() {
        let report = check().expect("the workspace is readable");
        let problems: Vec<String> = report.problems.iter().map(Problem::to_string).collect();
        assert!(problems.is_empty(), "{}", problems.join("\n"));
    }
}
