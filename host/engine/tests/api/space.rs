//! Little room on the disk: NOSPACE is raised in time and lifted by the operator, the ballast goes and comes back.
use std::path::Path;
use std::sync::Arc;

use crate::support::{delete, options, put, put_request, until};
use kvasir_api::Error;
use kvasir_api::etcdserverpb::alarm_request::AlarmAction;
use kvasir_api::etcdserverpb::{AlarmRequest, AlarmType};
use kvasir_api::limits::{BALLAST_BYTES, DISK_FREE_BYTES_AMPLE, DISK_FREE_BYTES_MIN};
use kvasir_engine::{Caller, Engine, EngineOptions};
use kvasir_storage::disk::{Disk, SimDisk};

fn quick(disk: &SimDisk) -> EngineOptions {
    EngineOptions { disk_look_interval_ms: 10, ..options(Path::new("/node"), Arc::new(disk.clone())) }
}

fn ballast_bytes(disk: &SimDisk) -> u64 {
    disk.open(Path::new("/node/BALLAST")).and_then(|file| file.len()).unwrap_or(0)
}

fn is_raised(engine: &Engine) -> bool {
    engine.alarms().contains(&(engine.node_id(), AlarmType::Nospace))
}

async fn lift(engine: &Engine) {
    let action = AlarmAction::Deactivate as i32;
    let request = AlarmRequest { action, member_id: engine.node_id(), alarm: AlarmType::Nospace as i32 };
    engine.alarm(&Caller::client(), request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nospace_is_raised_before_the_disk_is_full_and_the_ballast_follows_the_room() {
    let disk = SimDisk::new(1);
    disk.set_free_bytes(10 * DISK_FREE_BYTES_AMPLE);
    let engine = Engine::start(quick(&disk)).await.unwrap();
    put(&engine, "k", "v").await;
    until("ballast is put aside", || ballast_bytes(&disk) == BALLAST_BYTES).await;
    // Less than ample changes nothing; too little does.
    disk.set_free_bytes(DISK_FREE_BYTES_MIN);
    put(&engine, "k", "v").await;
    assert!(!is_raised(&engine));
    disk.set_free_bytes(DISK_FREE_BYTES_MIN / 2);
    until("NOSPACE is raised", || is_raised(&engine)).await;
    until("the ballast is given back", || ballast_bytes(&disk) == 0).await;
    assert_eq!(engine.put(&Caller::client(), put_request("k", "v")).await, Err(Error::NoSpace));
    delete(&engine, "k").await;
    // Lifted while there is still too little it comes back.
    lift(&engine).await;
    until("NOSPACE is raised again", || is_raised(&engine)).await;
    engine.shutdown().await;
    drop(engine);

    // After a restart on the full disk nothing takes the last room.
    let engine = Engine::start(quick(&disk)).await.unwrap();
    assert!(is_raised(&engine));
    assert_eq!(ballast_bytes(&disk), 0);
    disk.set_free_bytes(DISK_FREE_BYTES_AMPLE);
    until("ballast is put aside again", || ballast_bytes(&disk) == BALLAST_BYTES).await;
    lift(&engine).await;
    put(&engine, "k", "v").await;
    assert!(!is_raised(&engine));
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ballast_from_before_is_given_back_while_the_alarm_stands() {
    let disk = SimDisk::new(1);
    disk.set_free_bytes(10 * DISK_FREE_BYTES_AMPLE);
    let engine = Engine::start(quick(&disk)).await.unwrap();
    until("ballast is put aside", || ballast_bytes(&disk) == BALLAST_BYTES).await;
    // Raised by somebody else than the look at the disk.
    let action = AlarmAction::Activate as i32;
    let request = AlarmRequest { action, member_id: engine.node_id(), alarm: AlarmType::Nospace as i32 };
    engine.alarm(&Caller::client(), request).await.unwrap();
    engine.shutdown().await;
    drop(engine);
    assert_eq!(ballast_bytes(&disk), BALLAST_BYTES);
    disk.set_free_bytes(DISK_FREE_BYTES_MIN / 2);
    let engine = Engine::start(quick(&disk)).await.unwrap();
    until("the ballast is given back", || ballast_bytes(&disk) == 0).await;
    engine.shutdown().await;
}
