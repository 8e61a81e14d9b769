//! The one thread that writes the state file: moves the tail into it, deletes, makes checkpoints, swaps in snapshots.
//!
//! **Invariant:** the first error ends all writing, seals the file and is reported once. What the file then holds is some
//! durable checkpoint, and the log has the rest.

use super::file::StateFile;
use super::transfer::Prepared;
use super::{Answer, Applied, Inner, Job, Shared};
use crate::StorageError;
use crate::disk::Due;
use crate::thread::Work;
use redb::ReadableDatabase;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

pub(super) struct Writer {
    shared: Arc<Shared>,
    /// What the file holds, durable or not.
    applied: Applied,
    /// Since when, and how much of what it holds, is not durable.
    dirty_since: Option<Instant>,
    dirty_bytes: u64,
    /// Since when something waits in the tail.
    waiting_since: Option<Instant>,
}

enum Task {
    Job(Job),
    Move,
    Checkpoint,
    Close,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, applied: Applied) -> Self {
        Self { shared, applied, dirty_since: None, dirty_bytes: 0, waiting_since: None }
    }

    /// Does a task; `true` if it was the last one.
    fn turn(&mut self, task: Task) -> bool {
        let done = match task {
            Task::Move => self.move_slice().map(drop),
            Task::Checkpoint => self.checkpoint(),
            Task::Job(job) => self.run_job(job),
            Task::Close => {
                let result = self.move_all().and_then(|()| match self.dirty_since {
                    Some(_) => self.checkpoint(),
                    None => Ok(()),
                });
                if let Err(error) = result {
                    self.fail(&error);
                }
                return true;
            }
        };
        if let Err(error) = &done {
            self.fail(error);
        }
        done.is_err()
    }

    /// Lets go of the file, and refuses what still waits.
    fn end(&mut self) {
        // Whoever closes the store may let go of the folder next: nothing is written after that.
        if let Some(file) = self.shared.file.write().take() {
            file.close();
        }
        let mut inner = self.shared.inner.lock();
        inner.closing = true;
        let jobs = std::mem::take(&mut inner.jobs);
        let error = inner.failed.clone().map_or(StorageError::Closed, |e| StorageError::Poisoned(e.to_string()));
        drop(inner);
        jobs.into_iter().for_each(|job| job.refuse(error.clone()));
    }

    /// What is to be done now, or when there will be something.
    fn next_task(&mut self, inner: &mut Inner) -> Result<Task, Option<Instant>> {
        let options = &self.shared.options;
        if let Some(job) = inner.jobs.pop_front() {
            return Ok(Task::Job(job));
        }
        if inner.closing {
            return Ok(Task::Close);
        }
        let now = Instant::now();
        // Before the moves: under load there is always something to move.
        let checkpoint = self.dirty_since.map(|since| since + options.checkpoint_interval);
        if checkpoint.is_some_and(|due| due <= now) || self.dirty_bytes >= options.checkpoint_bytes {
            return Ok(Task::Checkpoint);
        }
        let moving = (!inner.tail.is_empty()).then(|| *self.waiting_since.get_or_insert(now) + options.commit_linger);
        if inner.tail.deletes_due() || inner.tail.row_count() >= options.commit_rows_max || moving.is_some_and(|due| due <= now)
        {
            return Ok(Task::Move);
        }
        Err([moving, checkpoint].into_iter().flatten().min())
    }

    /// Waits until there is something to do.
    fn wait_for_task(&mut self) -> Task {
        let shared = Arc::clone(&self.shared);
        let mut inner = shared.inner.lock();
        loop {
            match self.next_task(&mut inner) {
                Ok(task) => return task,
                Err(Some(due)) => drop(shared.work.wait_until(&mut inner, due)),
                Err(None) => shared.work.wait(&mut inner),
            }
        }
    }

    fn file(&self) -> Result<StateFile, StorageError> {
        self.shared.file.read().clone().ok_or(StorageError::Closed)
    }

    /// Moves one slice of the tail into the file; answers whether there was any.
    fn move_slice(&mut self) -> Result<bool, StorageError> {
        let options = &self.shared.options;
        let slice = self.shared.inner.lock().tail.slice(options.commit_rows_max, options.delete_rows_max);
        if slice.is_empty() {
            return Ok(false);
        }
        if let Some(applied) = &slice.applied {
            self.applied.log_id = applied.log_id;
            if applied.membership.is_some() {
                self.applied.membership = applied.membership.clone();
            }
        }
        self.file()?.write(&slice.rows, &slice.batches, &slice.gone, &self.applied)?;
        self.dirty_since.get_or_insert_with(Instant::now);
        self.dirty_bytes += slice.bytes as u64;
        let mut inner = self.shared.inner.lock();
        inner.tail.settle(&slice);
        self.shared.tail_bytes.store(inner.tail.bytes(), Ordering::Relaxed);
        self.waiting_since = (!inner.tail.is_empty()).then(Instant::now);
        Ok(true)
    }

    /// Moves what is in the tail now.
    fn move_all(&mut self) -> Result<(), StorageError> {
        let goal = self.shared.inner.lock().tail.pushed;
        while self.shared.inner.lock().tail.filed < goal {
            self.move_slice()?;
        }
        Ok(())
    }

    /// Makes the file durable as it stands, once the log is durable up to there.
    fn checkpoint(&mut self) -> Result<(), StorageError> {
        let probe = self.shared.inner.lock().flushed.clone();
        if let (Some(probe), Some(id)) = (probe, self.applied.log_id) {
            probe(id.index)
                .map_err(|source| StorageError::io(&self.shared.path, "make a checkpoint: the log is not durable", source))?;
        }
        self.file()?.make_durable(&self.applied)?;
        self.announce();
        Ok(())
    }

    fn announce(&mut self) {
        self.dirty_since = None;
        self.dirty_bytes = 0;
        let mut inner = self.shared.inner.lock();
        inner.durable = self.applied.clone();
    }

    fn run_job(&mut self, job: Job) -> Result<(), StorageError> {
        match job {
            Job::Checkpoint(answer) => {
                let result = self.move_all().and_then(|()| self.checkpoint());
                respond(&answer, result, |()| self.applied.clone())
            }
            Job::PutLocal(name, value, answer) => {
                let result = self.move_all().and_then(|()| self.file()?.put_local(&[(name, value)]));
                let result = result.and_then(|()| self.checkpoint());
                respond(&answer, result, |()| ())
            }
            Job::View(answer) => {
                let result = self.move_all().and_then(|()| self.checkpoint()).and_then(|()| {
                    // Begun here, so that nothing that is not durable yet is in it.
                    let file = self.file()?;
                    let txn = file.db.begin_read().map_err(file.fault())?;
                    Ok((file, txn))
                });
                respond(&answer, result, |view| view)
            }
            Job::Install(mut prepared, answer) => {
                let result = self.install(&mut prepared);
                respond(&answer, result, |applied| (prepared, applied))
            }
        }
    }

    fn install(&mut self, prepared: &mut Prepared) -> Result<Applied, StorageError> {
        let old = self.file()?;
        let (fresh, applied) = prepared.put_in_place(&old)?;
        // Readers look at the tail first: what it held must not be seen over the new file.
        let mut file = self.shared.file.write();
        let mut inner = self.shared.inner.lock();
        inner.tail.clear();
        self.shared.tail_bytes.store(0, Ordering::Relaxed);
        drop(inner);
        *file = Some(fresh);
        drop(file);
        // Its name is gone; what it would still write concerns nobody.
        old.seal();
        self.applied = applied.clone();
        self.waiting_since = None;
        self.announce();
        Ok(applied)
    }

    fn fail(&self, error: &StorageError) {
        if let Some(file) = &*self.shared.file.read() {
            file.seal();
        }
        self.shared.inner.lock().failed = Some(error.clone());
        if let Some(on_fatal) = &self.shared.options.on_fatal {
            on_fatal(error);
        }
    }
}

impl Work for Writer {
    /// Serves until the store is closed or fails.
    fn run(mut self) {
        loop {
            let task = self.wait_for_task();
            if self.turn(task) {
                break;
            }
        }
        self.end();
    }

    fn step(&mut self) -> Due {
        let shared = Arc::clone(&self.shared);
        let task = match self.next_task(&mut shared.inner.lock()) {
            Ok(task) => task,
            Err(due) => return due.map_or(Due::Woken, Due::At),
        };
        if self.turn(task) {
            self.end();
            return Due::Never;
        }
        Due::Now
    }
}

/// Answers a job; an error is the store's end as well.
fn respond<T, R>(answer: &Answer<R>, result: Result<T, StorageError>, ok: impl FnOnce(T) -> R) -> Result<(), StorageError> {
    match result {
        Ok(value) => {
            // The asker may have given up.
            let _ = answer.send(Ok(ok(value)));
            Ok(())
        }
        Err(error) => {
            let _ = answer.send(Err(error.clone()));
            Err(error)
        }
    }
}

impl Job {
    fn refuse(self, error: StorageError) {
        match self {
            Self::Checkpoint(answer) => drop(answer.send(Err(error))),
            Self::View(answer) => drop(answer.send(Err(error))),
            Self::Install(_, answer) => drop(answer.send(Err(error))),
            Self::PutLocal(_, _, answer) => drop(answer.send(Err(error))),
        }
    }
}
