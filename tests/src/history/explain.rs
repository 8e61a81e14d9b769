//! Which request made which revision, whether each answer is the right one there, and whether revisions follow real time.
//!
//! This is strict serializability of the whole store, and cheap, because revisions say the order: each request is executed by the
//! naive model at its place, and places are compared with the times of calls and answers.

use std::collections::{BTreeMap, BTreeSet};

use kvasir_api::mvccpb::Event;

use super::leases::lives_to;
use super::model::{Keys, bare};
use super::timeline::EMPTY;
use super::{Operation, Outcome, Request, Response, Timeline, Violation};

/// Where in the order of revisions a request took effect: as the write of a revision, or as a reader after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// It made this revision.
    Made(i64),
    /// It saw this revision.
    Saw(i64),
}

impl Place {
    /// Places as they follow each other.
    fn order(self) -> (i64, bool) {
        match self {
            Self::Made(at) => (at, false),
            Self::Saw(at) => (at, true),
        }
    }

    fn revision(self) -> i64 {
        self.order().0
    }
}

/// What is known of the requests of a run after all.
#[derive(Debug, Clone, PartialEq)]
pub struct Explained {
    /// For each operation, where it took effect.
    pub(super) places: Vec<Option<Place>>,
    /// Leases that ended without a request that was answered, and the revision that deleted their keys.
    pub(super) ended: Vec<(i64, i64)>,
}

impl Explained {
    /// The revision that an operation made.
    pub fn made(&self, operation: usize) -> Option<i64> {
        match self.places.get(operation) {
            Some(Some(Place::Made(at))) => Some(*at),
            _ => None,
        }
    }

    /// Leases that ended by themselves, with their keys' last revision.
    pub fn ended(&self) -> &[(i64, i64)] {
        &self.ended
    }
}

struct Search<'a> {
    operations: &'a [Operation],
    places: Vec<Option<Place>>,
    ended: Vec<(i64, i64)>,
    /// Operations by the revision in their answer.
    answered: BTreeMap<i64, Vec<usize>>,
    /// Requests of unknown fate, as they were sent.
    unknown: Vec<usize>,
    /// Revisions that nobody was told of, and what each may come from: what is right, and then the end of a lease before its time.
    anonymous: Vec<(i64, [Vec<Cause>; 2])>,
    /// Until when each lease was to live.
    leases: BTreeMap<i64, u64>,
}

/// What may have made a revision that nobody was told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Cause {
    /// A request of unknown fate.
    Request(usize),
    /// The end of a lease.
    End(i64),
}

/// Explains each revision and each answer.
///
/// # Errors
/// `answers`: an answer is not what the request gets at its revision; `lost`: an acknowledged write is not in the timeline; `origin`:
/// a revision is nobody's request, or half of one, or two requests were told it is theirs; `time`: a request took effect before it
/// was sent, or after one that was sent later than its answer.
pub fn explain(
    operations: &[Operation],
    timeline: &Timeline,
    foreign: impl Fn(&[Event]) -> bool,
) -> Result<Explained, Violation> {
    let mut search = Search {
        operations,
        places: vec![None; operations.len()],
        ended: Vec::new(),
        answered: BTreeMap::new(),
        unknown: Vec::new(),
        anonymous: Vec::new(),
        leases: lives_to(operations),
    };
    for (nth, operation) in operations.iter().enumerate() {
        match &operation.outcome {
            Outcome::Answered { response: Response::Lease { header: None, .. }, .. } | Outcome::Refused => {}
            Outcome::Answered { response, .. } => {
                let revision = response.revision();
                if revision < EMPTY || revision > timeline.last() {
                    let how = format!("{}: answered at revision {revision} of {}", show(operation), timeline.last());
                    return Err(lost(how));
                }
                search.answered.entry(revision).or_default().push(nth);
            }
            Outcome::Unknown => search.unknown.push(nth),
        }
    }
    // Of two that would do as well, the one that was sent first.
    search.unknown.sort_by_key(|nth| operations[*nth].called);
    let known_at = search.known_at(timeline);
    let attached = last_attached(timeline);
    let mut keys = Keys::default();
    search.readers(EMPTY, &keys)?;
    for (revision, events) in timeline.revisions() {
        if !search.maker(revision, events, &keys)? {
            search.causes(revision, events, &keys, known_at.get(&revision).copied(), &attached);
        }
        for event in events {
            keys.follow(event, revision);
        }
        search.readers(revision, &keys)?;
    }
    search.match_anonymous(timeline, foreign)?;
    search.past_reads(timeline)?;
    search.real_time()?;
    Ok(Explained { places: search.places, ended: search.ended })
}

impl Search<'_> {
    /// When somebody first knew that a revision was there: who is sent later did not make it.
    fn known_at(&self, timeline: &Timeline) -> BTreeMap<i64, u64> {
        let mut known = BTreeMap::new();
        let mut first = u64::MAX;
        for revision in (EMPTY..=timeline.last()).rev() {
            for nth in self.answered.get(&revision).into_iter().flatten() {
                first = first.min(self.operations[*nth].answered_at().unwrap_or(u64::MAX));
            }
            known.insert(revision, first);
        }
        known
    }

    /// Finds the request that was told that it made a revision; `false` if nobody was.
    fn maker(&mut self, revision: i64, events: &[Event], before: &Keys) -> Result<bool, Violation> {
        let mut maker: Option<usize> = None;
        for nth in self.answered.get(&revision).cloned().unwrap_or_default() {
            let (made, response) = before.clone().execute(&self.operations[nth].request, revision);
            if made.is_empty() || !self.fits(nth, response.as_ref()) {
                continue;
            }
            if made != events {
                // Of a request whose answer says nothing, it may have come after.
                if response.is_none() {
                    continue;
                }
                let how = format!("{} was told revision {revision}, which is {events:?}", show(&self.operations[nth]));
                return Err(lost(how));
            }
            match maker {
                // As above.
                Some(_) if response.is_none() => {}
                Some(other) if self.says_something(other) => {
                    let both = [&self.operations[other], &self.operations[nth]].map(show);
                    return Err(origin(format!("revision {revision} was given to two requests: {}; {}", both[0], both[1])));
                }
                _ => maker = Some(nth),
            }
        }
        if let Some(nth) = maker {
            self.places[nth] = Some(Place::Made(revision));
        }
        Ok(maker.is_some())
    }

    /// Whether the answer to an operation depends on what it did to the keys.
    fn says_something(&self, nth: usize) -> bool {
        !matches!(self.operations[nth].request, Request::Revoke { .. })
    }

    /// Notes what a revision that nobody was told of may come from.
    fn causes(&mut self, revision: i64, events: &[Event], before: &Keys, known_at: Option<u64>, attached: &BTreeMap<i64, i64>) {
        let known_at = known_at.unwrap_or(u64::MAX);
        let made = |nth: &&usize| {
            let operation = &self.operations[**nth];
            operation.called <= known_at && before.clone().execute(&operation.request, revision).0 == events
        };
        let mut causes: Vec<Cause> = self.unknown.iter().filter(made).map(|nth| Cause::Request(*nth)).collect();
        if let Some(lease) = ended_lease(revision, events, before)
            && attached.get(&lease).is_none_or(|last| *last < revision)
        {
            let early = self.leases.get(&lease).is_some_and(|lives_to| known_at < *lives_to);
            let end = vec![Cause::End(lease)];
            if early {
                return self.anonymous.push((revision, [causes, end]));
            }
            causes.extend(end);
        }
        self.anonymous.push((revision, [causes, Vec::new()]));
    }

    /// Gives each revision that nobody was told of a cause of its own: two deletes may look alike, so that taking the first that
    /// fits is not enough.
    fn match_anonymous(&mut self, timeline: &Timeline, foreign: impl Fn(&[Event]) -> bool) -> Result<(), Violation> {
        let mut taken = BTreeMap::<Cause, usize>::new();
        for nth in 0..self.anonymous.len() {
            // A lease that ends early is what explains least, and what is broken if nothing else explains it.
            let explained = self.augment(nth, 1, &mut taken, &mut BTreeSet::new())
                || self.augment(nth, 2, &mut taken, &mut BTreeSet::new());
            if !explained {
                let revision = self.anonymous[nth].0;
                let events = timeline.at(revision);
                if !foreign(events) {
                    return Err(origin(format!("revision {revision} is nobody's request, or half of one: {events:?}")));
                }
            }
        }
        for (cause, nth) in taken {
            let revision = self.anonymous[nth].0;
            match cause {
                Cause::Request(operation) => self.places[operation] = Some(Place::Made(revision)),
                Cause::End(lease) => self.ended.push((lease, revision)),
            }
        }
        Ok(())
    }

    /// Finds a cause for a revision, and others for those that had it.
    fn augment(&self, nth: usize, kinds: usize, taken: &mut BTreeMap<Cause, usize>, tried: &mut BTreeSet<Cause>) -> bool {
        for cause in self.anonymous[nth].1[..kinds].iter().flatten() {
            if !tried.insert(*cause) {
                continue;
            }
            let free = match taken.get(cause).copied() {
                None => true,
                Some(other) => self.augment(other, kinds, taken, tried),
            };
            if free {
                taken.insert(*cause, nth);
                return true;
            }
        }
        false
    }

    /// Checks what was answered at a revision by requests that did not make it.
    fn readers(&mut self, revision: i64, keys: &Keys) -> Result<(), Violation> {
        for nth in self.answered.get(&revision).cloned().unwrap_or_default() {
            let operation = &self.operations[nth];
            if self.places[nth].is_some() || past(operation).is_some() {
                continue;
            }
            let (changes, response) = keys.clone().execute(&operation.request, revision + 1);
            if let Request::Revoke { .. } = operation.request
                && !changes.is_empty()
            {
                return Err(lost(format!("{} was answered, and its keys are there: {changes:?}", show(operation))));
            }
            if !changes.is_empty() || !self.fits(nth, response.as_ref()) {
                let how = format!("{}: the model says {response:?} and changes {changes:?}", show(operation));
                return Err(Violation { promise: "answers are what the request gets at its revision", how });
            }
            self.places[nth] = Some(Place::Saw(revision));
        }
        Ok(())
    }

    /// Checks reads of a revision that was past already.
    fn past_reads(&mut self, timeline: &Timeline) -> Result<(), Violation> {
        let operations = self.operations;
        let mut reads: Vec<(i64, usize)> =
            operations.iter().enumerate().filter_map(|(nth, operation)| Some((past(operation)?, nth))).collect();
        reads.sort_unstable();
        let mut keys = Keys::default();
        let mut events = timeline.revisions().peekable();
        for (wanted, nth) in reads {
            while let Some((revision, events)) = events.next_if(|(revision, _)| *revision <= wanted) {
                events.iter().for_each(|event| drop(keys.follow(event, revision)));
            }
            let operation = &self.operations[nth];
            let Outcome::Answered { response, .. } = &operation.outcome else { continue };
            let told = keys.clone().execute(&operation.request, wanted).1;
            if !self.fits(nth, told.as_ref()) || wanted > response.revision() {
                let how = format!("{}: the model says {told:?}", show(operation));
                return Err(Violation { promise: "the past reads as it was", how });
            }
            // It is a reader of the present, too: its header says of which.
            self.places[nth] = Some(Place::Saw(response.revision()));
        }
        Ok(())
    }

    fn fits(&self, nth: usize, model: Option<&Response>) -> bool {
        match (&self.operations[nth].outcome, model) {
            (Outcome::Answered { response, .. }, Some(model)) => bare(response) == *model,
            _ => true,
        }
    }

    /// Checks that places follow time.
    fn real_time(&self) -> Result<(), Violation> {
        let placed = || self.operations.iter().zip(&self.places).filter_map(|(it, place)| Some((it, (*place)?)));
        let linearizable = |it: &Operation| !it.is_serializable() && past(it).is_none();
        let mut answered: Vec<(u64, Place, &Operation)> =
            placed().filter_map(|(it, place)| Some((it.answered_at()?, place, it))).collect();
        answered.sort_by_key(|(at, ..)| *at);
        let mut called: Vec<(u64, Place, &Operation)> =
            placed().filter(|(it, _)| linearizable(it)).map(|(it, place)| (it.called, place, it)).collect();
        called.sort_by_key(|(at, ..)| *at);
        let mut earlier = answered.into_iter().peekable();
        let mut newest: Option<(Place, &Operation)> = None;
        for (at, place, operation) in called {
            while let Some((_, place, operation)) = earlier.next_if(|(answered, ..)| *answered < at) {
                if newest.is_none_or(|(newest, _)| newest.order() < place.order()) {
                    newest = Some((place, operation));
                }
            }
            let Some((seen, other)) = newest else { continue };
            if place.order() < seen.order() {
                let how = format!(
                    "{} took effect at revision {}, and before it was sent revision {} had been answered to {}",
                    show(operation),
                    place.revision(),
                    seen.revision(),
                    show(other)
                );
                return Err(Violation { promise: "revisions follow real time", how });
            }
        }
        Ok(())
    }
}

/// The last revision in which a key was attached to a lease: it had not ended before.
fn last_attached(timeline: &Timeline) -> BTreeMap<i64, i64> {
    let mut last = BTreeMap::new();
    for (revision, events) in timeline.revisions() {
        for kv in events.iter().filter_map(|event| event.kv.as_ref()).filter(|kv| kv.lease != 0) {
            last.insert(kv.lease, revision);
        }
    }
    last
}

/// The lease whose end is just this revision.
fn ended_lease(revision: i64, events: &[Event], before: &Keys) -> Option<i64> {
    let lease = events.first()?.prev_kv.as_ref()?.lease;
    let mut made = Vec::new();
    before.clone().end_lease(lease, revision, &mut made);
    (lease != 0 && made == events).then_some(lease)
}

/// The past revision that a range asks for.
fn past(operation: &Operation) -> Option<i64> {
    match (&operation.request, &operation.outcome) {
        (Request::Range(range), Outcome::Answered { .. }) if range.revision > 0 => Some(range.revision),
        _ => None,
    }
}

pub(super) fn show(operation: &Operation) -> String {
    let Operation { client, called, request, outcome } = operation;
    format!("client {client} at {called}: {request:?} -> {outcome:?}")
}

fn lost(how: String) -> Violation {
    Violation { promise: "what was acknowledged is there", how }
}

fn origin(how: String) -> Violation {
    Violation { promise: "each revision is one whole request", how }
}
