//! The target made from source: the standard library's source of exactly the compiler's version, wasi-libc, one build.
//!
//! Both come from Debian's packages, unpacked and not installed (Debian's `rust-src` would conflict with rustup's compiler).
//! The toolchain itself carries what links: `rust-lld` and `wasm-component-ld`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::apt::{Mirror, Suite};
use super::{Compiler, TARGET, names};
use crate::shell::{Cmd, has};
use crate::workspace;

/// What of wasi-libc a Rust program links.
const LIBC_PARTS: [&str; 3] = ["libc.a", "crt1-command.o", "crt1-reactor.o"];

pub(super) fn install(compiler: &Compiler) -> Result<()> {
    let begin = Instant::now();
    for tool in ["apt-get", "apt-cache", "dpkg"] {
        if !has(tool) {
            bail!(
                "the way from source needs Debian's packages, and this machine has no {tool}; run `rustup target add {TARGET}`"
            );
        }
    }
    let linkers = compiler.sysroot.join("lib/rustlib").join(&compiler.host).join("bin");
    for linker in ["rust-lld", "wasm-component-ld"] {
        if !linkers.join(linker).is_file() {
            bail!("this toolchain has no {linker} in {}: it cannot link a component", linkers.display());
        }
    }
    let folder = workspace::target().join("wasm-target");
    remove(&folder)?;
    std::fs::create_dir_all(&folder)?;

    println!("step 1 of 4: the source of the standard library, of exactly rustc {}", compiler.version);
    let mirror = Mirror::of_this_machine()?;
    let mut suites = suites(&mirror.codename);
    let source = compiler.sysroot.join("lib/rustlib/src/rust");
    if source.join("library/std/Cargo.toml").is_file() {
        println!("  there already: {}", source.display());
    } else {
        let (unpacked, suite) = fetch(&mirror, &suites, &folder, "rust-src", |version| upstream(version) == compiler.version)
            .with_context(|| format!("no rust-src of rustc {}", compiler.version))?;
        // The libc that goes with it stands in the same suite.
        suites.insert(0, suite);
        let found = find(&unpacked, "library/std/Cargo.toml").context("rust-src holds no library/std")?;
        println!("  installing it into {}", source.display());
        copy(&found.join("library"), &source.join("library"))?;
    }

    println!("step 2 of 4: wasi-libc for {TARGET}");
    let (unpacked, _) = fetch(&mirror, &suites, &folder, "wasi-libc", |_| true)?;
    let libc = find(&unpacked, &format!("{TARGET}/libc.a")).context("this wasi-libc does not know the target")?;
    let parts = compiler.target_libraries().join("self-contained");
    std::fs::create_dir_all(&parts)?;
    for part in LIBC_PARTS {
        let from = libc.join(TARGET).join(part);
        std::fs::copy(&from, parts.join(part)).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    println!("  installed {} into {}", LIBC_PARTS.join(", "), parts.display());

    println!("step 3 of 4: the standard library, built once (a minute or two)");
    let built = build_std(&folder)?;

    println!("step 4 of 4: its libraries into the sysroot");
    let libraries = compiler.target_libraries();
    let mut installed = 0;
    for name in names(&built).iter().filter(|name| name.ends_with(".rlib") && !name.starts_with("libempty")) {
        std::fs::copy(built.join(name), libraries.join(name))?;
        installed += 1;
    }
    println!("  {installed} libraries; {:.0} seconds in all", begin.elapsed().as_secs_f64());
    remove(&folder)
}

/// Where to look for a package, nearest first: backports to this release, to the ones after it, then what comes next.
fn suites(codename: &str) -> Vec<String> {
    let releases = ["bookworm", "trixie", "forky", "duke"];
    let from = releases.iter().position(|release| *release == codename).unwrap_or(0);
    let backports = releases[from..].iter().map(|release| format!("{release}-backports"));
    backports.chain(["testing".to_owned(), "unstable".to_owned()]).collect()
}

/// Fetches and unpacks the first version of a package that is wanted, suite after suite; answers where it is and whence.
fn fetch(
    mirror: &Mirror,
    suites: &[String],
    folder: &Path,
    package: &str,
    wanted: impl Fn(&str) -> bool,
) -> Result<(PathBuf, String)> {
    let mut seen = Vec::new();
    for name in suites {
        let Some(suite) = Suite::fetch(mirror, name, &folder.join("apt"))? else { continue };
        for version in suite.versions(package)? {
            if !wanted(&version) {
                seen.push(format!("{version} in {name}"));
                continue;
            }
            println!("  suite {name}: {package} {version}");
            let unpacked = folder.join(package);
            suite.unpack(package, &version, &unpacked)?;
            return Ok((unpacked, suite.name));
        }
        println!("  suite {name}: no {package} that fits");
    }
    match seen.as_slice() {
        [] => bail!("no suite of the mirror has {package} (looked in {})", suites.join(", ")),
        _ => bail!("the mirror's {package} does not fit: {}", seen.join(", ")),
    }
}

/// `1.95.0` of `1.95.0+dfsg1-2~bpo13+1`
fn upstream(version: &str) -> &str {
    version.split(['+', '-', '~']).next().unwrap_or(version)
}

/// Builds an empty crate with its own standard library, and answers the folder with the libraries.
fn build_std(folder: &Path) -> Result<PathBuf> {
    let empty = folder.join("empty");
    std::fs::create_dir_all(empty.join("src"))?;
    // A workspace of its own, or cargo would take it for a stray member of ours.
    let manifest = "[package]\nname = \"empty\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[workspace]\n";
    std::fs::write(empty.join("Cargo.toml"), manifest)?;
    std::fs::write(empty.join("src/lib.rs"), "")?;
    Cmd::cargo()
        .args(["build", "--release", "--target", TARGET])
        .arg("-Zbuild-std=std,panic_abort,panic_unwind,proc_macro,test")
        .env("RUSTC_BOOTSTRAP", "1")
        // Bitcode, or guests could not be linked with LTO.
        .env("RUSTFLAGS", "-Cembed-bitcode=yes")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("CARGO_TARGET_DIR", empty.join("target"))
        .folder(&empty)
        .run()?;
    Ok(empty.join("target").join(TARGET).join("release/deps"))
}

/// The folder below `top` that this path can be found from.
fn find(top: &Path, path: &str) -> Option<PathBuf> {
    if top.join(path).is_file() {
        return Some(top.to_owned());
    }
    let mut folders: Vec<PathBuf> = names(top).iter().map(|name| top.join(name)).collect();
    folders.retain(|it| it.is_dir() && !it.is_symlink());
    folders.sort();
    folders.iter().find_map(|folder| find(folder, path))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for name in names(from) {
        let (from, to) = (from.join(&name), to.join(&name));
        if from.is_dir() {
            copy(&from, &to)?;
        } else {
            std::fs::copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
        }
    }
    Ok(())
}

fn remove(folder: &Path) -> Result<()> {
    if folder.exists() {
        std::fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_debian_version_names_its_upstream_one() {
        assert_eq!(upstream("1.95.0+dfsg1-2~bpo13+1"), "1.95.0");
        assert_eq!(upstream("0.0~git20260129.ec0effd-3"), "0.0");
        assert_eq!(upstream("1.96.0-1"), "1.96.0");
    }

    #[test]
    fn backports_of_this_release_come_first() {
        assert_eq!(suites("trixie")[0], "trixie-backports");
        assert_eq!(suites("bookworm")[..2], ["bookworm-backports", "trixie-backports"]);
        assert!(suites("unheard-of").contains(&"unstable".to_owned()));
    }
}
