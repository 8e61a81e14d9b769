//! Who held a lock at each write that was made under it, judged from the history alone.
//!
//! A lock's queue are the live keys below its name; its holder is the one that was created first. A fenced write names the key it was
//! made under and that key's create revision.

use std::collections::BTreeMap;

use bytes::Bytes;
use kvasir_api::mvccpb::event::EventType;

use super::{FENCED, LOCKS};
use crate::history::{Timeline, Violation};

const PROMISE: &str = "who writes under a lock holds it";

/// What was judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fenced {
    /// Writes under a lock.
    pub writes: usize,
    /// How often the holder of a lock was another than at the write before.
    pub handovers: usize,
}

/// Checks every write under a lock.
///
/// # Errors
/// A write by somebody who did not hold the lock.
pub fn fenced(timeline: &Timeline) -> Result<Fenced, Violation> {
    let mut queue = BTreeMap::<Bytes, i64>::new();
    let mut last = BTreeMap::<Bytes, i64>::new();
    let mut judged = Fenced::default();
    for (revision, events) in timeline.revisions() {
        for event in events {
            let Some(kv) = &event.kv else { continue };
            if kv.key.starts_with(FENCED.as_bytes()) && event.r#type() == EventType::Put {
                let created = judge(revision, &kv.key, &kv.value, &queue)?;
                judged.writes += 1;
                let before = last.insert(kv.key.clone(), created);
                judged.handovers += usize::from(before.is_some_and(|before| before != created));
                if let Some(before) = before.filter(|before| *before > created) {
                    let how = format!("revision {revision}: written under {created} after one under {before}");
                    return Err(Violation { promise: PROMISE, how });
                }
            }
        }
        // A lock taken in the same revision would not have been held before it.
        for event in events {
            let Some(kv) = event.kv.as_ref().filter(|kv| kv.key.starts_with(LOCKS.as_bytes())) else { continue };
            if event.r#type() == EventType::Put {
                queue.insert(kv.key.clone(), kv.create_revision);
            } else {
                queue.remove(&kv.key);
            }
        }
    }
    Ok(judged)
}

/// Judges one write; answers with the create revision it was fenced by.
fn judge(revision: i64, key: &[u8], value: &[u8], queue: &BTreeMap<Bytes, i64>) -> Result<i64, Violation> {
    let broken = |how: String| Violation { promise: PROMISE, how: format!("revision {revision}: {how}") };
    let text = String::from_utf8_lossy(value);
    let mut words = text.split(' ');
    let (Some(under), Some(created)) = (words.next(), words.next().and_then(|word| word.parse::<i64>().ok())) else {
        return Err(broken(format!("{text:?} does not say who wrote it")));
    };
    let name = String::from_utf8_lossy(&key[FENCED.len()..]);
    let prefix = format!("{LOCKS}{name}/");
    let holder = queue.iter().filter(|(key, _)| key.starts_with(prefix.as_bytes())).min_by_key(|(_, created)| **created);
    match holder {
        Some((key, first)) if key == under.as_bytes() && *first == created => Ok(created),
        holder => Err(broken(format!("written under {under} of {created}, and {holder:?} holds the lock"))),
    }
}

#[cfg(test)]
mod tests {
    use kvasir_api::mvccpb::{Event, KeyValue};

    use super::*;

    fn put(at: i64, key: &str, value: &str) -> Event {
        let kv = KeyValue {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Bytes::copy_from_slice(value.as_bytes()),
            create_revision: at,
            mod_revision: at,
            version: 1,
            lease: 0,
        };
        Event { r#type: EventType::Put.into(), kv: Some(kv), prev_kv: None }
    }

    fn again(at: i64, created: i64, version: i64, key: &str, value: &str) -> Event {
        let mut event = put(at, key, value);
        let kv = event.kv.as_mut().unwrap();
        (kv.create_revision, kv.version) = (created, version);
        event
    }

    fn delete(at: i64, key: &str) -> Event {
        let kv = KeyValue { key: Bytes::copy_from_slice(key.as_bytes()), mod_revision: at, ..KeyValue::default() };
        Event { r#type: EventType::Delete.into(), kv: Some(kv), prev_kv: None }
    }

    #[test]
    fn writes_by_holders_in_turn_are_right() {
        let events = [
            put(2, "/lock/a/1", ""),
            put(3, "/lock/a/0", ""),
            put(4, "/fenced/a", "/lock/a/1 2 x"),
            delete(5, "/lock/a/1"),
            again(6, 4, 2, "/fenced/a", "/lock/a/0 3 y"),
        ];
        let timeline = Timeline::new(events, None).unwrap();
        assert_eq!(fenced(&timeline), Ok(Fenced { writes: 2, handovers: 1 }));
    }

    #[test]
    fn a_write_by_one_who_waits_or_has_let_go_is_found() {
        let waits = [put(2, "/lock/a/1", ""), put(3, "/lock/a/0", ""), put(4, "/fenced/a", "/lock/a/0 3 x")];
        assert!(fenced(&Timeline::new(waits, None).unwrap()).is_err());
        let gone = [put(2, "/lock/a/1", ""), delete(3, "/lock/a/1"), put(4, "/fenced/a", "/lock/a/1 2 x")];
        assert!(fenced(&Timeline::new(gone, None).unwrap()).is_err());
        let other_name = [put(2, "/lock/b/1", ""), put(3, "/fenced/a", "/lock/b/1 2 x")];
        assert!(fenced(&Timeline::new(other_name, None).unwrap()).is_err());
    }
}
