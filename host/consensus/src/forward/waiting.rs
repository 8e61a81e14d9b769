//! Who waits for which of this node's commands.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use kvasir_api::Error;
use kvasir_machine::Reply;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::gauge::Ticket;

/// The callers whose commands are on their way.
#[derive(Debug)]
pub(crate) struct Waiting {
    next: AtomicU64,
    callers: Mutex<Callers>,
}

#[derive(Debug, Default)]
struct Callers {
    waiters: BTreeMap<u64, Waiter>,
    /// The term of the last entry applied here.
    applied_term: u64,
}

#[derive(Debug)]
struct Waiter {
    reply: oneshot::Sender<Result<Reply, Error>>,
    /// The term of the leader it was sent to; `None` until it is sent.
    sent_in: Option<u64>,
    _ticket: Ticket,
}

/// A caller that waits. Dropped, also by one who goes away, it is waited for no more: what it took is given back.
#[derive(Debug)]
pub(crate) struct Wait<'a> {
    waiting: &'a Waiting,
    /// Its command's.
    pub(crate) number: u64,
    answer: oneshot::Receiver<Result<Reply, Error>>,
}

impl Wait<'_> {
    /// What became of the command.
    ///
    /// # Errors
    /// As a proposal; `Stopped`.
    pub(crate) async fn answer(&mut self) -> Result<Reply, Error> {
        (&mut self.answer).await.unwrap_or(Err(Error::Stopped))
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.waiting.callers.lock().waiters.remove(&self.number);
    }
}

impl Waiting {
    /// Numbers go on from the time in nanoseconds: above all that an earlier process of this node can have used.
    pub(crate) fn new(now: SystemTime) -> Self {
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { next: AtomicU64::new(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX / 2)), callers: Mutex::default() }
    }

    /// One more caller.
    pub(crate) fn enter(&self, ticket: Ticket) -> Wait<'_> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        self.callers.lock().waiters.insert(number, Waiter { reply, sent_in: None, _ticket: ticket });
        Wait { waiting: self, number, answer }
    }

    /// A command goes to the leader of a term; `false` when that term is over here, or nobody waits any more: it need not go.
    pub(super) fn sent(&self, number: u64, term: u64) -> bool {
        let mut callers = self.callers.lock();
        if term < callers.applied_term {
            if let Some(waiter) = callers.waiters.remove(&number) {
                let _ = waiter.reply.send(Err(Error::NotLeader));
            }
            return false;
        }
        match callers.waiters.get_mut(&number) {
            Some(waiter) => {
                waiter.sent_in = Some(term);
                true
            }
            None => false,
        }
    }

    /// Whether somebody waits for a command that is about to be applied.
    pub(crate) fn waits_for(&self, number: u64) -> bool {
        self.callers.lock().waiters.contains_key(&number)
    }

    /// Answers whoever waits for a command.
    pub(crate) fn answer(&self, number: u64, result: Result<Reply, Error>) {
        let waiter = self.callers.lock().waiters.remove(&number);
        if let Some(waiter) = waiter {
            // Whoever waited may have given up.
            let _ = waiter.reply.send(result);
        }
    }

    /// A snapshot took the place of entries: whether what was sent is among them is not known.
    pub(crate) fn lost_sight(&self) {
        let mut callers = self.callers.lock();
        let waiters = std::mem::take(&mut callers.waiters);
        let (sent, kept) = waiters.into_iter().partition(|(_, waiter)| waiter.sent_in.is_some());
        callers.waiters = kept;
        let sent: BTreeMap<u64, Waiter> = sent;
        for waiter in sent.into_values() {
            let _ = waiter.reply.send(Err(Error::Timeout));
        }
    }

    /// An entry of this term is applied: what was sent in an earlier one and has not been met will never be.
    pub(crate) fn applied_term(&self, term: u64) {
        let mut callers = self.callers.lock();
        if std::mem::replace(&mut callers.applied_term, term) == term {
            return;
        }
        let dead: Vec<u64> = callers
            .waiters
            .iter()
            .filter(|(_, waiter)| waiter.sent_in.is_some_and(|sent| sent < term))
            .map(|(number, _)| *number)
            .collect();
        for number in dead {
            if let Some(waiter) = callers.waiters.remove(&number) {
                let _ = waiter.reply.send(Err(Error::NotLeader));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gauge::Gauge;

    #[test]
    fn what_an_older_term_was_sent_is_dead_once_a_later_one_is_applied_and_nothing_else_is() {
        let (gauge, waiting) = (Gauge::new(10, 1_000), Waiting::new(UNIX_EPOCH));
        let enter = || waiting.enter(gauge.enter(1).expect("room"));
        let (mut old, mut new, mut unsent) = (enter(), enter(), enter());
        assert!(waiting.sent(old.number, 1) && waiting.sent(new.number, 2));
        waiting.applied_term(1);
        assert!(old.answer.try_recv().is_err(), "its term is not over");
        waiting.applied_term(2);
        assert_eq!(old.answer.try_recv(), Ok(Err(Error::NotLeader)));
        assert!(new.answer.try_recv().is_err() && unsent.answer.try_recv().is_err());
        // A stream of an older term that is still open takes nothing more.
        assert!(!waiting.sent(unsent.number, 1));
        assert_eq!(unsent.answer.try_recv(), Ok(Err(Error::NotLeader)));
        // A snapshot hides what became of what was sent.
        waiting.lost_sight();
        assert_eq!(new.answer.try_recv(), Ok(Err(Error::Timeout)));
        assert_eq!(gauge.pending(), 0);
    }

    #[test]
    fn whoever_goes_away_leaves_nothing_behind() {
        let (gauge, waiting) = (Gauge::new(10, 1_000), Waiting::new(UNIX_EPOCH));
        let gone = waiting.enter(gauge.enter(1).expect("room"));
        let number = gone.number;
        assert!(waiting.sent(number, 1) && waiting.waits_for(number));
        drop(gone);
        assert!(!waiting.waits_for(number) && !waiting.sent(number, 1));
        assert_eq!(gauge.pending(), 0);
    }
}
