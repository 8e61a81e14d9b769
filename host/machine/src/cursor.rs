//! Triggers' cursors and the events parked beside them.
//!
//! A cursor is the next change to deliver. It moves with an effect (`effect.rs`) or, when nothing between here and there concerns
//! the trigger, together with other idle cursors.
//!
//! **Invariant:** a cursor never goes back, and never past the first change that is not there yet.

use kvasir_api::Error;
use kvasir_api::command::{Cursor, CursorAdvance, DeadLetter, DeadLetterDrop};
use kvasir_api::limits;

use crate::registry::{TriggerKey, TriggerKind, TriggerRecord, TriggerState, missing_trigger, truncated};
use crate::table::{DeadLetterRecord, dead_letter_key};
use crate::{Effects, Reply, Rev, State, Table};

impl From<Cursor> for Rev {
    fn from(cursor: Cursor) -> Self {
        Self { main: cursor.main, sub: cursor.sub }
    }
}

impl From<Rev> for Cursor {
    fn from(rev: Rev) -> Self {
        Self { main: rev.main, sub: rev.sub }
    }
}

impl State {
    /// Whether a cursor may move so; `revision` is the store's before the command.
    pub(crate) fn is_forward(&self, from: Rev, to: Rev) -> bool {
        from <= to && to <= Rev::start_of(self.revision() + 1)
    }

    pub(crate) fn apply_cursor_advance(&mut self, request: &CursorAdvance, effects: &mut Effects) -> Reply {
        let mut moved = 0;
        for step in &request.moves {
            let (plugin, trigger) = (step.plugin.clone(), step.trigger.clone());
            let key = TriggerKey { plugin, trigger, partition: step.partition };
            let (Some(expect), Some(to)) = (step.expect.map(Rev::from), step.to.map(Rev::from)) else { continue };
            let Some(record) = self.registry.triggers.get(&key).map(|entry| &entry.record) else { continue };
            let current = record.kind == TriggerKind::Watch
                && record.state == TriggerState::Active
                && record.owner_epoch == step.owner_epoch
                && record.cursor == expect;
            if current && self.is_forward(expect, to) {
                self.change_trigger(&key, effects, |trigger, _| trigger.cursor = to);
                moved += 1;
            }
        }
        Reply::CursorAdvance { revision: self.revision(), moved }
    }

    /// Parks events; that they are within the batch and fit was checked.
    pub(crate) fn park(&mut self, key: &TriggerKey, letters: &[DeadLetter], effects: &mut Effects) {
        let Some(entry) = self.registry.triggers.get_mut(key) else { return };
        for letter in letters {
            let at = Rev::from(letter.at.unwrap_or_default());
            let record = DeadLetterRecord {
                key: letter.key.clone(),
                error: truncated(&letter.error, limits::DEAD_LETTER_ERROR_BYTES_MAX).to_owned(),
                attempts: letter.attempts,
            };
            let bytes = letter_bytes(&record);
            let before = entry.letters.insert(at, bytes).unwrap_or(0);
            self.registry.dead_letter_bytes = self.registry.dead_letter_bytes + bytes - before;
            effects.set(Table::DeadLetter, dead_letter_key(&key.plugin, &key.trigger, key.partition, at), record.encode());
        }
        entry.record.dead_letters = entry.letters.len() as u64;
    }

    pub(crate) fn apply_dead_letter_drop(&mut self, request: &DeadLetterDrop, effects: &mut Effects) -> Result<Reply, Error> {
        let (plugin, trigger) = (request.plugin.clone(), request.trigger.clone());
        let key = TriggerKey { plugin, trigger, partition: request.partition };
        let entry = self.registry.triggers.get_mut(&key).ok_or_else(|| missing_trigger(&key))?;
        let doomed: Vec<Rev> = if request.at.is_empty() {
            entry.letters.keys().copied().collect()
        } else {
            request.at.iter().map(|at| Rev::from(*at)).collect()
        };
        let mut dropped = 0;
        for at in doomed {
            let Some(bytes) = entry.letters.remove(&at) else { continue };
            self.registry.dead_letter_bytes -= bytes;
            effects.delete(Table::DeadLetter, dead_letter_key(&key.plugin, &key.trigger, key.partition, at));
            dropped += 1;
        }
        entry.record.dead_letters = entry.letters.len() as u64;
        effects.registry_changed |= dropped > 0;
        Ok(Reply::DeadLetterDrop { revision: self.revision(), dropped })
    }
}

/// What a dead letter counts in logical bytes.
pub(crate) fn letter_bytes(record: &DeadLetterRecord) -> u64 {
    limits::KEY_OVERHEAD_BYTES + record.key.len() as u64 + record.error.len() as u64
}

/// Whether parked events lie within a batch, each once.
pub(crate) fn are_within(letters: &[DeadLetter], from: Rev, to: Rev) -> bool {
    let places = letters.iter().map(|letter| letter.at.map(Rev::from));
    let inside = places.clone().all(|at| at.is_some_and(|at| from <= at && at < to));
    inside && places.is_sorted_by(|a, b| a < b)
}

/// Whether there is room for `more` parked events.
pub(crate) fn has_room(record: &TriggerRecord, more: usize) -> bool {
    record.dead_letters + more as u64 <= limits::DEAD_LETTERS_PER_TRIGGER_MAX as u64
}
