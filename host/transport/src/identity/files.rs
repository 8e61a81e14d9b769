//! The files a node keeps its identity in.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::{Authority, Credentials, IdentityError, NodeKey};

/// Files here are small; one that is not is none of ours.
const FILE_BYTES_MAX: u64 = 256 * 1024;

/// `tls/` in the data folder: `node.crt`, `node.key`, `ca.crt`, and on a voter `ca.key`.
///
/// Files are replaced whole. Keys have mode 0600; one that others may read is refused, not mended: it may have been read.
#[derive(Debug, Clone)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// The folder at `path`; it is made when something is stored.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The node's credentials, if it has any.
    ///
    /// # Errors
    /// `Io`, `Invalid`, or `Exposed` for a key that others may read.
    pub fn credentials(&self) -> Result<Option<Credentials>, IdentityError> {
        let Some(key) = self.secret("node.key")? else { return Ok(None) };
        let Some(certificate) = self.certificates("node.crt")?.and_then(|all| all.into_iter().next()) else { return Ok(None) };
        let roots = self.certificates("ca.crt")?.unwrap_or_default();
        Credentials::new(NodeKey::from_pem(&key)?, certificate, roots).map(Some)
    }

    /// Stores the node's credentials. The certificate goes last: without it a start asks for a new one.
    ///
    /// # Errors
    /// `Io`.
    pub fn store(&self, credentials: &Credentials) -> Result<(), IdentityError> {
        self.write("ca.crt", &pem(credentials.roots()), 0o644)?;
        self.write("node.key", &credentials.key().pem(), 0o600)?;
        self.write("node.crt", &pem(std::slice::from_ref(credentials.certificate())), 0o644)
    }

    /// The cluster's authority, if its key is here.
    ///
    /// # Errors
    /// As [`Folder::credentials`].
    pub fn authority(&self) -> Result<Option<Authority>, IdentityError> {
        let Some(key) = self.secret("ca.key")? else { return Ok(None) };
        let Some(certificate) = self.certificates("ca.crt")?.and_then(|all| all.into_iter().next()) else {
            return Err(IdentityError::invalid(self.show("ca.crt"), "it is missing beside ca.key"));
        };
        Authority::load(certificate, &key).map(Some)
    }

    /// Stores the authority.
    ///
    /// # Errors
    /// `Io`.
    pub fn store_authority(&self, authority: &Authority) -> Result<(), IdentityError> {
        self.write("ca.crt", &pem(std::slice::from_ref(authority.certificate())), 0o644)?;
        self.write("ca.key", &authority.key_pem(), 0o600)
    }

    fn certificates(&self, file: &str) -> Result<Option<Vec<CertificateDer<'static>>>, IdentityError> {
        let Some(text) = self.read(file)? else { return Ok(None) };
        let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
        let all = all.map_err(|error| IdentityError::invalid(self.show(file), error))?;
        if all.is_empty() {
            return Err(IdentityError::invalid(self.show(file), "there is no certificate in it"));
        }
        Ok(Some(all))
    }

    fn secret(&self, file: &str) -> Result<Option<String>, IdentityError> {
        let text = self.read(file)?;
        if text.is_some() {
            let mode = self.io(file, fs::metadata(self.path.join(file)))?.permissions().mode() & 0o777;
            if mode & 0o077 != 0 {
                return Err(IdentityError::Exposed { path: self.show(file), mode });
            }
        }
        Ok(text)
    }

    fn read(&self, file: &str) -> Result<Option<String>, IdentityError> {
        let path = self.path.join(file);
        match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            found => {
                let length = self.io(file, found)?.len();
                if length > FILE_BYTES_MAX {
                    return Err(IdentityError::invalid(self.show(file), format!("it has {length} bytes")));
                }
            }
        }
        self.io(file, fs::read_to_string(&path)).map(Some)
    }

    fn write(&self, file: &str, text: &str, mode: u32) -> Result<(), IdentityError> {
        let written = || -> io::Result<()> {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.path)?;
            let (path, fresh) = (self.path.join(file), self.path.join(format!("{file}.new")));
            match fs::remove_file(&fresh) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut out = OpenOptions::new().write(true).create_new(true).mode(mode).open(&fresh)?;
            out.write_all(text.as_bytes())?;
            out.sync_all()?;
            fs::rename(&fresh, &path)?;
            File::open(&self.path)?.sync_all()
        };
        self.io(file, written())
    }

    fn show(&self, file: &str) -> String {
        self.path.join(file).display().to_string()
    }

    fn io<T>(&self, file: &str, result: io::Result<T>) -> Result<T, IdentityError> {
        result.map_err(|error| IdentityError::Io { path: self.show(file), error })
    }
}

fn pem(certificates: &[CertificateDer<'_>]) -> String {
    let blocks: Vec<_> = certificates.iter().map(|certificate| pem::Pem::new("CERTIFICATE", certificate.as_ref())).collect();
    pem::encode_many(&blocks)
}
