//! `types`: the contract's shapes to and from the host's.

use bytes::Bytes;
use kvasir_api::Error;
use kvasir_engine::KeyRange;
use kvasir_machine::Change;

use crate::bindings::kvasir::plugin::types as wit;
use crate::manifest::short;
use crate::run::Run;
use crate::store::Entry;

impl wit::Host for Run {}

/// Largest key a guest can name.
const KEY_BYTES_MAX: usize = 64 << 10;

/// A guest's key.
pub(crate) fn key(bytes: Vec<u8>) -> Result<Bytes, wit::Error> {
    match bytes.len() {
        0 => Err(wit::Error::Invalid("the key is empty".to_owned())),
        n if n > KEY_BYTES_MAX => {
            Err(wit::Error::Invalid(format!("the key has {n} bytes; at most {KEY_BYTES_MAX} are allowed")))
        }
        _ => Ok(Bytes::from(bytes)),
    }
}

/// A guest's selection of keys.
pub(crate) fn range(selection: wit::Selection) -> Result<KeyRange, wit::Error> {
    match selection {
        wit::Selection::Key(bytes) => Ok(KeyRange::single(key(bytes)?)),
        wit::Selection::Prefix(prefix) if prefix.is_empty() => Ok(KeyRange::prefix(Bytes::new())),
        wit::Selection::Prefix(prefix) => Ok(KeyRange::prefix(key(prefix)?)),
        wit::Selection::Span((from, to)) => {
            let (from, to) = (key(from)?, key(to)?);
            if from >= to {
                return Err(wit::Error::Invalid("the span is empty: its end is not after its start".to_owned()));
            }
            if to.as_ref() == [0] {
                return Err(wit::Error::Invalid("the span ends before every key".to_owned()));
            }
            Ok(KeyRange::new(from, to))
        }
    }
}

/// A key's text for a message.
pub(crate) fn words(keys: &KeyRange) -> String {
    let text = |bytes: &Bytes| short(&String::from_utf8_lossy(bytes));
    if keys.is_single() {
        text(&keys.key)
    } else if keys.is_open() {
        format!("every key from {} on", text(&keys.key))
    } else {
        format!("the keys from {} up to {}", text(&keys.key), text(&keys.range_end))
    }
}

/// An engine's refusal in the contract's terms. `about` says what was asked for.
pub(crate) fn refusal(error: &Error, about: &str, compacted: u64) -> wit::Error {
    match error {
        Error::PermissionDenied => wit::Error::Denied(format!("no grant covers {about}")),
        Error::Compacted => wit::Error::Compacted(compacted),
        Error::LeaseNotFound | Error::Missing(_) | Error::KeyNotFound => wit::Error::NotFound(error.to_string()),
        Error::RequestTooLarge | Error::Exhausted(_) => wit::Error::Limit(error.to_string()),
        Error::Invalid(_) | Error::EmptyKey | Error::LeaseTtlTooLarge | Error::FutureRevision => {
            wit::Error::Invalid(error.to_string())
        }
        _ => wit::Error::Unavailable(error.to_string()),
    }
}

/// Whether the node or a competitor, and not the guest, is what kept a call from succeeding. `Compacted` is not here: which
/// revision a cursor starts from is the guest's choice.
pub(crate) fn is_trouble(error: &wit::Error) -> bool {
    matches!(error, wit::Error::Unavailable(_) | wit::Error::Conflict(_))
}

pub(crate) fn entry(entry: Entry) -> wit::Entry {
    wit::Entry {
        key: entry.key.into(),
        value: entry.value.into(),
        create_revision: entry.create_revision,
        mod_revision: entry.mod_revision,
        version: entry.version,
        lease: (entry.lease != 0).then_some(entry.lease as u64),
    }
}

/// A change as the contract has it.
pub(crate) fn event(change: &Change) -> wit::Event {
    let row = &change.row;
    let kind = if row.tombstone {
        wit::Change::Delete(wit::Tombstone { key: row.key.to_vec(), mod_revision: row.rev.main })
    } else {
        wit::Change::Put(entry(Entry::of(row)))
    };
    let previous = change.prev.as_ref().map(|row| entry(Entry::of(row)));
    wit::Event { change: kind, sub: row.rev.sub, previous }
}
