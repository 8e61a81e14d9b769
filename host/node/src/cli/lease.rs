//! `kvasir lease`.
//!
//! **Invariant:** lease IDs are printed and taken in hexadecimal, as etcdctl does.

use std::time::Duration;

use anyhow::bail;
use kvasir_api::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest, LeaseRevokeRequest,
    LeaseTimeToLiveRequest,
};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::connect::Connection;
use super::lease_id;
use super::out::{self, Out};

/// `kvasir lease`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Lease {
    /// Grants a lease
    Grant {
        /// Seconds that the lease lives without being kept alive
        #[arg(value_name = "TTL")]
        ttl_s: i64,
    },
    /// Ends a lease and deletes its keys
    Revoke {
        /// The lease, in hexadecimal
        #[arg(value_parser = lease_id, value_name = "LEASE")]
        id: i64,
    },
    /// Prints how long a lease will live
    Timetolive {
        /// The lease, in hexadecimal
        #[arg(value_parser = lease_id, value_name = "LEASE")]
        id: i64,
        /// Print the keys attached to it
        #[arg(long)]
        keys: bool,
    },
    /// Keeps a lease alive until interrupted
    KeepAlive {
        /// The lease, in hexadecimal
        #[arg(value_parser = lease_id, value_name = "LEASE")]
        id: i64,
        /// Renew it once
        #[arg(long)]
        once: bool,
    },
    /// Prints every lease
    List,
}

impl Lease {
    pub(super) async fn run(self, connection: &Connection, out: &mut Out) -> anyhow::Result<()> {
        match self {
            Lease::Grant { ttl_s } => grant(ttl_s, connection, out).await,
            Lease::Revoke { id } => revoke(id, connection, out).await,
            Lease::Timetolive { id, keys } => time_to_live(id, keys, connection, out).await,
            Lease::KeepAlive { id, once } => keep_alive(id, once, connection, out).await,
            Lease::List => list(connection, out).await,
        }
    }
}

async fn grant(ttl_s: i64, connection: &Connection, out: &mut Out) -> anyhow::Result<()> {
    let mut lease = connection.lease().await?;
    let response = connection.answer(lease.lease_grant(LeaseGrantRequest { ttl: ttl_s, id: 0 })).await?;
    if out.json_wanted() {
        out.json(&json!({ "header": out::header(response.header.as_ref()), "ID": response.id, "TTL": response.ttl }))?;
    } else {
        out.line(format!("lease {:016x} granted with TTL({}s)", response.id, response.ttl))?;
    }
    Ok(())
}

async fn revoke(id: i64, connection: &Connection, out: &mut Out) -> anyhow::Result<()> {
    let mut lease = connection.lease().await?;
    let response = connection.answer(lease.lease_revoke(LeaseRevokeRequest { id })).await?;
    if out.json_wanted() {
        out.json(&json!({ "header": out::header(response.header.as_ref()) }))?;
    } else {
        out.line(format!("lease {id:016x} revoked"))?;
    }
    Ok(())
}

async fn time_to_live(id: i64, keys: bool, connection: &Connection, out: &mut Out) -> anyhow::Result<()> {
    let mut lease = connection.lease().await?;
    let response = connection.answer(lease.lease_time_to_live(LeaseTimeToLiveRequest { id, keys })).await?;
    if out.json_wanted() {
        out.json(&json!({
            "cluster_id": response.header.as_ref().map_or(0, |header| header.cluster_id),
            "member_id": response.header.as_ref().map_or(0, |header| header.member_id),
            "revision": response.header.as_ref().map_or(0, |header| header.revision),
            "raft_term": response.header.as_ref().map_or(0, |header| header.raft_term),
            "id": response.id,
            "ttl": response.ttl,
            "granted-ttl": response.granted_ttl,
            "keys": response.keys.iter().map(|key| out::base64(key)).collect::<Vec<_>>(),
        }))?;
        return Ok(());
    }
    if response.ttl < 0 {
        out.line(format!("lease {id:016x} already expired"))?;
        return Ok(());
    }
    let mut line = format!("lease {id:016x} granted with TTL({}s), remaining({}s)", response.granted_ttl, response.ttl);
    if keys {
        let keys: Vec<_> = response.keys.iter().map(|key| String::from_utf8_lossy(key)).collect();
        line.push_str(&format!(", attached keys([{}])", keys.join(" ")));
    }
    out.line(line)?;
    Ok(())
}

async fn list(connection: &Connection, out: &mut Out) -> anyhow::Result<()> {
    let mut lease = connection.lease().await?;
    let response = connection.answer(lease.lease_leases(LeaseLeasesRequest {})).await?;
    if out.json_wanted() {
        let leases: Vec<_> = response.leases.iter().map(|lease| json!({ "id": lease.id })).collect();
        out.json(&json!({ "header": out::header(response.header.as_ref()), "leases": leases }))?;
        return Ok(());
    }
    out.line(format!("found {} leases", response.leases.len()))?;
    for lease in &response.leases {
        out.line(format!("{:016x}", lease.id))?;
    }
    Ok(())
}

async fn keep_alive(id: i64, once: bool, connection: &Connection, out: &mut Out) -> anyhow::Result<()> {
    let mut stream = KeepAlive::open(id, connection).await?;
    loop {
        let response = stream.renew(connection).await?;
        if response.ttl <= 0 {
            out.line(format!("lease {id:016x} expired or revoked."))?;
            out.flush()?;
            bail!("lease {id:016x} expired or revoked");
        }
        if out.json_wanted() {
            out.json(&json!({ "header": out::header(response.header.as_ref()), "ID": response.id, "TTL": response.ttl }))?;
        } else {
            out.line(format!("lease {id:016x} keepalived with TTL({})", response.ttl))?;
        }
        out.flush()?;
        if once {
            return Ok(());
        }
        tokio::time::sleep(pause(response.ttl)).await;
    }
}

/// How long to wait before the next renewal of a lease with so many seconds: a third of it, as clientv3 does.
pub(super) fn pause(ttl_s: i64) -> Duration {
    Duration::from_millis(u64::try_from(ttl_s).unwrap_or(0).saturating_mul(1_000) / 3).max(Duration::from_millis(300))
}

/// A stream that renews one lease.
pub(super) struct KeepAlive {
    id: i64,
    /// The first request is sent with the stream, since a server may wait for it before it answers at all.
    asked: bool,
    requests: mpsc::Sender<LeaseKeepAliveRequest>,
    responses: Streaming<LeaseKeepAliveResponse>,
}

impl KeepAlive {
    pub(super) async fn open(id: i64, connection: &Connection) -> anyhow::Result<KeepAlive> {
        let mut lease = connection.lease().await?;
        let (requests, outbound) = mpsc::channel(1);
        requests.send(LeaseKeepAliveRequest { id }).await?;
        let responses = connection.answer(lease.lease_keep_alive(ReceiverStream::new(outbound))).await?;
        Ok(KeepAlive { id, asked: true, requests, responses })
    }

    /// Renews the lease once; a TTL of 0 in the answer means that it has ended.
    pub(super) async fn renew(&mut self, connection: &Connection) -> anyhow::Result<LeaseKeepAliveResponse> {
        let asked = std::mem::take(&mut self.asked);
        let (requests, responses, id) = (&self.requests, &mut self.responses, self.id);
        connection
            .answer(async {
                let closed = || tonic::Status::unavailable("the node ended the keep-alive stream");
                if !asked {
                    requests.send(LeaseKeepAliveRequest { id }).await.map_err(|_| closed())?;
                }
                responses.message().await?.map(tonic::Response::new).ok_or_else(closed)
            })
            .await
    }
}
