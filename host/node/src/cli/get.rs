//! `kvasir get`.
//!
//! **Invariant:** sends one request.

use clap::ValueEnum;
use kvasir_api::etcdserverpb::range_request::{SortOrder, SortTarget};
use kvasir_api::etcdserverpb::{RangeRequest, RangeResponse};
use serde_json::{Value, json};

use super::connect::Connection;
use super::keys::Keys;
use super::out::{self, Out};

/// Direction of a sort.
#[derive(Debug, Clone, Copy, ValueEnum)]
#[value(rename_all = "UPPER")]
enum Order {
    Ascend,
    Descend,
}

/// What a sort goes by.
#[derive(Debug, Clone, Copy, ValueEnum)]
#[value(rename_all = "UPPER")]
enum SortBy {
    Create,
    Key,
    Modify,
    Value,
    Version,
}

/// Whether a read sees every write that was acknowledged before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Consistency {
    /// Linearizable
    L,
    /// Serializable: what this node has, at once
    S,
}

/// `kvasir get`.
#[derive(Debug, clap::Args)]
pub(crate) struct Get {
    #[command(flatten)]
    keys: Keys,
    /// Read as of this revision; 0 means now
    #[arg(long, default_value_t = 0, value_name = "REVISION")]
    rev: i64,
    /// Most keys to return; 0 means all
    #[arg(long, default_value_t = 0, value_name = "COUNT")]
    limit: i64,
    /// Order of the results
    #[arg(long, value_enum, ignore_case = true)]
    order: Option<Order>,
    /// What the results are sorted by
    #[arg(long, value_enum, ignore_case = true)]
    sort_by: Option<SortBy>,
    /// Leave the values out
    #[arg(long)]
    keys_only: bool,
    /// Print how many keys there are, and no keys
    #[arg(long)]
    count_only: bool,
    /// Print values without their keys
    #[arg(long, conflicts_with_all = ["keys_only", "count_only"])]
    print_value_only: bool,
    /// l: linearizable; s: serializable
    #[arg(long, value_enum, default_value = "l")]
    consistency: Consistency,
    /// Only keys modified at or after this revision
    #[arg(long, default_value_t = 0, value_name = "REVISION")]
    min_mod_rev: i64,
    /// Only keys modified at or before this revision
    #[arg(long, default_value_t = 0, value_name = "REVISION")]
    max_mod_rev: i64,
    /// Only keys created at or after this revision
    #[arg(long, default_value_t = 0, value_name = "REVISION")]
    min_create_rev: i64,
    /// Only keys created at or before this revision
    #[arg(long, default_value_t = 0, value_name = "REVISION")]
    max_create_rev: i64,
}

impl Get {
    pub(super) fn request(self) -> RangeRequest {
        let (key, range_end) = self.keys.range();
        let sort_order = match self.order {
            None => SortOrder::None,
            Some(Order::Ascend) => SortOrder::Ascend,
            Some(Order::Descend) => SortOrder::Descend,
        };
        let sort_target = match self.sort_by {
            None | Some(SortBy::Key) => SortTarget::Key,
            Some(SortBy::Create) => SortTarget::Create,
            Some(SortBy::Modify) => SortTarget::Mod,
            Some(SortBy::Value) => SortTarget::Value,
            Some(SortBy::Version) => SortTarget::Version,
        };
        RangeRequest {
            key,
            range_end,
            limit: self.limit,
            revision: self.rev,
            sort_order: sort_order.into(),
            sort_target: sort_target.into(),
            serializable: self.consistency == Consistency::S,
            keys_only: self.keys_only,
            count_only: self.count_only,
            min_mod_revision: self.min_mod_rev,
            max_mod_revision: self.max_mod_rev,
            min_create_revision: self.min_create_rev,
            max_create_revision: self.max_create_rev,
        }
    }

    pub(super) async fn run(self, connection: &Connection, out: &mut Out) -> anyhow::Result<()> {
        let (value_only, count_only) = (self.print_value_only, self.count_only);
        let mut kv = connection.kv().await?;
        let response = connection.answer(kv.range(self.request())).await?;
        if out.json_wanted() {
            out.json(&json(&response))?;
            return Ok(());
        }
        if count_only {
            out.line(response.count.to_string())?;
        }
        print(&response, value_only, out)?;
        Ok(())
    }
}

/// The keys as etcdctl prints them.
pub(super) fn print(response: &RangeResponse, value_only: bool, out: &mut Out) -> std::io::Result<()> {
    response.kvs.iter().try_for_each(|pair| out.key_value(pair, value_only))
}

/// The response as etcdctl's JSON has it.
pub(super) fn json(response: &RangeResponse) -> Value {
    let mut object = json!({ "header": out::header(response.header.as_ref()) });
    if !response.kvs.is_empty() {
        object["kvs"] = response.kvs.iter().map(out::kv).collect();
    }
    if response.more {
        object["more"] = json!(true);
    }
    if response.count != 0 {
        object["count"] = json!(response.count);
    }
    object
}
