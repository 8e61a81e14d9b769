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
    waiters: Mutex<BTreeMap<u64, Waiter>>,
}

#[derive(Debug)]
struct Waiter {
    reply: oneshot::Sender<Result<Reply, Error>>,
    /// The term of the leader it was sent to; `None` until it is sent.
    sent_in: Option<u64>,
    _ticket: Ticket,
}

impl Waiting {
    /// Numbers go on from the time in nanoseconds: above all that an earlier process of this node can have used.
    pub(crate) fn new(now: SystemTime) -> Self {
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { next: AtomicU64::new(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX / 2)), waiters: Mutex::default() }
    }

    /// One more caller, and the number of its command.
    pub(crate) fn enter(&self, ticket: Ticket) -> (u64, oneshot::Receiver<Result<Reply, Error>>) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        self.waiters.lock().insert(number, Waiter { reply, sent_in: None, _ticket: ticket });
        (number, answer)
    }

    /// A command goes to the leader of a term.
    pub(super) fn sent(&self, number: u64, term: u64) {
        if let Some(waiter) = self.waiters.lock().get_mut(&number) {
            waiter.sent_in = Some(term);
        }
    }

    /// Whether somebody waits for a command that is about to be applied.
    pub(crate) fn waits_for(&self, number: u64) -> bool {
        self.waiters.lock().contains_key(&number)
    }

    /// Answers whoever waits for a command.
    pub(crate) fn answer(&self, number: u64, result: Result<Reply, Error>) {
        if let Some(waiter) = self.waiters.lock().remove(&number) {
            // Whoever waited may have given up.
            let _ = waiter.reply.send(result);
        }
    }

    /// The caller's time is over.
    pub(crate) fn forget(&self, number: u64) {
        self.waiters.lock().remove(&number);
    }

    /// A snapshot took the place of entries: whether what was sent is among them is not known.
    pub(crate) fn lost_sight(&self) {
        let mut waiters = self.waiters.lock();
        let (sent, kept) = std::mem::take(&mut *waiters).into_iter().partition(|(_, waiter)| waiter.sent_in.is_some());
        *waiters = kept;
        let sent: BTreeMap<u64, Waiter> = sent;
        for waiter in sent.into_values() {
            let _ = waiter.reply.send(Err(Error::Timeout));
        }
    }

    /// An entry of this term is applied: what was sent in an earlier one and has not been met will never be.
    pub(crate) fn applied_term(&self, term: u64) {
        let mut waiters = self.waiters.lock();
        let dead: Vec<u64> = waiters
            .iter()
            .filter(|(_, waiter)| waiter.sent_in.is_some_and(|sent| sent < term))
            .map(|(number, _)| *number)
            .collect();
        for number in dead {
            if let Some(waiter) = waiters.remove(&number) {
                let _ = waiter.reply.send(Err(Error::NotLeader));
            }
        }
    }
}
