//! Compiles components on one thread of low priority, and keeps the result on disk for the next start.
//!
//! A cached file is trusted only if this host wrote it: its tag is an HMAC-SHA-256 under a key that lies beside it in a folder
//! that nobody else may enter, over the name that binds it to the component and to this build of the engine. Anything that does
//! not verify is compiled again.
//!
//! **Invariant:** code is only ever made here: never while a request waits for it, never under a lock, one component at a time.

use std::collections::BTreeSet;
use std::fs;
use std::hash::{Hash, Hasher};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::sync::oneshot;
use wasmtime::Engine;
use wasmtime::component::Component;

use crate::wasm;

/// Components waiting to be compiled; a full queue makes the asker wait its turn.
const QUEUE_MAX: usize = 512;
const TAG_BYTES: usize = 32;
const EXTENSION: &str = "cwasm";
const KEY: &str = "key";

/// The thread's door. Dropping the last clone ends the thread after its current work.
#[derive(Clone)]
pub(crate) struct Compiler {
    requests: mpsc::SyncSender<Request>,
}

enum Request {
    /// Code from the cache; compiled now if it is not there and the component is given.
    Load { digest: Digest, component: Option<Bytes>, done: oneshot::Sender<Result<Option<Component>, String>> },
    /// Forgets the code of every other component.
    KeepOnly(BTreeSet<Digest>),
}

type Digest = [u8; 32];

impl Compiler {
    /// Opens the cache and starts the thread.
    ///
    /// # Errors
    /// What the system said about the folder, its key or the thread.
    pub(crate) fn start(engine: Engine, dir: &Path) -> io::Result<Self> {
        let cache = Cache::open(dir, &engine)?;
        let (requests, queue) = mpsc::sync_channel::<Request>(QUEUE_MAX);
        std::thread::Builder::new().name(format!("{}compile", wasm::THREAD_NAME_PREFIX)).spawn(move || {
            wasm::lower_compile_priority();
            while let Ok(request) = queue.recv() {
                let (digest, component, done) = match request {
                    Request::Load { done, .. } if done.is_closed() => continue,
                    Request::Load { digest, component, done } => (digest, component, done),
                    Request::KeepOnly(digests) => {
                        cache.keep_only(&digests);
                        continue;
                    }
                };
                // A panic of the compiler is this component's fault; the thread goes on with the next.
                let make = || load_or_compile(&engine, &cache, &digest, component.as_ref());
                let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(make));
                let _ = done.send(made.unwrap_or_else(|_| Err("the compiler failed on this component".to_owned())));
            }
        })?;
        Ok(Self { requests })
    }

    /// Code for a component that was compiled before, without its bytes.
    ///
    /// # Errors
    /// That there is too much to do.
    pub(crate) async fn cached(&self, digest: Digest) -> Result<Option<Component>, String> {
        self.load(digest, None).await
    }

    /// Code for a component, from the cache or compiled now.
    ///
    /// # Errors
    /// What the compiler said about the component, or that its digest is another.
    pub(crate) async fn compile(&self, digest: Digest, component: Bytes) -> Result<Component, String> {
        self.load(digest, Some(component)).await?.ok_or_else(|| "the compiler has made nothing".to_owned())
    }

    /// Forgets the code of every component but these.
    pub(crate) fn keep_only(&self, digests: BTreeSet<Digest>) {
        // When there is no room it waits for the next start.
        let _ = self.requests.try_send(Request::KeepOnly(digests));
    }

    async fn load(&self, digest: Digest, component: Option<Bytes>) -> Result<Option<Component>, String> {
        let (done, made) = oneshot::channel();
        self.requests
            .try_send(Request::Load { digest, component, done })
            .map_err(|_| "too many components are waiting to be compiled".to_owned())?;
        made.await.map_err(|_| "the compiler has stopped".to_owned())?
    }
}

fn load_or_compile(
    engine: &Engine,
    cache: &Cache,
    digest: &Digest,
    component: Option<&Bytes>,
) -> Result<Option<Component>, String> {
    if let Some(code) = cache.read(digest) {
        match deserialize(engine, &code) {
            Ok(component) => return Ok(Some(component)),
            Err(error) => tracing::warn!(%error, "cached plugin code does not load; it is compiled again"),
        }
    }
    let Some(component) = component else { return Ok(None) };
    if *digest != Digest::from(Sha256::digest(component)) {
        return Err("the stored component is not the one that was installed (its digest differs); remove the plugin and install it again".to_owned());
    }
    let code = engine
        .precompile_component(component)
        .map(Verified)
        .map_err(|error| format!("the component does not compile: {error:#}"))?;
    if let Err(error) = cache.write(digest, &code) {
        tracing::warn!(%error, dir = %cache.dir.display(), "compiled plugin code is not cached; it will be compiled again at the next start");
    }
    deserialize(engine, &code).map(Some).map_err(|error| format!("the compiled component does not load: {error:#}"))
}

/// Turns compiled code into something that runs.
#[allow(unsafe_code)]
fn deserialize(engine: &Engine, code: &Verified) -> wasmtime::Result<Component> {
    // SAFETY: `Component::deserialize` is sound for bytes that `Engine::precompile_component` of the same version and configuration
    // returned, unmodified. `Verified` has two sources: the return value of `precompile_component` in this process, and a file
    // whose HMAC-SHA-256, under a key readable by this user only, matches. The only code that makes such a tag is `Cache::write`,
    // over bytes from `precompile_component`; the tag covers the name, which holds the component's digest and the engine's
    // compatibility hash, so neither a file of another component nor of another engine passes. The bytes are checked and used
    // from the same private buffer, so nobody can change them in between.
    unsafe { Component::deserialize(engine, &code.0) }
}

/// Code that this host is known to have compiled.
struct Verified(Vec<u8>);

/// The folder of compiled code.
struct Cache {
    dir: PathBuf,
    key: [u8; 32],
    /// Of this build of the engine, its configuration and the processor.
    compatibility: String,
}

impl Cache {
    fn open(dir: &Path, engine: &Engine) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let folder = fs::metadata(dir)?;
        let private = folder.uid() == rustix::process::geteuid().as_raw() && folder.mode() & 0o077 == 0;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
        let mut hasher = Sha256Hasher(Sha256::new());
        engine.precompile_compatibility_hash().hash(&mut hasher);
        let kept = if private { kept_key(dir)? } else { None };
        let cache = Self {
            dir: dir.to_owned(),
            key: kept.map_or_else(|| new_key(dir), Ok)?,
            compatibility: hex(&hasher.0.finalize()[..16]),
        };
        // Where others could read the key, nothing that it vouches for is believed; code of another engine is of no use any more.
        cache.drop_unless(|name| kept.is_some() && name.contains(&cache.compatibility))?;
        Ok(cache)
    }

    /// Forgets the code of components that are not installed any more.
    fn keep_only(&self, digests: &BTreeSet<Digest>) {
        let names: BTreeSet<String> = digests.iter().map(|digest| self.name(digest)).collect();
        if let Err(error) = self.drop_unless(|name| names.contains(name)) {
            tracing::warn!(%error, dir = %self.dir.display(), "compiled code of plugins that are gone is left behind");
        }
    }

    fn drop_unless(&self, keep: impl Fn(&str) -> bool) -> io::Result<()> {
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let ours = name.ends_with(&format!(".{EXTENSION}")) || name.ends_with(".tmp");
            if ours && !keep(&name) {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }

    fn name(&self, digest: &Digest) -> String {
        format!("{}-{}.{EXTENSION}", hex(digest), self.compatibility)
    }

    fn read(&self, digest: &Digest) -> Option<Verified> {
        let name = self.name(digest);
        let mut bytes = match fs::read(self.dir.join(&name)) {
            Ok(bytes) => bytes,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(%error, name, "cached plugin code cannot be read; it is compiled again");
                }
                return None;
            }
        };
        let code = bytes.len().checked_sub(TAG_BYTES)?;
        let tag = bytes.split_off(code);
        if tag != hmac(&self.key, name.as_bytes(), &bytes) {
            tracing::warn!(name, "cached plugin code was changed by somebody else; it is compiled again");
            return None;
        }
        Some(Verified(bytes))
    }

    fn write(&self, digest: &Digest, code: &Verified) -> io::Result<()> {
        let name = self.name(digest);
        let temporary = self.dir.join(format!("{name}.tmp"));
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(&code.0)?;
        file.write_all(&hmac(&self.key, name.as_bytes(), &code.0))?;
        drop(file);
        // No sync: a file that a power cut tore does not verify, and is only a cache.
        fs::rename(&temporary, self.dir.join(&name))
    }
}

/// The cache's secret, if there is one that nobody else could have read or put there.
fn kept_key(dir: &Path) -> io::Result<Option<[u8; 32]>> {
    let opened = fs::OpenOptions::new().read(true).custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32).open(dir.join(KEY));
    let Ok(mut file) = opened else { return Ok(None) };
    let found = file.metadata()?;
    let private = found.is_file() && found.uid() == rustix::process::geteuid().as_raw() && found.mode() & 0o077 == 0;
    let mut key = [0; 32];
    Ok((private && found.len() == 32 && file.read_exact(&mut key).is_ok()).then_some(key))
}

fn new_key(dir: &Path) -> io::Result<[u8; 32]> {
    let mut key = [0; 32];
    getrandom::fill(&mut key).map_err(|error| io::Error::other(error.to_string()))?;
    let path = dir.join(KEY);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?.write_all(&key)?;
    Ok(key)
}

/// HMAC-SHA-256 (RFC 2104) over the name's length, the name and the code.
fn hmac(key: &[u8; 32], name: &[u8], code: &[u8]) -> [u8; TAG_BYTES] {
    let mut pad = [0x36_u8; 64];
    pad.iter_mut().zip(key).for_each(|(p, k)| *p ^= k);
    let inner = Sha256::new()
        .chain_update(pad)
        .chain_update((name.len() as u64).to_le_bytes())
        .chain_update(name)
        .chain_update(code)
        .finalize();
    pad.iter_mut().for_each(|p| *p ^= 0x36 ^ 0x5c);
    Sha256::new().chain_update(pad).chain_update(inner).finalize().into()
}

/// Bytes in lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Feeds what is hashed to SHA-256, whose result is the same in every build of the standard library.
struct Sha256Hasher(Sha256);

impl Hasher for Sha256Hasher {
    fn finish(&self) -> u64 {
        0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
}

#[cfg(test)]
mod tests;
