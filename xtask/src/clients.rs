//! etcd's own clients, prepared for the tests and the demo: `etcdctl` and the Go programs on both import paths of clientv3.
//!
//! All are built by Go from modules whose versions `tests/go/*/go.mod` pins, into `target/clients`. Without Go, Debian's
//! `etcd-client` stands in for `etcdctl`. What cannot be had is skipped out loud.
//!
//! **Invariant:** a client that is there and newer than its sources is not built again.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Result;

use crate::shell::{Cmd, has};
use crate::workspace;

/// One client program.
struct Recipe {
    /// Its name in `target/clients`.
    name: &'static str,
    /// The module that builds it, below `tests/go`.
    module: &'static str,
    /// The package that is built, as seen from the module.
    package: &'static str,
    /// The variable by which the tests find it.
    variable: &'static str,
}

const RECIPES: [Recipe; 3] = [
    Recipe { name: "clientv3", module: "clientv3", package: ".", variable: "KVASIR_GO_CLIENT" },
    Recipe { name: "clientv3-old", module: "clientv3-old", package: ".", variable: "KVASIR_GO_CLIENT_OLD" },
    Recipe { name: "etcdctl", module: "etcdctl", package: "go.etcd.io/etcd/etcdctl/v3", variable: "KVASIR_ETCDCTL" },
];

/// What there is, and what there is not.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    /// Variable and path of each client that is there.
    pub(crate) found: Vec<(&'static str, PathBuf)>,
    /// Name of each that is not, and why.
    pub(crate) missing: Vec<(&'static str, String)>,
}

impl Clients {
    /// The path of `etcdctl`, when there is one.
    pub(crate) fn path(&self, variable: &str) -> Option<&Path> {
        self.found.iter().find(|(its, _)| *its == variable).map(|(_, path)| path.as_path())
    }
}

/// Builds or finds every client.
pub(crate) fn prepare() -> Result<Clients> {
    prepare_some(|_| true)
}

/// Builds or finds `etcdctl` alone, or failing that the Go client of today: what the demo needs.
pub(crate) fn prepare_for_demo() -> Result<Clients> {
    let clients = prepare_some(|recipe| recipe.name == "etcdctl")?;
    if clients.found.is_empty() { prepare_some(|recipe| recipe.name == "clientv3") } else { Ok(clients) }
}

fn prepare_some(wanted: impl Fn(&Recipe) -> bool) -> Result<Clients> {
    let folder = workspace::target().join("clients");
    std::fs::create_dir_all(&folder)?;
    let mut clients = Clients::default();
    for recipe in RECIPES.iter().filter(|recipe| wanted(recipe)) {
        if let Some(path) = std::env::var_os(recipe.variable).map(PathBuf::from).filter(|path| path.is_file()) {
            println!("  {}: {} names {}", recipe.name, recipe.variable, path.display());
            clients.found.push((recipe.variable, path));
            continue;
        }
        let program = folder.join(recipe.name);
        let why = match make(recipe, &program) {
            Ok(()) => {
                clients.found.push((recipe.variable, program));
                continue;
            }
            Err(error) => format!("{error:#}"),
        };
        if recipe.name == "etcdctl"
            && let Some(path) = etcdctl_of_the_machine(&why)?
        {
            clients.found.push((recipe.variable, path));
            continue;
        }
        println!("  SKIPPED: {}: {why}", recipe.name);
        clients.missing.push((recipe.name, why));
    }
    Ok(clients)
}

fn make(recipe: &Recipe, program: &Path) -> Result<()> {
    let module = workspace::root().join("tests/go").join(recipe.module);
    if is_newer(program, &module) {
        println!("  {}: there, in {}", recipe.name, program.display());
        return Ok(());
    }
    if !has("go") {
        anyhow::bail!("it is built by Go, and this machine has none");
    }
    let build = Cmd::new("go")
        .args(["build", "-trimpath", "-mod=readonly", "-o"])
        .arg(program)
        .arg(recipe.package)
        .env("CGO_ENABLED", "0")
        .folder(&module)
        .limit(Duration::from_secs(900));
    println!("  $ cd tests/go/{} && {build}", recipe.module);
    let output = build.output()?;
    if !output.status.success() {
        let tail: Vec<&str> = output.stderr.lines().rev().take(5).collect();
        anyhow::bail!("go build failed: {}", tail.into_iter().rev().collect::<Vec<_>>().join(" / "));
    }
    Ok(())
}

/// `etcdctl` in the path, or Debian's, installed where we may.
fn etcdctl_of_the_machine(why: &str) -> Result<Option<PathBuf>> {
    if !has("etcdctl") {
        let is_root = Cmd::new("id").arg("-u").read().is_ok_and(|id| id.trim() == "0");
        if !(is_root && has("apt-get")) {
            return Ok(None);
        }
        println!("  etcdctl: {why}; trying Debian's package etcd-client");
        let install = Cmd::new("apt-get").args(["install", "-y", "--no-install-recommends", "etcd-client"]);
        let install = install.env("DEBIAN_FRONTEND", "noninteractive").limit(Duration::from_secs(300));
        println!("  $ {install}");
        if !install.output()?.status.success() {
            return Ok(None);
        }
    }
    let found = std::env::var_os("PATH")
        .and_then(|path| std::env::split_paths(&path).map(|folder| folder.join("etcdctl")).find(|program| program.is_file()));
    if let Some(path) = &found {
        println!("  etcdctl: {}", path.display());
    }
    Ok(found)
}

/// Whether the program is there and no file of its module has changed since.
fn is_newer(program: &Path, module: &Path) -> bool {
    let modified = |path: &Path| path.metadata().and_then(|it| it.modified()).ok();
    let Some(built) = modified(program) else { return false };
    let Ok(files) = std::fs::read_dir(module) else { return false };
    let newest = files.filter_map(|file| modified(&file.ok()?.path())).max();
    newest.unwrap_or(SystemTime::UNIX_EPOCH) <= built
}
