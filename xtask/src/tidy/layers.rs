//! Who may depend on whom, by the manifests: `node -> plugins -> engine -> consensus -> storage -> machine -> api`.
//!
//! **Invariant:** judged by the dependency tables alone, development ones included: what no manifest names, no code imports.

use super::Problem;
use crate::workspace::Package;

/// The host's crates, from the ground up; each may use those before it.
const LAYERS: [&str; 8] = [
    "kvasir-api",
    "kvasir-machine",
    "kvasir-storage",
    "kvasir-transport",
    "kvasir-consensus",
    "kvasir-engine",
    "kvasir-plugins",
    "kvasir-node",
];

/// What host and guests agree on; it knows neither, and both may use it.
const CONTRACT: &str = "kvasir-manifest";

/// Each engine underneath, and the one crate that may import it.
const IMPORTERS: [(&str, &str); 8] = [
    ("openraft", "kvasir-consensus"),
    ("redb", "kvasir-storage"),
    ("quinn", "kvasir-transport"),
    ("rustls", "kvasir-transport"),
    ("rcgen", "kvasir-transport"),
    ("wasmtime", "kvasir-plugins"),
    ("wasmtime-wasi", "kvasir-plugins"),
    ("quinn", "kvasir-transport"),
];

pub(super) fn check(packages: &[Package]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for package in packages {
        let all = package.dependencies.iter().chain(&package.dev_dependencies);
        for dependency in all {
            if let Some(what) = upward(&package.name, dependency).or_else(|| second_importer(&package.name, dependency)) {
                problems.push(Problem { path: package.folder.join("Cargo.toml"), line: 0, what });
            }
        }
    }
    problems
}

fn upward(package: &str, dependency: &str) -> Option<String> {
    let level = |name: &str| LAYERS.iter().position(|layer| *layer == name);
    let is_ours = |name: &str| name.starts_with("kvasir");
    match (level(package), level(dependency)) {
        (Some(ours), Some(theirs)) if theirs >= ours => Some(format!("{package} imports {dependency}, which is above it")),
        (None, Some(_)) if package == "kvasir-tests" => None,
        // Guests see the host through WIT, and the tasks of the project see it from outside.
        (None, Some(_)) => Some(format!("{package} imports {dependency}, a crate of the host")),
        (Some(_), None) if dependency == CONTRACT => None,
        (Some(_), None) if is_ours(dependency) => Some(format!("{package}, a crate of the host, imports {dependency}")),
        _ => None,
    }
}

fn second_importer(package: &str, dependency: &str) -> Option<String> {
    let (engine, importer) = IMPORTERS.iter().find(|(engine, _)| *engine == dependency)?;
    (*importer != package).then(|| format!("{package} imports {engine}; only {importer} may"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_import_upward_is_refused_and_one_downward_is_not() {
        assert!(upward("kvasir-machine", "kvasir-storage").is_some());
        assert!(upward("kvasir-storage", "kvasir-machine").is_none());
        assert!(upward("config-render", "kvasir-machine").is_some());
        assert!(upward("config-render", "kvasir-guest").is_none());
        assert!(upward("kvasir-plugins", "kvasir-guest").is_some());
        assert!(upward("kvasir-plugins", "kvasir-manifest").is_none());
        assert!(upward("kvasir-guest", "kvasir-manifest").is_none());
        assert!(upward("kvasir-manifest", "kvasir-api").is_some());
        assert!(upward("kvasir-tests", "kvasir-engine").is_none());
        assert!(upward("xtask", "kvasir-api").is_some());
    }

    #[test]
    fn an_engine_has_one_importer() {
        assert!(second_importer("kvasir-node", "wasmtime").is_some());
        assert!(second_importer("kvasir-plugins", "wasmtime").is_none());
        assert!(second_importer("kvasir-node", "bytes").is_none());
    }
}
