//! The simulated disk itself: what a test that relies on it may believe.

use super::*;

fn path(name: &str) -> PathBuf {
    Path::new("/d").join(name)
}

fn disk() -> SimDisk {
    let disk = SimDisk::new(1);
    disk.create_dir_all(Path::new("/d")).expect("a folder");
    disk.sync_dir(Path::new("/")).expect("a sync");
    disk
}

#[test]
fn what_was_synced_survives_every_power_cut() {
    for seed in 0..200 {
        let disk = disk();
        let file = disk.create(&path("a")).expect("a file");
        file.write_at(0, &[7; 2000]).expect("a write");
        file.sync_data().expect("a sync");
        disk.sync_dir(Path::new("/d")).expect("a sync");
        file.write_at(2000, &[9; 2000]).expect("a write");
        let bytes = disk.crash(seed).read_file(&path("a")).expect("the file");
        assert_eq!(&bytes[..2000], &[7; 2000]);
        assert!(file.read_at(0, &mut [0]).is_err(), "the old disk is off");
    }
}

#[test]
fn unsynced_writes_are_kept_lost_and_torn_at_sectors() {
    let (mut kept, mut lost, mut torn) = (0, 0, 0);
    for seed in 0..200 {
        let disk = disk();
        let file = disk.create(&path("a")).expect("a file");
        file.write_at(0, &[0; 4096]).expect("a write");
        file.sync_data().expect("a sync");
        disk.sync_dir(Path::new("/d")).expect("a sync");
        file.write_at(100, &[9; 2000]).expect("a write");
        let bytes = disk.image(seed).read_file(&path("a")).expect("the file");
        match bytes[100..2100].iter().filter(|byte| **byte == 9).count() {
            0 => lost += 1,
            2000 => kept += 1,
            _ => torn += 1,
        }
        for sector in bytes.chunks(512) {
            let nines = sector.iter().filter(|byte| **byte == 9).count();
            assert!([0, 412, 512, 2100 - 4 * 512].contains(&nines), "a sector is old or new: {nines}");
        }
    }
    assert!(kept > 10 && lost > 10 && torn > 10, "kept {kept}, lost {lost}, torn {torn}");
}

#[test]
fn a_name_is_durable_only_after_its_folder_is_synced() {
    let (mut old, mut new) = (0, 0);
    for seed in 0..100 {
        let disk = disk();
        disk.write_file(&path("a"), b"old");
        let file = disk.create(&path("a.new")).expect("a file");
        file.write_at(0, b"new").expect("a write");
        file.sync_data().expect("a sync");
        disk.sync_dir(Path::new("/d")).expect("a sync");
        disk.rename(&path("a.new"), &path("a")).expect("a rename");
        match disk.image(seed).read_file(&path("a")).expect("one of the two").as_slice() {
            b"old" => old += 1,
            b"new" => new += 1,
            other => panic!("neither: {other:?}"),
        }
        disk.sync_dir(Path::new("/d")).expect("a sync");
        assert_eq!(disk.image(seed).read_file(&path("a")).expect("the file"), b"new");
    }
    assert!(old > 0 && new > 0);
}

#[test]
fn the_nth_sync_fails_and_a_later_one_brings_nothing_back() {
    let mut lost = 0;
    for seed in 0..50 {
        let disk = SimDisk::new(seed);
        disk.write_file(&path("a"), &[0; 512]);
        let file = disk.open(&path("a")).expect("the file");
        disk.set_faults(FaultPlan { sync_nth: Some((2, Fault::Eio)), ..FaultPlan::default() });
        file.sync_data().expect("the first sync");
        file.write_at(0, &[1; 512]).expect("a write");
        assert!(file.sync_data().is_err());
        disk.set_faults(FaultPlan::default());
        file.sync_data().expect("a sync after the fault");
        lost += u32::from(disk.image(seed).read_file(&path("a")).expect("the file")[0] == 0);
    }
    assert!(lost > 0);
}

#[test]
fn a_lock_has_one_holder_and_ends_with_its_guard() {
    let disk = disk();
    let guard = disk.lock(&path("LOCK"), "1").expect("the lock");
    assert_eq!(disk.lock(&path("LOCK"), "2").expect_err("held").kind(), io::ErrorKind::WouldBlock);
    drop(guard);
    disk.lock(&path("LOCK"), "3").expect("the lock again");
}

#[test]
fn a_killed_process_leaves_what_it_wrote_and_a_power_cut_afterwards_can_still_take_it() {
    let path = Path::new("/file");
    let (mut kept, mut lost) = (false, false);
    for seed in 0..32 {
        let disk = SimDisk::new(seed);
        let file = disk.create(path).expect("a file");
        disk.sync_dir(Path::new("/")).expect("a name");
        file.write_at(0, b"synced").expect("a write");
        file.sync_data().expect("a sync");
        file.write_at(0, b"newest").expect("a write");
        let next = disk.kill(seed);
        assert!(file.sync_data().is_err(), "the killed process does nothing more");
        assert_eq!(next.read_file(path).expect("the file"), b"newest");
        match next.crash(seed).read_file(path).expect("the file").as_slice() {
            b"newest" => kept = true,
            b"synced" => lost = true,
            other => panic!("{other:?}"),
        }
    }
    assert!(kept && lost);
}

#[test]
fn a_failed_change_of_a_name_changes_nothing() {
    let disk = disk();
    disk.write_file(&path("a"), b"x");
    let file = disk.open(&path("a")).expect("the file");
    disk.set_faults(FaultPlan { name_nth: Some((1, Fault::Enospc)), ..FaultPlan::default() });
    assert!(
        disk.create(&path("b")).is_err() && disk.rename(&path("a"), &path("c")).is_err() && disk.remove(&path("a")).is_err()
    );
    assert!(disk.create_dir_all(&path("d")).is_err() && disk.sync_dir(Path::new("/d")).is_err() && file.set_len(9).is_err());
    assert_eq!(disk.list(Path::new("/d")).expect("a listing"), ["a"]);
    assert_eq!(disk.read_file(&path("a")).expect("the file"), b"x");
}
