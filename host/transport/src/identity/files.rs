//! The files a node keeps its identity in.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::{Authority, Credentials, IdentityError, NodeKey};

const HAS_DATA: &str = "has-data";

/// Files here are small; one that is not is none of ours.
const FILE_BYTES_MAX: u64 = 256 * 1024;

/// `identity/` in the data folder: `node.key`, `node.crt`, `ca.crt` (the authorities trusted, the one that signs first), on a
/// voter `ca.key` (their keys), and `has-data` once the node has run with its data.
///
/// Files are replaced whole. Keys have mode 0600; one that others may read is refused, not mended: it may have been read. A key
/// is stored before the certificate that it belongs to, so that a change cut short leaves a key too many and never one too few.
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
        Credentials::new(self.node_key(&key)?, certificate, roots).map(Some)
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

    /// The node's key alone, from before it had a certificate, or a new one, which is stored.
    ///
    /// # Errors
    /// As [`Folder::credentials`].
    pub fn key(&self) -> Result<NodeKey, IdentityError> {
        if let Some(pem) = self.secret("node.key")? {
            return self.node_key(&pem);
        }
        let key = NodeKey::generate()?;
        self.write("node.key", &key.pem(), 0o600)?;
        Ok(key)
    }

    fn node_key(&self, pem: &str) -> Result<NodeKey, IdentityError> {
        NodeKey::from_pem(pem).map_err(|error| IdentityError::invalid(self.show("node.key"), error))
    }

    /// The authorities among those trusted whose keys are here.
    ///
    /// # Errors
    /// As [`Folder::credentials`].
    pub fn authorities(&self) -> Result<Vec<Authority>, IdentityError> {
        let Some(keys) = self.secret("ca.key")? else { return Ok(Vec::new()) };
        let roots = self.certificates("ca.crt")?.unwrap_or_default();
        let blocks = pem::parse_many(&keys).map_err(|error| IdentityError::invalid(self.show("ca.key"), error))?;
        if blocks.is_empty() {
            return Err(IdentityError::invalid(self.show("ca.key"), "there is no key in it"));
        }
        let mut authorities = Vec::new();
        for block in &blocks {
            let key = pem::encode(block);
            NodeKey::from_pem(&key).map_err(|_| IdentityError::invalid(self.show("ca.key"), "it is not a private key"))?;
            // One whose certificate is not trusted, or not any more, is of a change that was cut short.
            authorities.extend(roots.iter().find_map(|root| Authority::load(root.clone(), &key).ok()));
        }
        Ok(authorities)
    }

    /// Stores an authority, to be trusted and to sign.
    ///
    /// # Errors
    /// `Io`.
    pub fn store_authority(&self, authority: &Authority) -> Result<(), IdentityError> {
        self.store_authorities([authority])?;
        self.write("ca.crt", &pem(std::slice::from_ref(authority.certificate())), 0o644)
    }

    /// Stores the authorities' keys.
    ///
    /// # Errors
    /// `Io`.
    pub fn store_authorities<'a>(&self, authorities: impl IntoIterator<Item = &'a Authority>) -> Result<(), IdentityError> {
        self.write("ca.key", &authorities.into_iter().map(Authority::key_pem).collect::<String>(), 0o600)
    }

    /// Notes that the node with this identity has data: it may have voted, and answered for what it stored.
    ///
    /// # Errors
    /// `Io`.
    pub fn note_data(&self) -> Result<(), IdentityError> {
        if self.has_data()? {
            return Ok(());
        }
        self.write(
            HAS_DATA,
            "This node has run with its data. Without that data it must not come back under this identity.\n",
            0o644,
        )
    }

    /// Whether [`Folder::note_data`] was called for this identity, ever.
    ///
    /// # Errors
    /// `Io`.
    pub fn has_data(&self) -> Result<bool, IdentityError> {
        // That it is there says it; what is in it is for people.
        match fs::metadata(self.path.join(HAS_DATA)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            found => self.io(HAS_DATA, found).map(|_| true),
        }
    }

    fn certificates(&self, file: &str) -> Result<Option<Vec<CertificateDer<'static>>>, IdentityError> {
        let Some(text) = self.read(file)? else { return Ok(None) };
        parse_certificates(&text, &self.show(file)).map(Some)
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

/// The operator's own certificates, in files that others look after and may replace at any time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperatorFiles {
    /// The node's certificate, and after it those between it and an authority.
    pub certificate: PathBuf,
    /// Its key, PKCS #8.
    pub key: PathBuf,
    /// The authorities to trust.
    pub trusted: PathBuf,
}

impl OperatorFiles {
    /// Reads them.
    ///
    /// # Errors
    /// `Io`, `Invalid`.
    pub fn read(&self) -> Result<Credentials, IdentityError> {
        let text = |path: &Path| {
            let shown = path.display().to_string();
            let length = fs::metadata(path).map_err(|error| IdentityError::Io { path: shown.clone(), error })?.len();
            if length > FILE_BYTES_MAX {
                return Err(IdentityError::invalid(shown, format!("it has {length} bytes")));
            }
            fs::read_to_string(path).map_err(|error| IdentityError::Io { path: shown, error })
        };
        let certificates = |path: &Path| parse_certificates(&text(path)?, &path.display().to_string());
        let key = NodeKey::from_pem(&text(&self.key)?).map_err(|_| {
            let remedy = "it is no private key in PEM as PKCS #8; `openssl pkcs8 -topk8 -nocrypt -in KEY` makes one of another";
            IdentityError::invalid(self.key.display().to_string(), remedy)
        })?;
        Credentials::with_chain(key, certificates(&self.certificate)?, certificates(&self.trusted)?)
            .map_err(|error| IdentityError::invalid(self.certificate.display().to_string(), error))
    }

    /// When each was last changed and how long it is, as far as can be told: what changes when they are replaced.
    pub fn marks(&self) -> [Option<(std::time::SystemTime, u64)>; 3] {
        [&self.certificate, &self.key, &self.trusted].map(|path| {
            let metadata = fs::metadata(path).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        })
    }
}

fn parse_certificates(text: &str, shown: &str) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    let all = all.map_err(|error| IdentityError::invalid(shown, error))?;
    if all.is_empty() {
        return Err(IdentityError::invalid(shown, "there is no certificate in it"));
    }
    Ok(all)
}

fn pem(certificates: &[CertificateDer<'_>]) -> String {
    let blocks: Vec<_> = certificates.iter().map(|certificate| pem::Pem::new("CERTIFICATE", certificate.as_ref())).collect();
    pem::encode_many(&blocks)
}
