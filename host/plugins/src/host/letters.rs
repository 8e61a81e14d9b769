//! Dead letters for their operator: a page of them, one in full, and forgetting them.
//!
//! **Invariant:** an answer fits a gRPC message, however many letters there are and whatever their keys weigh.

use kvasir_api::kvasir::plugin::v1 as api;
use kvasir_api::{Error, limits};
use kvasir_engine::KeyRange;
use kvasir_machine::{DEFAULT_TENANT, DeadLetterRecord, Rev};

use super::PluginHost;
use crate::manifest::short;

/// Bytes of keys and errors in one answer.
const PAGE_BYTES_MAX: usize = 1 << 20;

impl PluginHost {
    /// A page of the events that a plugin could not handle, in order of trigger and history.
    ///
    /// # Errors
    /// [`Error::Missing`] when no plugin has the name; a disk fault.
    pub async fn dead_letters(&self, request: api::DeadLettersRequest) -> Result<api::DeadLettersResponse, Error> {
        self.store().linearize().await?;
        self.record(&request.name)?;
        let at = Rev { main: request.after_main, sub: request.after_sub };
        let after = (!request.after_trigger.is_empty()).then_some((request.after_trigger.as_str(), at));
        let (found, mut more) = self.store().dead_letters(&request.name, after).await?;
        let (mut letters, mut bytes) = (Vec::new(), 0);
        for (trigger, at, record) in found {
            bytes += record.key.len() + record.error.len();
            if bytes > PAGE_BYTES_MAX && !letters.is_empty() {
                more = true;
                break;
            }
            letters.push(letter(trigger, at, record));
        }
        Ok(api::DeadLettersResponse { letters, more })
    }

    /// One parked event, with what history still has of it.
    ///
    /// # Errors
    /// [`Error::Missing`] when there is no such plugin or letter; a disk fault.
    pub async fn dead_letter(&self, request: api::ShowDeadLetterRequest) -> Result<api::ShowDeadLetterResponse, Error> {
        let api::ShowDeadLetterRequest { name, trigger, main, sub } = request;
        self.store().linearize().await?;
        self.record(&name)?;
        let at = Rev { main, sub };
        let found = self.store().dead_letter(&name, &trigger, at).await?;
        let record = found.ok_or_else(|| {
            let trigger = short(&trigger);
            Error::Missing(format!(
                "trigger {trigger} of {name} has no dead letter at {at}; see `kvasir plugin dlq list {name}`"
            ))
        })?;
        // The letter may have the start of the key only.
        let keys = KeyRange::prefix(record.key.clone());
        let history = match self.store().history(at, &keys, DEFAULT_TENANT, 1, limits::REQUEST_BYTES_MAX, false).await {
            Ok(history) => Some(history),
            Err(Error::Compacted) => None,
            Err(error) => return Err(error),
        };
        let event = history.and_then(|history| history.changes.into_iter().next()).filter(|change| change.row.rev == at);
        Ok(api::ShowDeadLetterResponse {
            letter: Some(letter(trigger, at, record)),
            event_found: event.is_some(),
            deleted: event.as_ref().is_some_and(|change| change.row.tombstone),
            key: event.as_ref().map(|change| change.row.key.clone()).unwrap_or_default(),
            value: event.map(|change| change.row.value.clone()).unwrap_or_default(),
        })
    }

    /// Forgets parked events; returns how many.
    ///
    /// # Errors
    /// [`Error::Invalid`] unless the request says either which or all; [`Error::Missing`] when there is no such plugin or trigger;
    /// else why it was not committed.
    pub async fn drop_dead_letters(&self, request: api::DropDeadLettersRequest) -> Result<api::DropDeadLettersResponse, Error> {
        let api::DropDeadLettersRequest { name, trigger, at, all } = request;
        let record = self.find(&name).await?;
        if all != at.is_empty() || !all && trigger.is_empty() {
            return Err(Error::Invalid("say which dead letters to drop: a trigger and revisions, or all of them".to_owned()));
        }
        let triggers = if trigger.is_empty() { record.triggers } else { vec![trigger] };
        let at: Vec<Rev> = at.iter().map(|at| Rev { main: at.main, sub: at.sub }).collect();
        let mut dropped = 0;
        for trigger in triggers {
            dropped += self.store().drop_dead_letters(&name, &trigger, at.clone()).await?;
        }
        Ok(api::DropDeadLettersResponse { dropped })
    }
}

fn letter(trigger: String, at: Rev, record: DeadLetterRecord) -> api::DeadLetter {
    let DeadLetterRecord { key, error, attempts } = record;
    api::DeadLetter { trigger, main: at.main, sub: at.sub, key, error, attempts }
}
