//! Saved snapshots: read back whole or refused, and new clusters founded on them.

use super::*;
use crate::disk::DiskFile;
use crate::snapshot::saved::{self, Sealing};
use kvasir_api::command::{AuthoritySet, TokenCreate};
use kvasir_machine::Founding;
use std::io;

const SAVED: &str = "/d/saved";

/// A saved snapshot with rows of all kinds, and the state it is of.
fn save() -> (Vec<u8>, State) {
    let disk = new_disk(1);
    let Opened { store, mut state, .. } = open(&disk);
    puts(&store, &mut state, 60);
    let set = AuthoritySet { expect_epoch: 0, roots: vec![vec![1; 9].into()], signing: 0 };
    let token = TokenCreate { id: 5, secret_hash: vec![2; 32].into(), ttl_ms: 1_000 };
    for body in [command::Body::AuthoritySet(set), command::Body::TokenCreate(token)] {
        let index = state.applied_index() + 1;
        step(&store, &mut state, index, &Command { body: Some(body), ..blank() });
    }
    assert!(state.authorities().is_some() && state.token(5).is_some());
    let snap = Path::new("/d/snap");
    store.export(snap, 7).expect("an export");
    (sealed(&disk.read_file(snap).expect("the snapshot")), state)
}

fn sealed(snapshot: &[u8]) -> Vec<u8> {
    let mut sealing = Sealing::default();
    snapshot.chunks(100).for_each(|piece| sealing.add(piece));
    [snapshot, &sealing.pad(), &sealing.seal()].concat()
}

fn file(disk: &SimDisk, bytes: &[u8]) -> Arc<dyn DiskFile> {
    disk.write_file(Path::new(SAVED), bytes);
    disk.open(Path::new(SAVED)).expect("it is there")
}

fn read(bytes: &[u8]) -> Result<saved::Saved, StorageError> {
    saved::read(file(&new_disk(1), bytes), Path::new(SAVED))
}

#[test]
fn a_saved_snapshot_reads_back_and_no_changed_byte_does() {
    let (bytes, state) = save();
    assert_eq!(bytes.len() % 512, 32);
    let found = read(&bytes).expect("it is whole");
    assert_eq!(found.state.digest(), state.digest());
    assert_eq!((found.info.cluster_id, found.info.applied.log_id), (7, Some(id(state.applied_index()))));
    assert!((found.info.bytes as usize) <= bytes.len() - 32);
    let checked = saved::check(file(&new_disk(1), &bytes), Path::new(SAVED)).expect("it is whole");
    assert_eq!(checked, found.info);
    for at in (0..bytes.len()).step_by(7) {
        let mut changed = bytes.clone();
        changed[at] ^= 1 << (at % 8);
        assert!(matches!(read(&changed).err(), Some(StorageError::BadSnapshot { .. })), "byte {at}");
        assert!(matches!(read(&bytes[..at]).err(), Some(StorageError::BadSnapshot { .. })), "cut at {at}");
    }
}

#[test]
fn what_is_sealed_rightly_and_is_no_snapshot_of_this_format_is_refused() {
    let (bytes, _) = save();
    let snapshot = read(&bytes).expect("it is whole").info.bytes as usize;
    let refused = |snapshot: Vec<u8>| read(&sealed(&snapshot)).err().expect("refused");
    let mut newer = bytes[..snapshot].to_vec();
    newer[8] = 2;
    let crc = crc32c::crc32c(&newer[..28]);
    newer[28..32].copy_from_slice(&crc.to_le_bytes());
    assert!(matches!(refused(newer), StorageError::OtherVersion { .. }));
    // What a database of etcd is.
    assert!(refused(vec![0; 4096]).to_string().contains("kvasir"));
    let followed = |more: &[u8]| refused([&bytes[..snapshot], more].concat()).to_string();
    assert!(followed(&[1]).contains("follows"));
    assert!(followed(&[0; 512]).contains("follows"), "more zeros than there can be");
    assert!(refused(bytes[..snapshot - 20].to_vec()).to_string().contains("not a usable snapshot"));
}

#[test]
fn a_new_cluster_has_the_rows_and_not_what_let_members_in() {
    for bump in [None, Some(100)] {
        let (bytes, old) = save();
        let disk = new_disk(1);
        let file = file(&disk, &bytes);
        let founding = Founding { bump };
        let applied = Store::found(&disk, path(), &quiet(), file, Path::new(SAVED), founding).expect("a state file");
        // Durable, whatever comes next.
        let disk = disk.crash(1);
        let opened = open(&disk);
        let state = opened.state;
        assert_eq!(opened.applied, applied);
        assert_eq!(
            (state.revision(), state.compact_revision()),
            match bump {
                None => (old.revision(), old.compact_revision()),
                Some(bump) => (old.revision() + bump, old.revision() + bump),
            }
        );
        assert_eq!((state.live_keys_in_all(), state.logical_bytes()), (old.live_keys_in_all(), old.logical_bytes()));
        assert!(state.authorities().is_none() && state.tokens().next().is_none());
        assert!(opened.store.local_get("identity").expect("a read").is_none());
    }
}

#[test]
fn an_export_that_fails_leaves_nothing() {
    let disk = new_disk(1);
    let Opened { store, mut state, .. } = open(&disk);
    puts(&store, &mut state, 20);
    store.checkpoint().expect("a checkpoint");
    let before = disk.list(Path::new("/d")).expect("names");
    let error = store.export(Path::new("/d/no/snap"), 7).expect_err("no such folder");
    assert!(matches!(error, StorageError::Io { ref source, .. } if source.kind() == io::ErrorKind::NotFound), "{error}");
    assert_eq!(disk.list(Path::new("/d")).expect("names"), before);
    store.export(Path::new("/d/snap"), 7).expect("the store goes on");
}
