//! The data folder: what it accepts, what it refuses, and that refusing changes nothing.

use super::*;
use crate::disk::{RealDisk, SimDisk};

fn real() -> Arc<dyn Disk> {
    Arc::new(RealDisk)
}

#[test]
fn a_new_folder_is_made_and_opens_again() {
    let temp = tempfile::tempdir().expect("a folder");
    let path = temp.path().join("a/b");
    for _ in 0..2 {
        let folder = DataFolder::open(real(), &path).expect("the folder opens");
        assert!(folder.log_dir().is_dir() && folder.snapshot_dir().is_dir() && folder.plugins_dir().is_dir());
        assert!(folder.space().expect("the space").free_bytes > 0);
    }
}

#[test]
fn a_folder_in_use_is_refused_with_its_process_id() {
    let temp = tempfile::tempdir().expect("a folder");
    let held = DataFolder::open(real(), temp.path()).expect("the folder opens");
    let error = DataFolder::open(real(), temp.path()).expect_err("in use").to_string();
    assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
    drop(held);
    DataFolder::open(real(), temp.path()).expect("free again");
}

#[test]
fn what_is_not_ours_is_refused_and_left_as_it_was() {
    let temp = tempfile::tempdir().expect("a folder");
    let cases: [(&str, &str, &str); 4] = [
        ("holiday.jpg", "x", "holiday.jpg"),
        ("VERSION", "kvasir data folder, format 9\n", "format version 9 is not supported"),
        ("VERSION", "something else\n", "not a kvasir data folder"),
        ("log", "a file where a folder belongs", "log"),
    ];
    for (at, (name, content, said)) in cases.into_iter().enumerate() {
        let path = temp.path().join(at.to_string());
        std::fs::create_dir(&path).expect("a folder");
        std::fs::write(path.join(name), content).expect("a file");
        let error = DataFolder::open(real(), &path).expect_err("refused").to_string();
        assert!(error.contains(said) && !error.contains('\n'), "{error}");
        assert_eq!(RealDisk.list(&path).expect("a listing"), [name]);
        assert_eq!(std::fs::read_to_string(path.join(name)).expect("the file"), content);
    }
    let file = temp.path().join("file");
    std::fs::write(&file, "x").expect("a file");
    for path in [file.clone(), file.join("below")] {
        let error = DataFolder::open(real(), &path).expect_err("refused");
        assert!(matches!(error, StorageError::NotAFolder { .. }), "{error}");
    }
}

#[test]
fn a_making_cut_short_by_a_power_cut_is_made_good() {
    for seed in 0..100 {
        let disk = SimDisk::new(seed);
        disk.cut_power_after(seed % 20);
        let _ = DataFolder::open(Arc::new(disk.clone()), Path::new("/srv/data"));
        let after = disk.crash(seed);
        DataFolder::open(Arc::new(after), Path::new("/srv/data")).expect("the folder opens");
    }
}

#[test]
fn ballast_is_set_aside_and_given_back() {
    let disk = SimDisk::new(1);
    disk.set_free_bytes(1000);
    let folder = DataFolder::open(Arc::new(disk), Path::new("/d")).expect("the folder opens");
    folder.make_ballast(3 << 20).expect("ballast");
    assert_eq!(folder.space().expect("the space"), Space { free_bytes: 1000, ballast_bytes: 3 << 20 });
    folder.drop_ballast().expect("dropped");
    folder.drop_ballast().expect("nothing to drop");
    assert_eq!(folder.space().expect("the space").ballast_bytes, 0);
}

#[test]
fn folders_made_above_the_data_folder_survive_a_power_cut() {
    for seed in 0..50 {
        let disk = SimDisk::new(seed);
        let path = Path::new("/var/lib/kvasir");
        let folder = DataFolder::open(Arc::new(disk.clone()), path).expect("the folder opens");
        drop(folder);
        let after = Arc::new(disk.crash(seed));
        assert_eq!(after.kind(&path.join("VERSION")).expect("a look"), Some(PathKind::File), "seed {seed}");
    }
}

#[test]
fn names_left_by_a_killed_making_are_made_durable_by_the_next() {
    let path = Path::new("/var/lib/kvasir");
    for operations in 0..20 {
        for seed in 0..8 {
            let disk = SimDisk::new(seed);
            disk.cut_power_after(operations);
            let _ = DataFolder::open(Arc::new(disk.clone()), path);
            let restarted = disk.kill(seed);
            DataFolder::open(Arc::new(restarted.clone()), path).expect("the folder opens");
            let after = restarted.crash(seed);
            let version = after.kind(&path.join("VERSION")).expect("a look");
            assert_eq!(version, Some(PathKind::File), "{operations} operations, seed {seed}");
        }
    }
}

#[test]
fn a_used_folder_without_its_log_is_refused_and_left_as_it_was() {
    let temp = tempfile::tempdir().expect("a folder");
    drop(DataFolder::open(real(), temp.path()).expect("the folder opens"));
    std::fs::remove_dir(temp.path().join("log")).expect("removed");
    let before = RealDisk.list(temp.path()).expect("a listing");
    let error = DataFolder::open(real(), temp.path()).expect_err("refused");
    assert!(matches!(error, StorageError::Missing { .. }), "{error}");
    assert_eq!(RealDisk.list(temp.path()).expect("a listing"), before);
}

#[test]
fn what_is_made_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let temp = tempfile::tempdir().expect("a folder");
    let path = temp.path().join("data");
    let _folder = DataFolder::open(real(), &path).expect("the folder opens");
    let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(&path.join("log"))), (0o700, 0o700));
    assert_eq!((mode(&path.join("VERSION")), mode(&path.join("LOCK"))), (0o600, 0o600));
}

#[test]
fn a_folder_made_with_its_content_is_none_before_all_of_it_is_durable() {
    let path = Path::new("/above/new");
    let (mut whole, mut none) = (0, 0);
    for seed in 0..120 {
        let disk = SimDisk::new(seed);
        disk.cut_power_after(seed % 40);
        let made = DataFolder::make(Arc::new(disk.clone()), path, |folder| {
            let content = folder.state_path();
            let write = || {
                let file = disk.create(&content)?;
                file.write_at(0, b"content")?;
                file.sync_data()?;
                disk.sync_dir(path)
            };
            write().map_err(|source| StorageError::io(&content, "write", source))
        });
        let after = disk.crash(seed);
        match DataFolder::look(&after, path) {
            Ok(true) => {
                let mut content = [0; 7];
                let file = after.open(&path.join("state.redb")).expect("the content");
                file.read_at(0, &mut content).expect("all of it");
                assert_eq!(&content, b"content");
                whole += 1;
            }
            Ok(false) | Err(StorageError::NotOurs { .. }) => {
                assert!(made.is_err(), "seed {seed}: what was said to be made is there");
                none += 1;
            }
            Err(error) => panic!("seed {seed}: {error}"),
        }
    }
    assert!(whole > 5 && none > 5, "{whole} {none}");
}

#[test]
fn a_making_that_fails_leaves_a_folder_that_another_can_be_made_in() {
    let temp = tempfile::tempdir().expect("a folder");
    let path = temp.path().join("new");
    let fill = |folder: &DataFolder| {
        for file in [folder.state_path(), folder.log_dir().join("1.log"), folder.path().join("other")] {
            std::fs::write(&file, "x").expect("a file");
        }
        Err::<(), _>(StorageError::Closed)
    };
    for _ in 0..2 {
        let error = DataFolder::make(real(), &path, fill).expect_err("as the filling");
        assert!(matches!(error, StorageError::Closed), "{error}");
        assert!(!DataFolder::look(&RealDisk, &path).expect("a look"));
    }
    DataFolder::make(real(), &path, |_| Ok::<_, StorageError>(())).expect("a folder");
    assert!(DataFolder::look(&RealDisk, &path).expect("a look"));
    let error = DataFolder::make(real(), &path, fill).expect_err("it is not empty");
    assert!(matches!(error, StorageError::NotEmpty { .. }), "{error}");
    DataFolder::open(real(), &path).expect("nothing was changed");
}
