//! `kvasir put` and `kvasir del`.
//!
//! **Invariant:** each sends one request.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;

use anyhow::Context;
use kvasir_api::etcdserverpb::{DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse};
use serde_json::{Value, json};

use super::connect::Connection;
use super::keys::Keys;
use super::out::{self, Out};
use super::{Usage, lease_id};

const EMPTY_KEY: &str = "the key is empty; give at least one byte";

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
            return Err(Usage(EMPTY_KEY.to_owned()).into());
        }
        let value = match &self.value {
            Some(value) => value.clone().into_vec(),
            None if self.ignore_value => Vec::new(),
            None => standard_input()?,
        };
        let request = self.request(value);
        let mut kv = connection.kv().await?;
        let response = connection.answer(kv.put(request)).await?;
        if out.json_wanted() {
            out.json(&put_json(&response))?;
        } else {
            print_put(&response, out)?;
        }
        Ok(())
    }

    fn request(self, value: Vec<u8>) -> PutRequest {
        PutRequest {
            key: self.key.into_vec().into(),
            value: value.into(),
            lease: self.lease.unwrap_or_default(),
            prev_kv: self.prev_kv,
            ignore_value: self.ignore_value,
            ignore_lease: self.ignore_lease,
        }
    }

    /// The request of a transaction's line, which has the value on it.
    ///
    /// # Errors
    /// No key, or no value.
    pub(super) fn of_line(mut self) -> Result<PutRequest, String> {
        if self.key.is_empty() {
            return Err(EMPTY_KEY.to_owned());
        }
        let value = match self.value.take() {
            Some(value) => value.into_vec(),
            None if self.ignore_value => Vec::new(),
            None => return Err("the value is missing; give it behind the key".to_owned()),
        };
        Ok(self.request(value))
    }
}

/// A put's outcome as etcdctl prints it.
pub(super) fn print_put(response: &PutResponse, out: &mut Out) -> std::io::Result<()> {
    out.line("OK")?;
    response.prev_kv.iter().try_for_each(|previous| out.key_value(previous, false))
}

/// A put's outcome as etcdctl's JSON has it.
pub(super) fn put_json(response: &PutResponse) -> Value {
    let mut object = json!({ "header": out::header(response.header.as_ref()) });
    if let Some(previous) = &response.prev_kv {
        object["prev_kv"] = out::kv(previous);
    }
    object
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
    pub(super) fn request(self) -> DeleteRangeRequest {
        let (key, range_end) = self.keys.range();
        DeleteRangeRequest { key, range_end, prev_kv: self.prev_kv }
    }

    pub(super) async fn run(self, connection: &Connection, out: &mut Out) -> anyhow::Result<()> {
        let mut kv = connection.kv().await?;
        let response = connection.answer(kv.delete_range(self.request())).await?;
        if out.json_wanted() {
            out.json(&del_json(&response))?;
        } else {
            print_del(&response, out)?;
        }
        Ok(())
    }
}

/// A delete's outcome as etcdctl prints it.
pub(super) fn print_del(response: &DeleteRangeResponse, out: &mut Out) -> std::io::Result<()> {
    out.line(response.deleted.to_string())?;
    response.prev_kvs.iter().try_for_each(|previous| out.key_value(previous, false))
}

/// A delete's outcome as etcdctl's JSON has it.
pub(super) fn del_json(response: &DeleteRangeResponse) -> Value {
    let mut object = json!({ "header": out::header(response.header.as_ref()), "deleted": response.deleted });
    if !response.prev_kvs.is_empty() {
        object["prev_kvs"] = response.prev_kvs.iter().map(out::kv).collect();
    }
    object
}
