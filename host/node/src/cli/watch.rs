//! `kvasir watch`: changes as they happen, each flushed as it comes.
//!
//! **Invariant:** no event is printed twice or skipped; when the stream ends, the revision to go on from is said.

use anyhow::{anyhow, bail};
use kvasir_api::etcdserverpb::watch_request::RequestUnion;
use kvasir_api::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};
use kvasir_api::mvccpb::Event;
use kvasir_api::mvccpb::event::EventType;
use serde_json::{Value, json};
use tokio_stream::wrappers::ReceiverStream;

use super::connect::{Connection, explain};
use super::keys::Keys;
use super::out::{self, Out};

/// `kvasir watch`.
#[derive(Debug, clap::Args)]
pub(crate) struct Watch {
    #[command(flatten)]
    keys: Keys,
    /// Start at this revision; 0 means from now on
    #[arg(long, default_value_t = 0, value_name = "REVISION")]
    rev: i64,
    /// Print what a key held before the change
    #[arg(long)]
    prev_kv: bool,
    /// Ask for a sign of life every ten minutes without events
    #[arg(long)]
    progress_notify: bool,
}

impl Watch {
    pub(super) async fn run(self, connection: &Connection, out: &mut Out) -> anyhow::Result<()> {
        let (key, range_end) = self.keys.range();
        let create = WatchCreateRequest {
            key,
            range_end,
            start_revision: self.rev,
            progress_notify: self.progress_notify,
            prev_kv: self.prev_kv,
            ..WatchCreateRequest::default()
        };
        let (requests, outbound) = tokio::sync::mpsc::channel(1);
        requests.send(WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }).await?;
        let mut watch = connection.watch().await?;
        let mut responses = connection.answer(watch.watch(ReceiverStream::new(outbound))).await?;
        let mut next_revision = self.rev;
        loop {
            let ended = match responses.message().await {
                Ok(Some(response)) => {
                    print(&response, out)?;
                    out.flush()?;
                    if response.canceled {
                        bail!(cancel_reason(&response));
                    }
                    next_revision = next_revision.max(resume_after(&response, self.rev));
                    continue;
                }
                Ok(None) => "the node ended the watch".to_owned(),
                Err(status) => explain(&anyhow!(status)),
            };
            drop(requests);
            bail!(match next_revision {
                0 => ended,
                revision => format!("{ended}; --rev {revision} goes on from here"),
            });
        }
    }
}

/// The revision to go on from once this response was seen; 0 when it does not say. A watch from now on begins behind the revision
/// that it was created at.
fn resume_after(response: &WatchResponse, start_revision: i64) -> i64 {
    match response.events.last().and_then(|event| event.kv.as_ref()) {
        Some(last) => last.mod_revision + 1,
        None if response.created && start_revision > 0 => 0,
        None => response.header.as_ref().map_or(0, |header| header.revision + 1),
    }
}

fn cancel_reason(response: &WatchResponse) -> String {
    match (response.compact_revision, response.cancel_reason.as_str()) {
        (0, "") => "the watch was canceled".to_owned(),
        (0, reason) => format!("the watch was canceled: {reason}"),
        (revision, _) => {
            format!("the watch was canceled: revisions before {revision} are compacted; start at --rev {revision} or later")
        }
    }
}

fn print(response: &WatchResponse, out: &mut Out) -> std::io::Result<()> {
    if out.json_wanted() {
        if response.created && response.events.is_empty() {
            return Ok(());
        }
        let mut object = json!({
            "Header": out::header(response.header.as_ref()),
            "Events": response.events.iter().map(event).collect::<Vec<_>>(),
            "CompactRevision": response.compact_revision,
            "Canceled": response.canceled,
            "Created": response.created,
        });
        if !response.cancel_reason.is_empty() {
            object["CancelReason"] = json!(response.cancel_reason);
        }
        return out.json(&object);
    }
    if response.events.is_empty() && !response.created && !response.canceled {
        return out.line(format!("progress notify: {}", response.header.as_ref().map_or(0, |header| header.revision)));
    }
    for event in &response.events {
        out.line(match event.r#type() {
            EventType::Put => "PUT",
            EventType::Delete => "DELETE",
        })?;
        if let Some(previous) = &event.prev_kv {
            out.key_value(previous, false)?;
        }
        out.key_value(event.kv.as_ref().unwrap_or(&Default::default()), false)?;
    }
    Ok(())
}

fn event(event: &Event) -> Value {
    let mut object = json!({});
    if event.r#type() == EventType::Delete {
        object["type"] = json!(1);
    }
    if let Some(pair) = &event.kv {
        object["kv"] = out::kv(pair);
    }
    if let Some(previous) = &event.prev_kv {
        object["prev_kv"] = out::kv(previous);
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvasir_api::etcdserverpb::ResponseHeader;
    use kvasir_api::mvccpb::KeyValue;

    #[test]
    fn a_watch_can_go_on_from_where_it_ended_even_before_its_first_event() {
        let header = Some(ResponseHeader { revision: 7, ..ResponseHeader::default() });
        let created = WatchResponse { created: true, header, ..WatchResponse::default() };
        assert_eq!(resume_after(&created, 0), 8);
        // A start was given: nothing was seen of what lies between it and now.
        assert_eq!(resume_after(&created, 3), 0);
        let progress = WatchResponse { header, ..WatchResponse::default() };
        assert_eq!(resume_after(&progress, 3), 8);
        let kv = Some(KeyValue { mod_revision: 5, ..KeyValue::default() });
        let events = vec![Event { kv, ..Event::default() }];
        assert_eq!(resume_after(&WatchResponse { events, ..progress }, 3), 6);
    }
}
