//! `kvasir snapshot`: saves a running node's state to a file, looks at such a file, makes a node of it.
//!
//! **Invariant:** a file with the name that was asked for is whole, verified and durable; nothing that is there is replaced.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use kvasir_api::etcdserverpb::SnapshotRequest;
use kvasir_storage::disk::{Disk, DiskFile, RealDisk};
use kvasir_storage::folder::DataFolder;
use kvasir_storage::snapshot::{FORMAT_VERSION, SnapshotInfo, saved};
use kvasir_transport::identity::{CERTIFICATE_LIFE, Folder, IdentityError, NodeName};
use serde_json::json;

use super::connect::Connection;
use super::maintain::size;
use super::out::{self, Out};
use super::status::hex;
use crate::config::{parse, peers};
use crate::identity::boot;

/// How long the node may take to make its state durable and copy it.
const BEGIN_WITHIN: Duration = Duration::from_secs(600);
/// How long it may send nothing after that.
const PIECE_WITHIN: Duration = Duration::from_secs(60);

/// `kvasir snapshot`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Snapshot {
    /// Saves what a running node has to a file
    Save(Saved),
    /// Verifies a saved snapshot and prints what it holds; needs no node
    Status(Saved),
    /// Makes the data folder of a new cluster's first member of a saved snapshot; needs no node
    Restore(Restore),
}

/// A saved snapshot.
#[derive(Debug, clap::Args)]
pub(crate) struct Saved {
    /// The snapshot's file
    file: PathBuf,
}

/// `kvasir snapshot restore`.
#[derive(Debug, clap::Args)]
pub(crate) struct Restore {
    #[command(flatten)]
    from: Saved,
    /// The data folder to make: a new or an empty one
    #[arg(long, value_parser = parse::path, value_name = "FOLDER")]
    data_dir: PathBuf,
    /// The name of the new cluster's first member; give `serve` the same
    #[arg(long, default_value = "default", value_parser = parse::name, value_name = "NAME")]
    name: String,
    /// The new cluster's token, which makes its ID
    #[arg(long, default_value = peers::CLUSTER_TOKEN, value_parser = parse::name, value_name = "NAME")]
    initial_cluster_token: String,
    /// Goes on so many revisions higher, so that no client has seen a later one
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..), requires = "mark_compacted", value_name = "N")]
    bump_revision: Option<u64>,
    /// Compacts everything before that revision, so that watchers of the old cluster start anew
    #[arg(long, requires = "bump_revision")]
    mark_compacted: bool,
}

impl Snapshot {
    pub(super) async fn run(self, connection: &Connection, out: &mut Out) -> anyhow::Result<()> {
        match self {
            Snapshot::Save(Saved { file }) => save(&file, connection, out).await,
            Snapshot::Status(Saved { file }) => status(&file, out),
            Snapshot::Restore(restore) => restore.run(out),
        }
    }
}

async fn save(file: &Path, connection: &Connection, out: &mut Out) -> anyhow::Result<()> {
    is_free(file)?;
    let mut name = file.as_os_str().to_owned();
    // Of this process alone: another may be saving to the same name.
    name.push(format!(".{}.part", std::process::id()));
    let part = PathBuf::from(name);
    let saved = async {
        receive(&part, connection).await?;
        let info = saved::check(open(&part)?, &part)?;
        // Between here and the first look it may have come to be.
        is_free(file)?;
        let named = fs::rename(&part, file).and_then(|()| File::open(parent(file))?.sync_all());
        named.with_context(|| format!("{}: cannot be given its name", file.display()))?;
        anyhow::Ok(info)
    };
    let info = saved.await.inspect_err(|_| {
        // Where it was never made there is nothing to remove.
        let _ = fs::remove_file(&part);
    })?;
    let index = info.applied.log_id.map_or(0, |id| id.index);
    if out.json_wanted() {
        out.json(&json!({ "file": file, "totalSize": info.bytes, "clusterID": info.cluster_id, "appliedIndex": index }))?;
    } else {
        let bytes = size(i64::try_from(info.bytes).unwrap_or(i64::MAX));
        out.line(format!("{}: {bytes} of cluster {:x}, entry {index}", file.display(), info.cluster_id))?;
    }
    Ok(())
}

/// Writes what the node sends, durably.
async fn receive(part: &Path, connection: &Connection) -> anyhow::Result<()> {
    let late = |within: Duration| anyhow!("no piece of the snapshot came from the node within {within:?}; save it again");
    let mut maintenance = connection.maintenance().await?;
    let begun = tokio::time::timeout(BEGIN_WITHIN, maintenance.snapshot(SnapshotRequest {})).await;
    let mut pieces = begun.map_err(|_| late(BEGIN_WITHIN))??.into_inner();
    let failed = |error: io::Error| anyhow!("{}: cannot be written: {error}", part.display());
    let mut to = OpenOptions::new().write(true).create_new(true).mode(0o600).open(part).map_err(failed)?;
    while let Some(piece) = tokio::time::timeout(PIECE_WITHIN, pieces.message()).await.map_err(|_| late(PIECE_WITHIN))?? {
        to.write_all(&piece.blob).map_err(failed)?;
    }
    to.sync_all().map_err(failed)
}

fn status(file: &Path, out: &mut Out) -> anyhow::Result<()> {
    let saved::Saved { info, state, hash } = saved::read(open(file)?, file)?;
    let SnapshotInfo { applied, cluster_id, bytes, .. } = info;
    let (index, term) = applied.log_id.map_or((0, 0), |id| (id.index, id.term));
    if out.json_wanted() {
        out.json(&json!({
            "hash": hex(&hash),
            "revision": state.revision(),
            "compactRevision": state.compact_revision(),
            "totalKey": state.live_keys_in_all(),
            "totalSize": bytes,
            "logicalSize": state.logical_bytes(),
            "leases": state.lease_count(),
            "clusterID": cluster_id,
            "appliedIndex": index,
            "appliedTerm": term,
            "version": FORMAT_VERSION.to_string(),
        }))?;
        return Ok(());
    }
    let shown = |bytes: u64| size(i64::try_from(bytes).unwrap_or(i64::MAX));
    let cluster = if cluster_id == 0 { "not known".to_owned() } else { format!("{cluster_id:x}") };
    let rows = [
        ("cluster", cluster),
        ("revision", state.revision().to_string()),
        ("compacted at", state.compact_revision().to_string()),
        ("applied", format!("entry {index} of term {term}")),
        ("keys", state.live_keys_in_all().to_string()),
        ("leases", state.lease_count().to_string()),
        ("logical size", shown(state.logical_bytes())),
        ("snapshot size", shown(bytes)),
        ("format version", FORMAT_VERSION.to_string()),
        ("sha256, verified", hex(&hash)),
    ];
    for line in out::table(&rows.map(|(what, value)| vec![what.to_owned(), value])) {
        out.line(line)?;
    }
    Ok(())
}

impl Restore {
    fn run(self, out: &mut Out) -> anyhow::Result<()> {
        let file = &self.from.file;
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let (name, token) = (self.name.as_str(), self.initial_cluster_token.as_str());
        let identity = |cluster, node| identify(&self.data_dir, NodeName { cluster, node }).map_err(|error| error.to_string());
        let restored = kvasir_consensus::restore(
            &disk,
            (&open(file)?, file),
            &self.data_dir,
            (name, token),
            self.bump_revision,
            identity,
        )?;
        let (cluster, node, revision) = (restored.cluster_id, restored.node_id, restored.revision);
        let same = cluster == restored.of_cluster;
        if out.json_wanted() {
            out.json(&json!({ "clusterID": cluster, "memberID": node, "revision": revision, "sameClusterID": same }))?;
            return Ok(());
        }
        let folder = self.data_dir.display();
        out.line(format!("{folder}: member {name} ({node:x}) of the new cluster {cluster:x}, at revision {revision}"))?;
        if same {
            out.line("its ID is that of the cluster the snapshot is of: give another --initial-cluster-token if that one may run again")?;
        }
        out.line(format!("start it with: kvasir serve --data-dir {folder} --name {name}"))?;
        Ok(())
    }
}

/// Makes the authority of a new cluster and its first member's credentials, in the data folder.
fn identify(data_dir: &Path, name: NodeName) -> Result<(), IdentityError> {
    let (credentials, authority) = boot::found(name, CERTIFICATE_LIFE)?;
    let folder = Folder::new(DataFolder::identity_dir(data_dir));
    folder.store_authorities([&authority])?;
    folder.store(&credentials)?;
    folder.note_data()
}

fn open(file: &Path) -> anyhow::Result<Arc<dyn DiskFile>> {
    RealDisk.open_to_read(file).map_err(|error| anyhow!("{}: cannot be read: {error}", file.display()))
}

fn is_free(file: &Path) -> anyhow::Result<()> {
    match fs::symlink_metadata(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(_) => bail!("{} is there already; give another name, or remove it", file.display()),
        Err(error) => bail!("{}: {error}; give the name of a new file", file.display()),
    }
}

fn parent(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
