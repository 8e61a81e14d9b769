//! `kv`: reads of the run's snapshot and staged writes; for tasks, commits.

use bytes::Bytes;
use kvasir_api::Error;
use kvasir_engine::{Access, KeyRange};

use super::types::{entry, is_trouble, key, range, refusal, words};
use crate::bindings::kvasir::plugin::kv::{Host, Page, ScanOptions};
use crate::bindings::kvasir::plugin::types as wit;
use crate::run::Run;
use crate::stop::Stop;
use crate::view::{Full, Staged, own, rest};

/// Entries of a page when the guest asks for none in particular, and at most.
const PAGE_ENTRIES: u32 = 256;
const PAGE_ENTRIES_MAX: u32 = 1_024;

type Answer<T> = wasmtime::Result<Result<T, wit::Error>>;

impl Host for Run {
    async fn get(&mut self, k: Vec<u8>) -> Answer<Option<wit::Entry>> {
        self.charge()?;
        Ok(self.kv_get(k).await)
    }

    async fn scan(&mut self, what: wit::Selection, options: ScanOptions) -> Answer<Page> {
        self.charge()?;
        Ok(self.kv_scan(what, options).await)
    }

    async fn put(&mut self, k: Vec<u8>, value: Vec<u8>, lease: Option<u64>) -> Answer<()> {
        self.charge()?;
        let lease = match lease {
            Some(_) if !self.may_lease() => {
                return Ok(Err(wit::Error::Denied(
                    "no grant covers leases; ask for `lease = true` in the manifest's grants".to_owned(),
                )));
            }
            Some(lease) => match i64::try_from(lease) {
                Ok(lease) if lease > 0 => lease,
                _ => return Ok(Err(wit::Error::Invalid(format!("{lease} is not a lease")))),
            },
            None => 0,
        };
        Ok(self.stage(k, Staged::Put { value: Bytes::from(value), lease }))
    }

    async fn delete(&mut self, k: Vec<u8>) -> Answer<()> {
        self.charge()?;
        Ok(self.stage(k, Staged::Delete))
    }

    async fn require_unchanged(&mut self, k: Vec<u8>) -> Answer<()> {
        self.charge()?;
        Ok(self.kv_require_unchanged(k).await)
    }

    async fn snapshot_revision(&mut self) -> wasmtime::Result<u64> {
        self.charge()?;
        Ok(self.view.revision())
    }

    async fn commit(&mut self) -> Answer<u64> {
        self.charge()?;
        let Some(mut task) = self.task.take() else {
            return Ok(Err(wit::Error::Unsupported(
                "a reactor does not commit: what it staged is committed when it returns ok".to_owned(),
            )));
        };
        let committed = task.commit(&self.facts, &mut self.view).await;
        self.task = Some(task);
        Ok(self.noting(committed))
    }
}

impl Run {
    async fn kv_get(&mut self, k: Vec<u8>) -> Result<Option<wit::Entry>, wit::Error> {
        let key = key(k)?;
        self.allow(Access::Read, &KeyRange::single(key.clone()))?;
        match self.view.staged(&key) {
            Some(Staged::Put { value, lease }) => return Ok(Some(entry(own(&key, value.clone(), *lease)))),
            Some(Staged::Delete) => return Ok(None),
            None => {}
        }
        let found = self.snapshot_get(&key).await?;
        self.view.read_key(&key, found.as_ref()).map_err(full)?;
        Ok(found.map(entry))
    }

    async fn kv_require_unchanged(&mut self, k: Vec<u8>) -> Result<(), wit::Error> {
        let key = key(k)?;
        self.allow(Access::Read, &KeyRange::single(key.clone()))?;
        let found = self.snapshot_get(&key).await?;
        self.view.read_key(&key, found.as_ref()).map_err(full)
    }

    async fn snapshot_get(&mut self, key: &Bytes) -> Result<Option<crate::store::Entry>, wit::Error> {
        let revision = self.view.revision();
        let found = self.facts.store.get(&self.facts.caller, key, revision).await;
        self.of_snapshot(found, "the key")
    }

    /// An answer about this run's snapshot: that it was compacted meanwhile is no fault of the guest.
    fn of_snapshot<T>(&mut self, answer: Result<T, Error>, about: &str) -> Result<T, wit::Error> {
        if let Err(Error::Compacted) = answer {
            self.trouble = Some(format!("the snapshot at revision {} was compacted during the run", self.view.revision()));
        }
        let answer = answer.map_err(|error| refusal(&error, about, self.facts.store.compact_revision()));
        self.noting(answer)
    }

    async fn kv_scan(&mut self, what: wit::Selection, options: ScanOptions) -> Result<Page, wit::Error> {
        let keys = range(what)?;
        self.allow(Access::Read, &keys)?;
        let after = options.after.map(key).transpose()?;
        let limit = match options.limit {
            0 => PAGE_ENTRIES,
            limit => limit.min(PAGE_ENTRIES_MAX),
        } as usize;
        // What is scanned, guarded and overlaid is what was allowed, wherever `after` lies.
        let Some(keys) = rest(&keys, after.as_ref()) else {
            return Ok(Page { entries: Vec::new(), more: false });
        };
        let revision = self.view.revision();
        let page = self.facts.store.scan(&self.facts.caller, &keys, revision, None, limit, options.keys_only).await;
        let page = self.of_snapshot(page, "the range")?;
        self.view.read_page(&keys, &page).map_err(full)?;
        let page = self.view.overlay(&keys, page, limit, options.keys_only);
        Ok(Page { entries: page.entries.into_iter().map(entry).collect(), more: page.more })
    }

    fn stage(&mut self, k: Vec<u8>, write: Staged) -> Result<(), wit::Error> {
        let key = key(k)?;
        self.allow(Access::Write, &KeyRange::single(key.clone()))?;
        let limits = &self.facts.limits;
        self.view.stage(key, write, limits.staged_ops as usize, limits.staged_bytes.0 as usize).map_err(full)
    }

    /// Asks the engine, as every door does.
    pub(crate) fn allow(&self, access: Access, keys: &KeyRange) -> Result<(), wit::Error> {
        self.facts.store.authorise(&self.facts.caller, access, keys).map_err(|error| {
            let about = match access {
                Access::Read => format!("reading {}; ask for it under kv-read in the manifest's grants", words(keys)),
                Access::Write => format!("writing {}; ask for it under kv-write in the manifest's grants", words(keys)),
                Access::Lock => format!("the lock {}; ask for it under lock in the manifest's grants", words(keys)),
            };
            refusal(&error, &about, 0)
        })
    }

    pub(crate) fn may_lease(&self) -> bool {
        self.facts.caller.grants.as_ref().is_none_or(|grants| grants.lease)
    }

    /// Remembers that the node had trouble, so that a failure of this run is not held against the guest.
    pub(crate) fn noting<T>(&mut self, answer: Result<T, wit::Error>) -> Result<T, wit::Error> {
        if let Err(error) = &answer
            && is_trouble(error)
        {
            self.trouble = Some(format!("{error:?}"));
        }
        answer
    }
}

pub(crate) fn full(full: Full) -> wit::Error {
    wit::Error::Limit(Stop::Staged { limit: full.limit, what: full.what }.to_string())
}
