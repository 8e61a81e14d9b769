//! Installs a plugin: everything that can be refused is refused before the first byte is replicated, then the component travels in
//! chunks and one entry puts it in force.
//!
//! **Invariant:** an installation that fails changes nothing that runs; chunks without a plugin are only space until they are used.

use bytes::Bytes;
use kvasir_api::command::{BlobChunk, PluginSet};
use kvasir_api::kvasir::plugin::v1::{InstallResponse, install_request};
use kvasir_api::{Error, limits};
use sha2::{Digest as _, Sha256};

use crate::compile::hex;
use crate::grants::decide;
use crate::inspect::inspect;
use crate::installed::Installed;
use crate::manifest::Manifest;
use crate::store::Store;

/// An installation that passed every check.
#[derive(Debug)]
pub(crate) struct Checked {
    pub(crate) installed: Installed,
    record: Vec<u8>,
    digest: [u8; 32],
}

/// Checks manifest, component and grants against each other.
///
/// # Errors
/// [`Error::Invalid`] with one sentence.
pub(crate) fn check(header: &install_request::Header, component: &[u8]) -> Result<Checked, Error> {
    check_with(header, component).map_err(Error::Invalid)
}

fn check_with(header: &install_request::Header, component: &[u8]) -> Result<Checked, String> {
    if header.total_bytes != 0 && header.total_bytes != component.len() as u64 {
        return Err(format!(
            "the component is truncated: {} of {} bytes arrived; send it again",
            component.len(),
            header.total_bytes
        ));
    }
    let found = inspect(component)?;
    let toml = match (&header.manifest_toml, &found.manifest) {
        (given, _) if !given.trim().is_empty() => given.clone(),
        (_, Some(embedded)) => embedded.clone(),
        (_, None) => {
            return Err("there is no manifest: give one with --manifest, or embed it in the component's custom section `kvasir:manifest`".to_owned());
        }
    };
    let manifest = Manifest::parse(&toml)?;
    let grants = decide(&manifest, &header.grants, header.accept_requested)?;
    let overrides = header.config.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    let installed = Installed::new(manifest, toml, grants, overrides, found, component.len() as u64)?;
    let record = installed.encode()?;
    Ok(Checked { installed, record, digest: Sha256::digest(component).into() })
}

impl Checked {
    /// What the operator is told.
    pub(crate) fn response(&self, generation: u64) -> InstallResponse {
        InstallResponse {
            name: self.installed.manifest.plugin.name.to_string(),
            version: self.installed.manifest.plugin.version.clone(),
            generation,
            digest: hex(&self.digest),
            permissions: self.installed.permissions(),
        }
    }

    /// Replicates the component unless it is there, and puts the plugin in force.
    ///
    /// # Errors
    /// What the store said; a plugin that exists needs `upgrade`, one that does not must not have it.
    pub(crate) async fn replicate(self, store: &Store, component: &Bytes, upgrade: bool) -> Result<InstallResponse, Error> {
        let name = self.installed.manifest.plugin.name.to_string();
        store.linearize().await?;
        let before = store.plugin(&name);
        match &before {
            Some(_) if !upgrade => {
                return Err(Error::Precondition(format!("plugin {name} is installed already; use --upgrade to replace it")));
            }
            None if upgrade => {
                return Err(Error::Missing(format!(
                    "plugin {name} is not installed, so it cannot be upgraded; leave --upgrade out"
                )));
            }
            _ => {}
        }
        send(store, &self.digest, component).await?;
        let set = PluginSet {
            name,
            digest: Bytes::copy_from_slice(&self.digest),
            manifest: Bytes::from(self.record.clone()),
            triggers: self.installed.triggers(),
            expect_generation: before.as_ref().map_or(0, |plugin| plugin.generation),
            exclusive_create: before.is_none(),
        };
        let generation = store.install(set).await?;
        Ok(self.response(generation))
    }
}

/// Sends the chunks that the store has not yet.
async fn send(store: &Store, digest: &[u8; 32], component: &Bytes) -> Result<(), Error> {
    let chunks = component.len().div_ceil(limits::BLOB_CHUNK_BYTES) as u32;
    let mut index = 0;
    while index < chunks {
        let start = index as usize * limits::BLOB_CHUNK_BYTES;
        let end = (start + limits::BLOB_CHUNK_BYTES).min(component.len());
        let chunk = BlobChunk {
            digest: Bytes::copy_from_slice(digest),
            index,
            chunks,
            total_bytes: component.len() as u64,
            data: component.slice(start..end),
        };
        let (received, complete) = store.blob_chunk(chunk).await?;
        if complete {
            return Ok(());
        }
        // The reply names the next chunk to send: an interrupted installation goes on where it was. It must move on, or we stop.
        if received <= index {
            return Err(Error::Internal(format!("chunk {index} of the component was not taken; install it again")));
        }
        index = received;
    }
    Ok(())
}
