//! Resync: the whole watched range at one revision, page by page, in place of changes that are compacted away.
//!
//! **Invariant:** the cursor moves only with the last page, to right after the revision of the scan; a resync that is interrupted
//! begins again.

use kvasir_api::Error;
use kvasir_machine::{Rev, TriggerRecord};

use super::{ERROR_BYTES_MAX, Landed, Next, Reactor};
use crate::active::{Wait, backoff};
use crate::bindings::exports::kvasir::plugin::reactor::Resync;
use crate::imports::types::entry;
use crate::logs::{Source, cut};
use crate::run::{Answer, Input};
use crate::view::View;

/// Entries of one page of a resync.
const RESYNC_ENTRIES: usize = 256;

/// A resync under way.
pub(super) struct Scan {
    at: u64,
    after: Option<bytes::Bytes>,
    attempts: u32,
}

impl Reactor {
    pub(super) fn scan(&self) -> Scan {
        Scan { at: self.active.store.revision(), after: None, attempts: 0 }
    }

    /// One page of the watched range as it is now, in place of the changes that are gone.
    pub(super) async fn step_resync(&mut self, record: TriggerRecord) -> Next {
        self.plans.clear();
        let Scan { at, after, attempts } = match self.resync.take() {
            Some(scan) => scan,
            None => {
                let scan = self.scan();
                let text =
                    format!("changes before revision {} are compacted away: resync at revision {}", record.cursor, scan.at);
                self.active.board.log.host(&self.tenure.source(1), "warn", &text);
                scan
            }
        };
        self.board.state("lost");
        let Some(slot) = self.tenure.slot(false).await else { return Next::End };
        let caller = self.active.caller(1);
        let page = match self.active.store.scan(&caller, &self.keys, at, after.as_ref(), RESYNC_ENTRIES, false).await {
            Ok(page) => page,
            // This snapshot is compacted too: begin again at a newer one.
            Err(Error::Compacted) => {
                self.resync = Some(self.scan());
                return Next::Go;
            }
            Err(error) => {
                self.resync = Some(Scan { at, after, attempts });
                return self.trouble(&error.to_string()).await;
            }
        };
        let last_key = page.entries.last().map(|entry| entry.key.clone());
        let input = Resync {
            trigger: self.id.clone(),
            at,
            entries: page.entries.into_iter().map(entry).collect(),
            first: after.is_none(),
            last: !page.more,
        };
        let attempts = attempts + 1;
        let source = self.tenure.source(attempts);
        let mut ended = self.tenure.run(slot, source.clone(), 1, self.active.store.revision(), Input::Resync(input)).await;
        let again = |attempts| Scan { at, after: after.clone(), attempts };
        if ended.answer == Answer::Ok {
            let revision = ended.view.revision();
            let writes = std::mem::replace(&mut ended.view, View::at(revision)).into_writes();
            let to = if page.more { record.cursor } else { Rev { main: at + 1, sub: 0 } };
            return match self.land(&record, to.max(record.cursor), writes, Vec::new(), 1).await {
                Landed::Yes => {
                    self.resync = page.more.then_some(Scan { at, after: last_key, attempts: 0 });
                    Next::Go
                }
                Landed::Conflict => {
                    self.resync = Some(again(attempts - 1));
                    self.after_conflict().await
                }
                Landed::Trouble(why) => {
                    self.resync = Some(again(attempts - 1));
                    self.trouble(&why).await
                }
                Landed::Refused(why) => {
                    self.resync = Some(again(attempts));
                    self.resync_failed(&source, attempts, Answer::Retry(why)).await
                }
                Landed::Next(next) => next,
            };
        }
        if self.tenure.is_over() {
            return Next::End;
        }
        if let (Answer::Retry(_), Some(trouble)) = (&ended.answer, &ended.trouble) {
            self.resync = Some(again(attempts - 1));
            return self.trouble(trouble).await;
        }
        self.resync = Some(again(attempts));
        self.resync_failed(&source, attempts, ended.answer).await
    }

    /// A resync cannot be parked: when no attempt helps the plugin is stopped, visibly.
    async fn resync_failed(&mut self, source: &Source, attempts: u32, answer: Answer) -> Next {
        let (stopped, why) = match answer {
            Answer::Reject(why) | Answer::Retry(why) => (false, why),
            Answer::Stopped(stop) => (true, stop.to_string()),
            Answer::Ok => return Next::Go,
        };
        let why = cut(&why, ERROR_BYTES_MAX);
        if self.active.fault(&self.board, source, stopped, &why).await {
            return Next::End;
        }
        let failure = self.active.installed.manifest.failure;
        if attempts > failure.retries {
            self.active.quarantine(source, &format!("the resync of trigger {} failed {attempts} times: {why}", self.id)).await;
            return Next::End;
        }
        self.board.state("backoff");
        if self.tenure.sleep(backoff(&failure, attempts)).await == Wait::Cancelled { Next::End } else { Next::Go }
    }
}
