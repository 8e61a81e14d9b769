//! Who waits for locks on this node: how many callers in all, and for each key which calls share it.
//!
//! Calls with the same lease wait with the same key. It is the last of them that gives the key up, and only a key that one of them
//! made and none of them was told it holds: whoever holds the lock, by an earlier call or another client's, keeps it.
//!
//! **Invariant:** a key is not queued up for while it is being given up.

use std::collections::HashMap;

use bytes::Bytes;
use kvasir_api::Error;
use tokio_util::sync::CancellationToken;

/// A tenant's key.
pub(super) type Slot = (u64, Bytes);

/// Every lock's line.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    waiting: usize,
    by_key: HashMap<Slot, Line>,
}

#[derive(Debug, Default)]
struct Line {
    calls: usize,
    /// The store's revision when the first of them came.
    before: i64,
    /// Calls that do not know whether their put of the key landed.
    unanswered: usize,
    /// The key's create revision, when one of the calls made it.
    created: Option<i64>,
    /// The create revision with which a call returned.
    held: Option<i64>,
    /// The last call left, and the key is being given up until this fires.
    leaving: Option<CancellationToken>,
}

/// What came of standing in line.
pub(super) enum Entered {
    Yes,
    /// Try again once this fires.
    Leaving(CancellationToken),
}

/// Which key may be deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GiveUp {
    CreatedAt(i64),
    CreatedAfter(i64),
}

impl Lines {
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// # Errors
    /// `TooManyRequests`.
    pub(super) fn room(&self, waiting_max: usize) -> Result<(), Error> {
        if self.waiting >= waiting_max { Err(Error::TooManyRequests) } else { Ok(()) }
    }

    /// Another call for the key; `before` is the store's revision now.
    ///
    /// # Errors
    /// `TooManyRequests`.
    pub(super) fn enter(&mut self, slot: &Slot, before: i64, waiting_max: usize) -> Result<Entered, Error> {
        self.room(waiting_max)?;
        let line = self.by_key.entry(slot.clone()).or_default();
        if let Some(leaving) = &line.leaving {
            return Ok(Entered::Leaving(leaving.clone()));
        }
        if line.calls == 0 {
            line.before = before;
        }
        line.calls += 1;
        line.unanswered += 1;
        self.waiting += 1;
        Ok(Entered::Yes)
    }

    /// A call's put of the key was answered: it made the key at a revision, or it did not make it.
    pub(super) fn answered(&mut self, slot: &Slot, made: Option<i64>) {
        if let Some(line) = self.by_key.get_mut(slot) {
            line.unanswered -= 1;
            line.created = made.or(line.created);
        }
    }

    /// A call returns with the key of this create revision.
    pub(super) fn held(&mut self, slot: &Slot, created: i64) {
        if let Some(line) = self.by_key.get_mut(slot) {
            line.held = line.held.max(Some(created));
        }
    }

    /// A call leaves; what is to be given up if it was the last one and something is. The line is then closed until
    /// [`Lines::gone`].
    pub(super) fn leave(&mut self, slot: &Slot) -> Option<GiveUp> {
        self.waiting -= 1;
        let line = self.by_key.get_mut(slot)?;
        line.calls -= 1;
        if line.calls > 0 {
            return None;
        }
        let kept = line.before.max(line.held.unwrap_or(0));
        let given_up = match line.created {
            _ if line.unanswered > 0 => Some(GiveUp::CreatedAfter(kept)),
            Some(created) if created > kept => Some(GiveUp::CreatedAt(created)),
            _ => None,
        };
        if given_up.is_some() {
            line.leaving = Some(CancellationToken::new());
        } else {
            self.by_key.remove(slot);
        }
        given_up
    }

    /// The key was given up.
    pub(super) fn gone(&mut self, slot: &Slot) {
        if let Some(leaving) = self.by_key.remove(slot).and_then(|line| line.leaving) {
            leaving.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 4;

    fn slot() -> Slot {
        (0, Bytes::from_static(b"l/1"))
    }

    fn enter(lines: &mut Lines, before: i64) {
        assert!(matches!(lines.enter(&slot(), before, MAX), Ok(Entered::Yes)));
    }

    #[test]
    fn the_last_to_leave_gives_up_what_the_line_made_and_nobody_holds() {
        let mut lines = Lines::default();
        enter(&mut lines, 5);
        lines.answered(&slot(), Some(6));
        enter(&mut lines, 6);
        lines.answered(&slot(), None);
        assert_eq!(lines.leave(&slot()), None);
        assert_eq!(lines.leave(&slot()), Some(GiveUp::CreatedAt(6)));
        assert!(matches!(lines.enter(&slot(), 7, MAX), Ok(Entered::Leaving(_))), "it is being given up");
        lines.gone(&slot());
        enter(&mut lines, 7);
        assert_eq!(lines.waiting(), 1);
    }

    #[test]
    fn a_key_that_is_held_or_that_others_made_stays() {
        let mut lines = Lines::default();
        enter(&mut lines, 5);
        lines.answered(&slot(), Some(6));
        enter(&mut lines, 6);
        lines.answered(&slot(), None);
        lines.held(&slot(), 6);
        assert_eq!((lines.leave(&slot()), lines.leave(&slot())), (None, None));
        // The holder's second call finds the key.
        enter(&mut lines, 8);
        lines.answered(&slot(), None);
        assert_eq!(lines.leave(&slot()), None);
        // A key that is made anew after the held one went is given up again.
        enter(&mut lines, 8);
        lines.answered(&slot(), None);
        lines.held(&slot(), 6);
        enter(&mut lines, 9);
        lines.answered(&slot(), Some(10));
        assert_eq!((lines.leave(&slot()), lines.leave(&slot())), (None, Some(GiveUp::CreatedAt(10))));
    }

    #[test]
    fn an_answer_that_never_came_leaves_only_what_was_there_before() {
        let mut lines = Lines::default();
        enter(&mut lines, 5);
        assert_eq!(lines.leave(&slot()), Some(GiveUp::CreatedAfter(5)));
    }

    #[test]
    fn the_line_is_bounded() {
        let mut lines = Lines::default();
        for _ in 0..MAX {
            enter(&mut lines, 1);
        }
        assert!(matches!(lines.enter(&slot(), 1, MAX), Err(Error::TooManyRequests)));
        for _ in 0..MAX {
            lines.answered(&slot(), None);
            assert_eq!(lines.leave(&slot()), None);
        }
        assert_eq!((lines.waiting(), lines.by_key.len()), (0, 0));
    }
}
