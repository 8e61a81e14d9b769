//! `kvasir cert`: the cluster's own authority, and certificates for those who look after them by themselves.
//!
//! **Invariant:** a file that is there is never replaced, and a key is readable by its owner alone.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use kvasir_api::kvasir::cluster::v1::RotateAuthorityRequest;
use kvasir_consensus::{cluster_id, node_id};
use kvasir_transport::identity::{Authority, Credentials, Folder, NodeKey, NodeName};
use serde_json::json;

use super::connect::Connection;
use super::out::Out;
use super::status::hex;

/// `kvasir cert`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Cert {
    /// Replaces the certificate authority of a cluster that has its own, while it serves; `kvasir status` shows how far it is
    RotateAuthority,
    /// Prints the names that a member's certificate must carry
    Name(Named),
    /// Makes an authority for certificates of your own: ca.crt and ca.key
    CreateAuthority(To),
    /// Makes a member's key and certificate with it: node.key, node.crt and ca.crt
    Create(Create),
}

/// Which member.
#[derive(Debug, clap::Args)]
pub(crate) struct Named {
    /// The member's name, as in --initial-cluster
    #[arg(long, default_value = "default", value_name = "NAME")]
    name: String,
    /// The cluster's token, as in --initial-cluster-token
    #[arg(long, default_value = crate::config::peers::CLUSTER_TOKEN, value_name = "NAME")]
    initial_cluster_token: String,
    /// The member's ID, for one that `member add` has added
    #[arg(long, value_parser = super::hexadecimal, value_name = "ID")]
    id: Option<u64>,
    /// The cluster's ID, if it was not made from --initial-cluster-token
    #[arg(long, value_parser = super::hexadecimal, value_name = "ID")]
    cluster_id: Option<u64>,
}

/// Where to.
#[derive(Debug, clap::Args)]
pub(crate) struct To {
    /// The folder to write to
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
}

/// `kvasir cert create`.
#[derive(Debug, clap::Args)]
pub(crate) struct Create {
    /// The folder of `cert create-authority`
    #[arg(long, value_name = "FOLDER")]
    authority: PathBuf,
    #[command(flatten)]
    to: To,
    #[command(flatten)]
    member: Named,
    /// How long it is good for; nobody renews it for you
    #[arg(long, default_value = "8760h", value_parser = super::duration, value_name = "DURATION")]
    life: Duration,
}

impl Named {
    fn name(&self) -> NodeName {
        NodeName {
            cluster: self.cluster_id.unwrap_or_else(|| cluster_id(&self.initial_cluster_token)),
            node: self.id.unwrap_or_else(|| node_id(&self.initial_cluster_token, &self.name)),
        }
    }
}

impl Cert {
    pub(super) async fn run(self, connection: &Connection, out: &mut Out) -> anyhow::Result<()> {
        match self {
            Cert::RotateAuthority => {
                let mut nodes = connection.nodes().await?;
                let answer = connection.answer(nodes.rotate_authority(RotateAuthorityRequest {})).await?;
                let print = hex(&answer.fingerprint);
                if out.json_wanted() {
                    out.json(&json!({ "fingerprint": print }))?;
                } else {
                    out.line(format!(
                        "authority {print} takes over once every member trusts it; `kvasir status` shows how far it is"
                    ))?;
                }
            }
            Cert::Name(member) => {
                let name = member.name();
                if out.json_wanted() {
                    out.json(&json!({ "uri": name.uri(), "dns": name.dns() }))?;
                } else {
                    out.line(format!("URI:{}", name.uri()))?;
                    out.line(format!("DNS:{}", name.dns()))?;
                }
            }
            Cert::CreateAuthority(To { out: to }) => {
                is_free(&to, &["ca.crt", "ca.key"])?;
                let authority = Authority::create(0, SystemTime::now())?;
                Folder::new(&to).store_authority(&authority)?;
                out.line(format!(
                    "{} is to be trusted by every member; {} signs, keep it safe",
                    to.join("ca.crt").display(),
                    to.join("ca.key").display()
                ))?;
            }
            Cert::Create(create) => create.run(out)?,
        }
        Ok(())
    }
}

impl Create {
    fn run(self, out: &mut Out) -> anyhow::Result<()> {
        let to = &self.to.out;
        is_free(to, &["node.crt", "node.key", "ca.crt"])?;
        let shown = self.authority.display();
        let authority = Folder::new(&self.authority).authorities()?.into_iter().next();
        let authority = authority
            .with_context(|| format!("{shown} has no ca.crt with its ca.key; make them with `kvasir cert create-authority`"))?;
        let (now, key) = (SystemTime::now(), NodeKey::generate()?);
        let certificate = authority.sign(&key.request()?, self.member.name(), now, self.life)?;
        let credentials = Credentials::new(key, certificate, vec![authority.certificate().clone()])?;
        Folder::new(to).store(&credentials)?;
        let [crt, key, ca] = ["node.crt", "node.key", "ca.crt"].map(|file| to.join(file).display().to_string());
        out.line(format!("--peer-cert-file {crt} --peer-key-file {key} --peer-trusted-ca-file {ca}"))?;
        Ok(())
    }
}

fn is_free(folder: &Path, files: &[&str]) -> anyhow::Result<()> {
    match files.iter().map(|file| folder.join(file)).find(|path| path.exists()) {
        Some(path) => bail!("{} is there already; give another --out", path.display()),
        None => Ok(()),
    }
}
