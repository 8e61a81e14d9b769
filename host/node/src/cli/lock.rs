//! `kvasir lock`: the same lock as etcdctl's and clientv3's Mutex, held until interrupted or while a command runs.
//!
//! **Invariant:** the command runs only while the lock's lease is alive; when the lease is lost, the command is told to stop.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus};

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use kvasir_api::etcdserverpb::{LeaseGrantRequest, LeaseRevokeRequest};
use kvasir_api::v3lockpb::{LockRequest, LockResponse, UnlockRequest};
use serde_json::json;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use super::connect::Connection;
use super::lease::{KeepAlive, pause};
use super::out::{self, Out};

/// `kvasir lock`.
#[derive(Debug, clap::Args)]
pub(crate) struct Lock {
    /// The lock's name: each holder's key is NAME/ and its lease
    name: OsString,
    /// Seconds after which the lock is free when this process is gone
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(i64).range(1..), value_name = "SECONDS")]
    ttl: i64,
    /// Run this while the lock is held; it finds the key in KVASIR_LOCK_KEY and ETCD_LOCK_KEY, the revision in ..._REV
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl Lock {
    pub(super) async fn run(self, connection: &Connection, out: &mut Out) -> anyhow::Result<ExitCode> {
        let mut lease = connection.lease().await?;
        let granted = connection.answer(lease.lease_grant(LeaseGrantRequest { ttl: self.ttl, id: 0 })).await?;
        let id = granted.id;
        let outcome = hold(self, id, connection, out).await;
        // Whatever happened, the lease takes the lock's key with it; should this fail, the TTL does.
        let revoked = connection.answer(lease.lease_revoke(LeaseRevokeRequest { id })).await;
        let code = outcome?;
        revoked.context("the lock is released when its lease ends")?;
        Ok(code)
    }
}

async fn hold(lock: Lock, lease: i64, connection: &Connection, out: &mut Out) -> anyhow::Result<ExitCode> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut client = connection.lock().await?;
    let mut keeper = KeepAlive::open(lease, connection).await?;
    let lost = keep(&mut keeper, connection);
    tokio::pin!(lost);
    let request = LockRequest { name: lock.name.into_vec().into(), lease };
    let held = tokio::select! {
        // Waiting for the lock has no bound: whoever holds it may hold it for long.
        held = client.lock(request) => held?.into_inner(),
        error = &mut lost => return Err(error),
        _ = interrupt.recv() => bail!("interrupted while waiting for the lock"),
        _ = terminate.recv() => bail!("terminated while waiting for the lock"),
    };
    if lock.command.is_empty() {
        announce(&held, out)?;
        let ended = tokio::select! {
            error = &mut lost => Err(error),
            _ = interrupt.recv() => Ok(()),
            _ = terminate.recv() => Ok(()),
        };
        release(&mut client, held.key, connection).await?;
        return ended.map(|()| ExitCode::SUCCESS);
    }
    let mut child = spawn(&lock.command, &held)?;
    let status = loop {
        tokio::select! {
            status = child.wait() => break status?,
            error = &mut lost => {
                signal_child(&child, rustix::process::Signal::TERM);
                child.wait().await?;
                return Err(error.context("the lock was lost and the command told to stop"));
            }
            // The terminal has interrupted the command as well; it ends when it likes.
            _ = interrupt.recv() => {}
            _ = terminate.recv() => signal_child(&child, rustix::process::Signal::TERM),
        }
    };
    release(&mut client, held.key, connection).await?;
    Ok(exit_code(status))
}

/// Renews the lease until it cannot; resolves with why.
async fn keep(keeper: &mut KeepAlive, connection: &Connection) -> anyhow::Error {
    loop {
        match keeper.renew(connection).await {
            Ok(response) if response.ttl <= 0 => return anyhow!("the lock's lease has expired"),
            Ok(response) => tokio::time::sleep(pause(response.ttl)).await,
            Err(error) => return error.context("the lock's lease cannot be renewed"),
        }
    }
}

fn announce(held: &LockResponse, out: &mut Out) -> std::io::Result<()> {
    if out.json_wanted() {
        out.json(&json!({ "header": out::header(held.header.as_ref()), "key": out::base64(&held.key) }))?;
    } else {
        out.line(&held.key)?;
    }
    out.flush()
}

async fn release(
    client: &mut kvasir_api::v3lockpb::lock_client::LockClient<tonic::transport::Channel>,
    key: Bytes,
    connection: &Connection,
) -> anyhow::Result<()> {
    connection.answer(client.unlock(UnlockRequest { key })).await.map(|_| ())
}

fn spawn(command: &[OsString], held: &LockResponse) -> anyhow::Result<Child> {
    let (program, arguments) = command.split_first().context("the command is empty")?;
    let revision = held.header.as_ref().map_or(0, |header| header.revision).to_string();
    let key = std::ffi::OsStr::from_bytes(&held.key);
    Command::new(program)
        .args(arguments)
        .envs([("ETCD_LOCK_KEY", key), ("KVASIR_LOCK_KEY", key)])
        .envs([("ETCD_LOCK_REV", &revision), ("KVASIR_LOCK_REV", &revision)])
        .spawn()
        .with_context(|| format!("cannot run {}", program.to_string_lossy()))
}

fn signal_child(child: &Child, signal: rustix::process::Signal) {
    let process = child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
    if let Some(process) = process {
        // It may have ended on its own meanwhile.
        let _ = rustix::process::kill_process(process, signal);
    }
}

/// The command's own exit code; 128 and the signal when it died of one, as shells have it.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_exit_code_is_passed_on() {
        assert_eq!(exit_code(ExitStatus::from_raw(3 << 8)), ExitCode::from(3));
        assert_eq!(exit_code(ExitStatus::from_raw(15)), ExitCode::from(143));
    }
}
