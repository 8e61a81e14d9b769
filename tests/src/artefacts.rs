//! The things under test: the `kvasir` binary and the guest components, as cargo builds them beside the test executables.
//!
//! `cargo test` builds the binaries of the tested package only, so these are found by their place in the target folder and
//! built here when they are missing or older than their sources. A driver that built them before costs nothing more.
//!
//! **Invariant:** each is built at most once per test process, into the target folder the tests came from.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};
use std::time::SystemTime;

/// Where the guests are compiled to, below the target folder.
const GUEST_TARGET: &str = "wasm32-wasip2";

/// The `kvasir` binary of this build; `KVASIR_BIN` names another.
///
/// # Panics
/// When it cannot be built.
pub fn kvasir() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("KVASIR_BIN") {
            return path.into();
        }
        let folder = profile_dir();
        let binary = folder.join("kvasir");
        if !fresh(&binary, &folder.join("kvasir.d")) {
            let profile = match folder.file_name().and_then(|name| name.to_str()) {
                Some("debug") | None => "dev",
                Some(other) => other,
            };
            cargo(&["build", "--package", "kvasir-node", "--bin", "kvasir", "--profile", profile]);
        }
        binary
    })
}

/// The compiled component of a guest package, by the package's name (`config-render`); `None`, said out loud, where the wasm
/// target is not installed. `KVASIR_GUESTS` names a folder of components to take as they are.
///
/// # Panics
/// When the target is there and the build fails all the same.
pub fn guest(package: &str) -> Option<PathBuf> {
    static BUILT: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let stem = package.replace('-', "_");
    if let Some(folder) = std::env::var_os("KVASIR_GUESTS") {
        return Some(Path::new(&folder).join(format!("{stem}.wasm")));
    }
    if !wasm_target() {
        let reason = format!("the {GUEST_TARGET} target is not installed; `cargo xtask wasm-target` gets it");
        crate::skip(&format!("everything with the plugin {package}"), &reason);
        return None;
    }
    let folder = target_dir().join(GUEST_TARGET).join("guest");
    let component = folder.join(format!("{stem}.wasm"));
    let mut built = BUILT.lock().unwrap();
    if !built.iter().any(|name| name == package) {
        let dependencies = [folder.join(format!("{stem}.d")), folder.join(format!("lib{stem}.d"))];
        let listed = dependencies.iter().find(|path| path.exists());
        if !listed.is_some_and(|listed| fresh(&component, listed)) {
            cargo(&["build", "--package", package, "--target", GUEST_TARGET, "--profile", "guest"]);
        }
        assert!(component.exists(), "cargo built {package}, but {} is not there", component.display());
        built.push(package.to_owned());
    }
    Some(component)
}

/// `target/<profile>`: a test executable lives in its `deps`.
fn profile_dir() -> PathBuf {
    let executable = std::env::current_exe().unwrap();
    let folder = executable.parent().unwrap();
    if folder.ends_with("deps") { folder.parent().unwrap().to_owned() } else { folder.to_owned() }
}

fn target_dir() -> PathBuf {
    profile_dir().parent().unwrap().to_owned()
}

fn workspace_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Whether the artefact is there and not older than any source that cargo's dependency file lists for it.
fn fresh(artefact: &Path, dependency_file: &Path) -> bool {
    let modified = |path: &Path| path.metadata().and_then(|it| it.modified()).ok();
    let Some(built) = modified(artefact) else { return false };
    let Ok(listed) = std::fs::read_to_string(dependency_file) else { return false };
    let Some((_, sources)) = listed.lines().next().and_then(|line| line.split_once(": ")) else { return false };
    sources.split_ascii_whitespace().all(|source| modified(Path::new(source)).is_none_or(|at: SystemTime| at <= built))
}

fn wasm_target() -> bool {
    static INSTALLED: OnceLock<bool> = OnceLock::new();
    *INSTALLED.get_or_init(|| {
        let answer = Command::new("rustc").args(["--print", "target-libdir", "--target", GUEST_TARGET]).output();
        let Ok(answer) = answer else { return false };
        Path::new(String::from_utf8_lossy(&answer.stdout).trim()).is_dir()
    })
}

fn cargo(arguments: &[&str]) {
    eprintln!("building what is under test: cargo {}", arguments.join(" "));
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(arguments).arg("--target-dir").arg(target_dir()).current_dir(workspace_dir());
    // What cargo set for this test executable must not leak into the build, or everything is built anew.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST") || text == "CARGO_CRATE_NAME" {
            command.env_remove(&name);
        }
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "cargo {arguments:?} failed:\n{}", String::from_utf8_lossy(&output.stderr));
}
