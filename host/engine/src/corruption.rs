//! Comparing what the members hold: the leader has each hash its keys at one revision, and whoever differs from most is told on.
//!
//! Every member hashes in its own time, in slices, and is asked again until it is done: a large store is not hashed within one
//! request. What a member holds is compared with all members' number, not with that of those that answered.
//!
//! **Invariant:** CORRUPT is raised for hashes of one revision only, by the leader of the term in which they were compared.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use kvasir_api::Error;
use kvasir_api::command::Alarm;
use kvasir_api::command::command::Body;
use kvasir_api::etcdserverpb::AlarmType;
use kvasir_api::kvasir::peer::member_answer::Answer;
use kvasir_api::kvasir::peer::member_ask::Ask;
use kvasir_api::kvasir::peer::{HashAsk, MemberAnswer, MemberAsk};
use kvasir_api::limits::{CORRUPT_CHECK_PAUSE_MS, CORRUPT_CHECK_TIMEOUT_MS};
use prost::Message;
use tokio::task::AbortHandle;

use crate::engine::Engine;

/// A member's hash of one revision.
#[derive(Debug, Default)]
pub(crate) struct Hashed {
    revision: u64,
    /// `None` while it is being made.
    hash: Option<Result<u32, Error>>,
    /// What makes it: one at a time.
    making: Option<AbortHandle>,
}

/// What a comparison says.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Whoever answered holds the same.
    Same,
    /// These hold something else than most members do.
    Differ(Vec<u64>),
    /// They differ, and none of what they hold is held by most members.
    Unclear,
}

fn judge(hashes: &BTreeMap<u64, u32>, members: usize) -> Verdict {
    let mut holders = BTreeMap::<u32, usize>::new();
    for hash in hashes.values() {
        *holders.entry(*hash).or_insert(0) += 1;
    }
    match holders.iter().max_by_key(|(_, count)| **count) {
        _ if holders.len() <= 1 => Verdict::Same,
        Some((most, count)) if *count > members / 2 => {
            Verdict::Differ(hashes.iter().filter(|(_, hash)| *hash != most).map(|(member, _)| *member).collect())
        }
        _ => Verdict::Unclear,
    }
}

impl Engine {
    /// What this member's keys of all tenants hash to at a revision; `None` while it is not known yet: to be asked again.
    ///
    /// # Errors
    /// `Compacted`, and what reading can fail with.
    pub fn member_hash(&self, revision: u64) -> Option<Result<u32, Error>> {
        let mut hashed = self.inner().hashed.lock();
        if hashed.revision == revision && revision > 0 {
            // A failure is told once, and tried again if somebody asks again.
            return match hashed.hash.take()? {
                Ok(hash) => {
                    hashed.hash = Some(Ok(hash));
                    Some(Ok(hash))
                }
                Err(error) => {
                    hashed.revision = 0;
                    Some(Err(error))
                }
            };
        }
        if self.revision() >= revision && revision > 0 {
            if let Some(superseded) = hashed.making.take() {
                superseded.abort();
            }
            let engine = self.clone();
            let making = self.inner().tasks.spawn(async move {
                let tenants: Vec<u64> = engine.consensus().state().read().tenants().collect();
                let Some(hash) = engine.unless_stopped(engine.hash_at(tenants, revision)).await else { return };
                let mut hashed = engine.inner().hashed.lock();
                // It may have been asked for another one meanwhile.
                if hashed.revision == revision {
                    hashed.hash = Some(hash);
                }
            });
            *hashed = Hashed { revision, hash: None, making: Some(making.abort_handle()) };
        }
        None
    }

    /// Compares all members, as the leader of a term; raises CORRUPT for those that differ.
    ///
    /// # Errors
    /// When the revision was compacted meanwhile, or this node leads no more.
    pub(crate) async fn compare_members(&self, term: u64) -> Result<(), Error> {
        self.linearize().await?;
        let revision = self.revision();
        let members: Vec<u64> = self.members().into_iter().map(|info| info.id).collect();
        let mut hashes = BTreeMap::new();
        let deadline = tokio::time::Instant::now() + Duration::from_millis(CORRUPT_CHECK_TIMEOUT_MS);
        while hashes.len() < members.len() && tokio::time::Instant::now() < deadline {
            for member in members.iter().filter(|member| !hashes.contains_key(*member)).copied().collect::<Vec<_>>() {
                let hash = if member == self.node_id() {
                    self.member_hash(revision).transpose()?
                } else {
                    self.ask_hash(member, revision).await
                };
                if let Some(hash) = hash {
                    hashes.insert(member, hash);
                }
            }
            if hashes.len() < members.len() {
                tokio::time::sleep(Duration::from_millis(CORRUPT_CHECK_PAUSE_MS)).await;
            }
        }
        let silent = members.len() - hashes.len();
        if silent > 0 {
            tracing::warn!(revision, "{silent} of {} members did not say what they hold", members.len());
        }
        let corrupt = match judge(&hashes, members.len()) {
            Verdict::Same => {
                tracing::info!(revision, "{} members hold the same keys", hashes.len());
                return Ok(());
            }
            Verdict::Differ(members) => members,
            // etcd's way to say that nobody knows who it is.
            Verdict::Unclear => vec![0],
        };
        for member_id in corrupt {
            if self.alarms().contains(&(member_id, AlarmType::Corrupt)) {
                continue;
            }
            tracing::error!(
                revision,
                ?hashes,
                "member {member_id:016x} holds other keys than most members: raising CORRUPT, writes are refused; remove that member, \
                 lift the alarm with `etcdctl alarm disarm`, and let it join again with an empty folder"
            );
            let alarm = Alarm { activate: true, member_id, alarm: AlarmType::Corrupt as i32 };
            self.propose_in_term(term, Body::Alarm(alarm)).await?;
        }
        Ok(())
    }

    async fn ask_hash(&self, member: u64, revision: u64) -> Option<u32> {
        let ask = MemberAsk { ask: Some(Ask::Hash(HashAsk { revision })) };
        let answer = self.ask(member, Bytes::from(ask.encode_to_vec())).await.ok()?;
        match MemberAnswer::decode(answer).ok()?.answer? {
            Answer::Hash(hashed) => Some(hashed.hash),
            _ => None,
        }
    }
}

/// The task that has the leader compare the members now and then.
pub(crate) async fn compare(engine: Engine) {
    let Some(interval) = engine.inner().options.corrupt_check_interval else { return };
    loop {
        tokio::select! {
            () = engine.inner().stop.cancelled() => return,
            () = tokio::time::sleep(interval) => {}
        }
        let Some(term) = engine.leading_term() else { continue };
        if let Some(Err(error)) = engine.unless_stopped(engine.compare_members(term)).await {
            tracing::warn!(%error, "the members were not compared");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_differs_from_most_members_is_told_on_and_nobody_without_a_majority() {
        let of = |hashes: &[(u64, u32)]| hashes.iter().copied().collect::<BTreeMap<_, _>>();
        assert_eq!(judge(&of(&[]), 3), Verdict::Same);
        assert_eq!(judge(&of(&[(1, 7), (2, 7), (3, 7)]), 3), Verdict::Same);
        assert_eq!(judge(&of(&[(1, 7), (2, 8), (3, 7)]), 3), Verdict::Differ(vec![2]));
        assert_eq!(judge(&of(&[(1, 7), (2, 8), (3, 9)]), 3), Verdict::Unclear);
        assert_eq!(judge(&of(&[(1, 7), (2, 8)]), 3), Verdict::Unclear);
        assert_eq!(judge(&of(&[(1, 7), (2, 8), (3, 7), (4, 8)]), 4), Verdict::Unclear);
        assert_eq!(judge(&of(&[(1, 7), (2, 8), (3, 7), (4, 9), (5, 7)]), 5), Verdict::Differ(vec![2, 4]));
    }
}
