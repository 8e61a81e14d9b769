//! The workspace as its manifests say it is: folders, packages and who depends on whom.
//!
//! **Invariant:** read-only.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The folder of the workspace.
pub(crate) fn root() -> &'static Path {
    // The manifest's folder is `<root>/xtask`.
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Where cargo builds.
pub(crate) fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => root().join(folder),
        None => root().join("target"),
    }
}

/// One package of the workspace.
#[derive(Debug)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) folder: PathBuf,
    /// The names under `[dependencies]` and `[build-dependencies]`, of every target.
    pub(crate) dependencies: Vec<String>,
    /// The names under `[dev-dependencies]`.
    pub(crate) dev_dependencies: Vec<String>,
    /// Whether it is built as a component for the node to run.
    pub(crate) guest: bool,
}

/// All packages of the workspace, in the order of its members.
pub(crate) fn packages() -> Result<Vec<Package>> {
    let manifest = read(&root().join("Cargo.toml"))?;
    let members = Table::parse(&manifest).strings("workspace", "members");
    members.iter().map(|member| package(&root().join(member))).collect()
}

fn package(folder: &Path) -> Result<Package> {
    let text = read(&folder.join("Cargo.toml"))?;
    let table = Table::parse(&text);
    let name = table.get("package", "name").with_context(|| format!("no name in {}/Cargo.toml", folder.display()))?;
    let names = |wanted: fn(&str) -> bool| table.keys(wanted);
    Ok(Package {
        name: name.trim_matches('"').to_owned(),
        folder: folder.to_owned(),
        dependencies: names(|section| {
            section == "dependencies"
                || section == "build-dependencies"
                || (section.starts_with("target.") && section.ends_with(".dependencies"))
        }),
        dev_dependencies: names(|section| section.ends_with("dev-dependencies")),
        guest: table.get("lib", "crate-type").is_some_and(|kinds| kinds.contains("cdylib")),
    })
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// As much of TOML as our manifests use: sections, and keys with values that may go on over lines in brackets.
#[derive(Debug, Default)]
struct Table {
    sections: BTreeMap<String, BTreeMap<String, String>>,
}

impl Table {
    fn parse(text: &str) -> Self {
        let mut table = Self::default();
        let mut section = String::new();
        let mut open: Option<(String, String)> = None;
        for line in text.lines() {
            let line = line.trim();
            if line.starts_with('#') || line.is_empty() {
                continue;
            }
            let (key, value) = match open.take() {
                Some((key, value)) => (key, value + " " + line),
                None if line.starts_with('[') => {
                    section = line.trim_matches(['[', ']']).to_owned();
                    // `[dependencies.foo]` is one dependency.
                    if let Some((parent, name)) = section.rsplit_once("dependencies.") {
                        table.set(&format!("{parent}dependencies"), name, String::new());
                    }
                    table.sections.entry(section.clone()).or_default();
                    continue;
                }
                None => match line.split_once('=') {
                    Some((key, value)) => (key.trim().to_owned(), value.trim().to_owned()),
                    None => continue,
                },
            };
            let depth = value.matches(['[', '{']).count() as i64 - value.matches([']', '}']).count() as i64;
            if depth > 0 {
                open = Some((key, value));
                continue;
            }
            // `foo.workspace = true` is about `foo`.
            let name = key.split('.').next().unwrap_or(&key).to_owned();
            table.set(&section, &name, value);
        }
        table
    }

    fn set(&mut self, section: &str, key: &str, value: String) {
        self.sections.entry(section.to_owned()).or_default().insert(key.to_owned(), value);
    }

    fn get(&self, section: &str, key: &str) -> Option<&str> {
        self.sections.get(section)?.get(key).map(String::as_str)
    }

    /// The strings of an array.
    fn strings(&self, section: &str, key: &str) -> Vec<String> {
        let value = self.get(section, key).unwrap_or_default();
        value.split('"').skip(1).step_by(2).map(str::to_owned).collect()
    }

    fn keys(&self, wanted: fn(&str) -> bool) -> Vec<String> {
        let sections = self.sections.iter().filter(|(section, _)| wanted(section));
        sections.flat_map(|(_, keys)| keys.keys().cloned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_are_read_with_every_way_to_write_a_dependency() {
        let table = Table::parse(
            "[package]\nname = \"x\" \n[dependencies]\na.workspace = true\nb = { version = \"1\", features = [\n  \"f\",\n] }\n\
             [dependencies.c]\nversion = \"1\"\n[target.'cfg(unix)'.dependencies]\nd = \"1\"\n[dev-dependencies]\ne = \"1\"\n",
        );
        assert_eq!(table.get("package", "name"), Some("\"x\""));
        assert_eq!(table.keys(|section| section == "dependencies"), ["a", "b", "c"]);
        assert_eq!(table.keys(|section| section.starts_with("target.")), ["d"]);
        assert_eq!(table.keys(|section| section == "dev-dependencies"), ["e"]);
    }

    #[test]
    fn the_workspace_has_this_package_and_the_node() {
        let packages = packages().expect("our own manifests are readable");
        for name in ["xtask", "kvasir-node", "kvasir-machine"] {
            assert!(packages.iter().any(|package| package.name == name), "{name} in {packages:?}");
        }
    }
}
