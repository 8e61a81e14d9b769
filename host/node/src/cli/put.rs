//! `kvasir put` and `kvasir del`.
//!
//! **Invariant:** each sends one request.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;

use anyhow::Context;
use kvasir_api::etcdserverpb::{DeleteRangeRequest, PutRequest};
use serde_json::json;

use super::connect::Connection;
use super::keys::Keys;
use super::out::{self, Out};
use super::{Usage, lease_id};

/// `kvasir put`.
#[derive(Debug, clap::Args)]
pub(crate) struct Put {
    /// The key; any bytes
    key: OsString,
    /// The value; without it, standard input is read to its end
    value: Option<OsString>,
    /// Attach the key to this lease (hexadecimal)
    #[arg(long, value_parser = lease_id, value_name = "LEASE")]
    lease: Option<i64>,
    /// Print what the key held before
    #[arg(long)]
    prev_kv: bool,
    /// Keep the key's value and change its lease only
    #[arg(long, conflicts_with = "value")]
    ignore_value: bool,
    /// Keep the key's lease and change its value only
    #[arg(long, conflicts_with = "lease")]
    ignore_lease: bool,
}

impl Put {
    pub(super) async fn run(self, connection: &Connection, out: &mut Out) -> anyhow::Result<()> {
        if self.key.is_empty() {
            return Err(Usage("the key is empty; give at least one byte".to_owned()).into());
        }
        let value = match self.value {
            Some(value) => value.into_vec(),
            None if self.ignore_value => Vec::new(),
            None => standard_input()?,
        };
        let request = PutRequest {
            key: self.key.into_vec().into(),
            value: value.into(),
            lease: self.lease.unwrap_or_default(),
            prev_kv: self.prev_kv,
            ignore_value: self.ignore_value,
            ignore_lease: self.ignore_lease,
        };
        let mut kv = connection.kv().await?;
        let response = connection.answer(kv.put(request)).await?;
        if out.json_wanted() {
            let mut object = json!({ "header": out::header(response.header.as_ref()) });
            if let Some(previous) = &response.prev_kv {
                object["prev_kv"] = out::kv(previous);
            }
            out.json(&object)?;
            return Ok(());
        }
        out.line("OK")?;
        if let Some(previous) = &response.prev_kv {
            out.key_value(previous, false)?;
        }
        Ok(())
    }
}

fn standard_input() -> anyhow::Result<Vec<u8>> {
    let mut value = Vec::new();
    // One byte past the server's own limit is enough for it to refuse the request.
    let limit = kvasir_api::limits::REQUEST_BYTES_MAX as u64 + 1;
    std::io::stdin().lock().take(limit).read_to_end(&mut value).context("cannot read the value from standard input")?;
    Ok(value)
}

/// `kvasir del`.
#[derive(Debug, clap::Args)]
pub(crate) struct Del {
    #[command(flatten)]
    keys: Keys,
    /// Print what was deleted
    #[arg(long)]
    prev_kv: bool,
}

impl Del {
    pub(super) async fn run(self, connection: &Connection, out: &mut Out) -> anyhow::Result<()> {
        let (key, range_end) = self.keys.range();
        let mut kv = connection.kv().await?;
        let request = DeleteRangeRequest { key, range_end, prev_kv: self.prev_kv };
        let response = connection.answer(kv.delete_range(request)).await?;
        if out.json_wanted() {
            let mut object = json!({ "header": out::header(response.header.as_ref()), "deleted": response.deleted });
            if !response.prev_kvs.is_empty() {
                object["prev_kvs"] = response.prev_kvs.iter().map(out::kv).collect();
            }
            out.json(&object)?;
            return Ok(());
        }
        out.line(response.deleted.to_string())?;
        for previous in &response.prev_kvs {
            out.key_value(previous, false)?;
        }
        Ok(())
    }
}
