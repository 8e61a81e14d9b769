//! Looks at a component's bytes before anything is installed: what it is, what it imports and exports, the manifest inside it.
//!
//! **Invariant:** bytes that pass are a complete, valid component whose imports the host serves; nothing here compiles or runs it.

use std::collections::BTreeSet;

use kvasir_api::limits;
use semver::Version;
use wasmparser::{Encoding, Parser, Payload, Validator, WasmFeatures};

use crate::manifest::short;

/// The custom section that carries the manifest.
pub(crate) const MANIFEST_SECTION: &str = "kvasir:manifest";
/// The contract's package and version, as import and export names spell it.
const PACKAGE: &str = "kvasir:plugin/";
const VERSION: &str = "0.1.0";
const IMPORTS: [&str; 7] = ["types", "kv", "watch", "lease", "lock", "log", "context"];
/// WASI interfaces every toolchain's runtime asks for and that reach nothing outside: clocks, randomness, standard streams that
/// end in the plugin's log, an empty environment.
const WASI: [&str; 18] = [
    "wasi:io/error",
    "wasi:io/poll",
    "wasi:io/streams",
    "wasi:clocks/wall-clock",
    "wasi:clocks/monotonic-clock",
    "wasi:random/random",
    "wasi:random/insecure",
    "wasi:random/insecure-seed",
    "wasi:cli/environment",
    "wasi:cli/exit",
    "wasi:cli/stdin",
    "wasi:cli/stdout",
    "wasi:cli/stderr",
    "wasi:cli/terminal-input",
    "wasi:cli/terminal-output",
    "wasi:cli/terminal-stdin",
    "wasi:cli/terminal-stdout",
    "wasi:cli/terminal-stderr",
];
const NAMES_MAX: usize = 256;

/// What a component turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Inspected {
    /// Names of its imports, in order of appearance.
    pub(crate) imports: Vec<String>,
    /// Names of its exports.
    pub(crate) exports: Vec<String>,
    pub(crate) reactor: bool,
    pub(crate) task: bool,
    /// The embedded manifest, if there is one.
    pub(crate) manifest: Option<String>,
}

/// Inspects a whole component.
///
/// # Errors
/// One sentence that says what the bytes are instead, and what to do.
pub(crate) fn inspect(bytes: &[u8]) -> Result<Inspected, String> {
    if bytes.len() as u64 > limits::COMPONENT_BYTES_MAX {
        return Err(format!(
            "the component has {} bytes, more than the {} that are allowed; build it with optimisation for size and strip it",
            bytes.len(),
            limits::COMPONENT_BYTES_MAX
        ));
    }
    check_preamble(bytes)?;
    Validator::new_with_features(features()).validate_all(bytes).map_err(|error| {
        if ends_early(bytes, &error) {
            format!(
                "the component is truncated: it ends after {} bytes in the middle of a section; copy or build it again",
                bytes.len()
            )
        } else {
            format!("the component is not valid at byte {}: {}; build it again", error.offset(), short(error.message()))
        }
    })?;
    let mut found = collect(bytes).map_err(|error| format!("the component cannot be read: {}", short(error.message())))?;
    check_imports(&found.imports)?;
    let ours = |wanted: &str| {
        let export = |name: &String| {
            name.strip_prefix(PACKAGE)?.split_once('@').filter(|(name, _)| *name == wanted).map(|(_, v)| fits(v))
        };
        found.exports.iter().any(|name| export(name) == Some(true))
    };
    (found.reactor, found.task) = (ours("reactor"), ours("task"));
    if !found.reactor && !found.task {
        return Err(wrong_world(&found.exports));
    }
    Ok(found)
}

fn features() -> WasmFeatures {
    // What the engine is configured for: nothing that it would refuse later may pass here.
    let mut features = WasmFeatures::default();
    features.remove(
        WasmFeatures::THREADS
            | WasmFeatures::SHARED_EVERYTHING_THREADS
            | WasmFeatures::MEMORY64
            | WasmFeatures::RELAXED_SIMD
            | WasmFeatures::GC
            | WasmFeatures::FUNCTION_REFERENCES
            | WasmFeatures::EXCEPTIONS
            | WasmFeatures::LEGACY_EXCEPTIONS
            | WasmFeatures::STACK_SWITCHING
            | WasmFeatures::CM_ASYNC,
    );
    features
}

fn check_preamble(bytes: &[u8]) -> Result<(), String> {
    let Some((magic, rest)) = bytes.split_first_chunk::<4>() else {
        return Err(format!("this is not WebAssembly: the file has only {} bytes; give the .wasm component", bytes.len()));
    };
    if magic != b"\0asm" {
        return Err(
            "this is not WebAssembly: the file does not start with the bytes `\\0asm`; give the .wasm component".to_owned()
        );
    }
    match rest.split_first_chunk::<4>() {
        None => Err("the component is truncated: it ends inside its header; copy or build it again".to_owned()),
        Some(([1, 0, 0, 0], _)) => {
            Err("this is a core WebAssembly module, not a component; build it for the target wasm32-wasip2 or wrap it with `wasm-tools component new`".to_owned())
        }
        Some(([0x0d, 0, 1, 0], _)) => Ok(()),
        Some((other, _)) => Err(format!("this is WebAssembly of an unknown version ({other:02x?}); build it with a current component toolchain")),
    }
}

fn ends_early(bytes: &[u8], error: &wasmparser::BinaryReaderError) -> bool {
    error.message().contains("unexpected end")
        || error.message().contains("unexpected-eof")
        || error.offset() >= bytes.len() as u64
}

/// The outermost component's names, and the manifest section wherever it lies: linkers leave custom sections in the module that
/// brought them.
fn collect(bytes: &[u8]) -> Result<Inspected, wasmparser::BinaryReaderError> {
    let mut found = Inspected { imports: Vec::new(), exports: Vec::new(), reactor: false, task: false, manifest: None };
    let mut depth = 0_usize;
    for payload in Parser::new(0).parse_all(bytes) {
        match payload? {
            Payload::Version { encoding, .. } => {
                depth += 1;
                debug_assert!(depth > 1 || encoding == Encoding::Component);
            }
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentImportSection(section) if depth == 1 => {
                for import in section {
                    let name = import?.name.name;
                    if found.imports.len() < NAMES_MAX {
                        found.imports.push(name.to_owned());
                    }
                }
            }
            Payload::ComponentExportSection(section) if depth == 1 => {
                for export in section {
                    let name = export?.name.name;
                    if found.exports.len() < NAMES_MAX {
                        found.exports.push(name.to_owned());
                    }
                }
            }
            Payload::CustomSection(section)
                if section.name() == MANIFEST_SECTION
                    && found.manifest.is_none()
                    && section.data().len() <= limits::MANIFEST_BYTES_MAX =>
            {
                found.manifest = std::str::from_utf8(section.data()).ok().map(str::to_owned);
            }
            _ => {}
        }
    }
    Ok(found)
}

fn check_imports(imports: &[String]) -> Result<(), String> {
    let mut refused = BTreeSet::new();
    for import in imports {
        let (interface, version) = import.split_once('@').unwrap_or((import, ""));
        if let Some(name) = interface.strip_prefix(PACKAGE) {
            if !fits(version) {
                return Err(format!(
                    "the component is built against kvasir:plugin@{version}, this node serves kvasir:plugin@{VERSION}; build it with a matching guest SDK"
                ));
            }
            if IMPORTS.contains(&name) {
                continue;
            }
        } else if WASI.contains(&interface) && compatible(version, "0.2.0") {
            continue;
        }
        refused.insert(short(import));
    }
    if refused.is_empty() {
        return Ok(());
    }
    let names = refused.iter().take(4).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let more = if refused.len() > 4 { format!(" and {} more", refused.len() - 4) } else { String::new() };
    Err(format!(
        "the component imports {names}{more}, which plugins are not offered (no files, no network); build it against the worlds of kvasir:plugin@{VERSION}"
    ))
}

/// Whether a version of the contract is one that this node serves.
fn fits(version: &str) -> bool {
    compatible(version, VERSION)
}

/// Whether two versions may stand for each other: as the engine's linker decides it. The major one counts, in 0.x the minor one too;
/// a pre-release stands for itself only.
fn compatible(asked: &str, served: &str) -> bool {
    let (Ok(asked), Ok(served)) = (Version::parse(asked), Version::parse(served)) else { return false };
    let release = asked.pre.is_empty() && served.pre.is_empty();
    let same = asked.major == served.major && (asked.major > 0 || asked.minor == served.minor && asked.minor > 0);
    asked == served || release && same
}

fn wrong_world(exports: &[String]) -> String {
    let other = exports.iter().find_map(|name| {
        let version = name.strip_prefix(PACKAGE)?.split_once('@')?.1;
        (!fits(version)).then_some(version)
    });
    if let Some(version) = other {
        return format!(
            "the component is built against kvasir:plugin@{version}, this node serves kvasir:plugin@{VERSION}; build it with a matching guest SDK"
        );
    }
    let listed = match exports {
        [] => "nothing".to_owned(),
        names => names.iter().take(4).map(|name| format!("`{}`", short(name))).collect::<Vec<_>>().join(", "),
    };
    format!(
        "the component exports neither kvasir:plugin/reactor@{VERSION} nor kvasir:plugin/task@{VERSION} (it exports {listed}); implement `reactor` or `task` of the contract"
    )
}

#[cfg(test)]
mod tests;
