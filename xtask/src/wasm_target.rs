//! `wasm32-wasip2` for the compiler in use: rustup first, from source where rustup reaches no server.
//!
//! **Invariant:** when the target is there already, nothing is done; what is installed is installed into the sysroot of the
//! compiler in use and nowhere else.

mod apt;
mod source;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};

use crate::shell::{Cmd, has};

/// The target that guests are built for.
pub(crate) const TARGET: &str = "wasm32-wasip2";

/// Set to `1`, it makes the from-source path run even where rustup could help: to try that path.
const FORCE_SOURCE: &str = "KVASIR_XTASK_FORCE_SOURCE";

/// Makes sure that guests can be built.
pub(crate) fn ensure() -> Result<()> {
    let compiler = Compiler::find()?;
    if compiler.has_target() {
        println!("{TARGET}: there, in {}", compiler.target_libraries().display());
        return Ok(());
    }
    println!("{TARGET}: not there for rustc {}", compiler.version);
    if std::env::var_os(FORCE_SOURCE).is_some_and(|value| value == "1") {
        println!("{TARGET}: {FORCE_SOURCE}=1, so rustup is not asked");
    } else if add_by_rustup()? && compiler.has_target() {
        println!("{TARGET}: installed by rustup");
        return Ok(());
    }
    source::install(&compiler)?;
    if !compiler.has_target() {
        bail!("{TARGET} was installed, but {} is not complete", compiler.target_libraries().display());
    }
    println!("{TARGET}: installed from source, into {}", compiler.target_libraries().display());
    Ok(())
}

fn add_by_rustup() -> Result<bool> {
    if !has("rustup") {
        println!("{TARGET}: no rustup here");
        return Ok(false);
    }
    let add = Cmd::new("rustup").args(["target", "add", TARGET]).limit(Duration::from_secs(300));
    println!("  $ {add}");
    let why = match add.output() {
        Ok(output) if output.status.success() => return Ok(true),
        Ok(output) => output.stderr.lines().find(|line| line.starts_with("error")).unwrap_or("it failed").to_owned(),
        Err(error) => format!("{error:#}"),
    };
    println!("{TARGET}: rustup could not get it ({why}); building it from source instead");
    Ok(false)
}

/// The Rust compiler that builds the guests.
struct Compiler {
    /// `1.95.0`
    version: String,
    /// `x86_64-unknown-linux-gnu`
    host: String,
    sysroot: PathBuf,
}

impl Compiler {
    fn find() -> Result<Self> {
        let said = Cmd::new("rustc").arg("-vV").read()?;
        let field = |name: &str| said.lines().find_map(|line| line.strip_prefix(name)).map(|it| it.trim().to_owned());
        let (Some(version), Some(host)) = (field("release:"), field("host:")) else {
            bail!("`rustc -vV` says neither its release nor its host: {said}");
        };
        let sysroot = Cmd::new("rustc").args(["--print", "sysroot"]).read()?;
        Ok(Self { version, host, sysroot: sysroot.trim().into() })
    }

    /// Where the target's libraries belong.
    fn target_libraries(&self) -> PathBuf {
        self.sysroot.join("lib/rustlib").join(TARGET).join("lib")
    }

    fn has_target(&self) -> bool {
        let libraries = self.target_libraries();
        let has_std = names(&libraries).iter().any(|name| name.starts_with("libstd-") && name.ends_with(".rlib"));
        has_std && libraries.join("self-contained/libc.a").is_file()
    }
}

/// The names in a folder; none when it is not there.
fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned())).collect()
}
