//! Wing and Gong's search with Lowe's memory, one key at a time: is there an order of a key's operations, each within its call and
//! its answer, in which each answer is right?
//!
//! A key is a register of value, lease and version; a request of many keys is an operation of each of them. Revisions are only used
//! where an answer names one of this very key. A write whose fate is unknown may happen at any time after its call, or never.
//!
//! **Invariant:** a history that is linearizable is never refused: what one key cannot know of another is left open.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use bytes::Bytes;
use kvasir_api::etcdserverpb::compare::CompareTarget;
use kvasir_api::etcdserverpb::request_op::Request as Op;
use kvasir_api::etcdserverpb::response_op::Response as OpAnswer;
use kvasir_api::etcdserverpb::{
    Compare, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, TxnRequest,
    TxnResponse,
};
use kvasir_api::mvccpb::KeyValue;

use super::explain::Explained;
use super::model::compares;
use super::{Operation, Outcome, Request, Response, Violation, covers, shown};

/// Steps of one key's search before it is given up.
const STEPS_MAX: usize = 4_000_000;
const PROMISE: &str = "each key is linearizable";

/// A key as one order of its operations leaves it; revisions that are not known are 0.
type Register = Option<KeyValue>;

/// What an operation does to a key, and what it must have found.
#[derive(Debug, Clone)]
enum Action {
    Read(Register),
    Put {
        put: PutRequest,
        found: Option<Register>,
        revision: i64,
    },
    Delete {
        existed: Option<bool>,
        found: Option<Register>,
    },
    /// Deletes the key if it is attached to this lease.
    End(i64),
}

/// What holds if a branch of a transaction is taken.
#[derive(Debug, Clone)]
enum Condition {
    All(Vec<Compare>),
    NotAll(Vec<Compare>),
}

/// One way an operation may have gone.
#[derive(Debug, Clone, Default)]
struct Branch {
    conditions: Vec<Condition>,
    actions: Vec<Action>,
}

/// An operation of one key.
#[derive(Debug, Clone)]
struct Step {
    called: u64,
    /// `None` for one that need not have happened.
    answered: Option<u64>,
    branches: Vec<Branch>,
    /// For messages.
    operation: Option<usize>,
}

/// Searches an order for each key. With what [`super::explain()`] found, requests that are known never to have happened are left out.
///
/// # Errors
/// A key for which there is no order, or whose search is too long.
pub fn linearizable(operations: &[Operation], explained: Option<&Explained>) -> Result<(), Violation> {
    let mut keys = BTreeMap::new();
    for operation in operations {
        keys_of(operation, &mut keys);
    }
    for (key, leases) in &keys {
        let mut steps: Vec<Step> = Vec::new();
        for (nth, operation) in operations.iter().enumerate() {
            let made = explained.and_then(|explained| explained.made(nth));
            if operation.outcome == Outcome::Unknown && explained.is_some() && made.is_none() {
                continue;
            }
            steps.extend(step(key, nth, operation, made));
        }
        for lease in leases {
            let ends = explained.is_none_or(|explained| explained.ended().iter().any(|(ended, _)| ended == lease));
            if ends && *lease != 0 {
                let branch = Branch { conditions: Vec::new(), actions: vec![Action::End(*lease)] };
                steps.push(Step { called: 0, answered: None, branches: vec![branch], operation: None });
            }
        }
        // A read that was not answered says nothing, and neither does an operation of other keys.
        steps.retain(|step| step.branches.iter().any(|branch| !branch.actions.is_empty() || !branch.conditions.is_empty()));
        Search::new(&steps).run().map_err(|why| failure(key, &steps, operations, &why))?;
    }
    Ok(())
}

/// Notes the keys that an operation names or was told of, and the leases they were given.
fn keys_of(operation: &Operation, keys: &mut BTreeMap<Bytes, BTreeSet<i64>>) {
    let mut puts: Vec<&PutRequest> = Vec::new();
    match &operation.request {
        Request::Put(put) => puts.push(put),
        Request::Delete(it) if it.range_end.is_empty() => drop(keys.entry(it.key.clone()).or_default()),
        Request::Range(it) if it.range_end.is_empty() => drop(keys.entry(it.key.clone()).or_default()),
        Request::Txn(txn) => {
            for op in txn.success.iter().chain(&txn.failure) {
                if let Some(Op::RequestPut(put)) = &op.request {
                    puts.push(put);
                }
            }
        }
        _ => {}
    }
    for put in puts {
        keys.entry(put.key.clone()).or_default().insert(put.lease);
    }
}

/// What an operation is to one key.
fn step(key: &Bytes, nth: usize, operation: &Operation, made: Option<i64>) -> Option<Step> {
    let answer = match &operation.outcome {
        Outcome::Refused => return None,
        Outcome::Unknown => None,
        Outcome::Answered { response, .. } => Some(response),
    };
    let revision = answer.map_or(made.unwrap_or(0), Response::revision);
    let single = |action: Option<Action>| vec![Branch { conditions: Vec::new(), actions: action.into_iter().collect() }];
    let branches = match (&operation.request, answer) {
        (Request::Range(it), Some(Response::Range(answer))) => single(read(key, it, answer)),
        (Request::Put(it), answer) => {
            let answer = answer.and_then(|answer| if let Response::Put(it) = answer { Some(it) } else { None });
            single(put(key, it, answer, revision))
        }
        (Request::Delete(it), answer) => {
            let answer = answer.and_then(|answer| if let Response::Delete(it) = answer { Some(it) } else { None });
            single(delete(key, it, answer))
        }
        (Request::Txn(it), Some(Response::Txn(answer))) => vec![branch(key, it, answer.succeeded, Some(answer), revision)],
        (Request::Txn(it), None) => [true, false].map(|succeeded| branch(key, it, succeeded, None, revision)).to_vec(),
        (Request::Revoke { id }, _) => single(Some(Action::End(*id))),
        _ => return None,
    };
    Some(Step { called: operation.called, answered: operation.answered_at(), branches, operation: Some(nth) })
}

fn read(key: &Bytes, request: &RangeRequest, answer: &RangeResponse) -> Option<Action> {
    let other = request.serializable || request.count_only || request.keys_only || request.revision > 0;
    if other || !covers(&request.key, &request.range_end, key) {
        return None;
    }
    let found = answer.kvs.iter().find(|kv| kv.key == *key);
    let beyond = answer.more && answer.kvs.last().is_none_or(|last| last.key < *key);
    (found.is_some() || !beyond).then(|| Action::Read(found.cloned()))
}

fn put(key: &Bytes, request: &PutRequest, answer: Option<&PutResponse>, revision: i64) -> Option<Action> {
    let found = answer.filter(|_| request.prev_kv).map(|answer| answer.prev_kv.clone());
    (request.key == *key).then(|| Action::Put { put: request.clone(), found, revision })
}

fn delete(key: &Bytes, request: &DeleteRangeRequest, answer: Option<&DeleteRangeResponse>) -> Option<Action> {
    if !covers(&request.key, &request.range_end, key) {
        return None;
    }
    let existed = answer.filter(|_| request.range_end.is_empty()).map(|answer| answer.deleted > 0);
    let told = answer.filter(|_| request.prev_kv);
    let found = told.map(|answer| answer.prev_kvs.iter().find(|kv| kv.key == *key).cloned());
    Some(Action::Delete { existed, found })
}

/// A transaction that took this branch, as one key sees it.
fn branch(key: &Bytes, request: &TxnRequest, succeeded: bool, answer: Option<&TxnResponse>, revision: i64) -> Branch {
    let here: Vec<Compare> = request.compare.iter().filter(|it| it.key == *key && it.range_end.is_empty()).cloned().collect();
    let condition = match (succeeded, here.len() == request.compare.len()) {
        (true, _) => Some(Condition::All(here)),
        (false, true) => Some(Condition::NotAll(here)),
        // Another key's condition may have failed.
        (false, false) => None,
    };
    let ops = if succeeded { &request.success } else { &request.failure };
    let actions = ops.iter().enumerate().filter_map(|(nth, op)| {
        let told = answer.and_then(|answer| answer.responses.get(nth)?.response.as_ref());
        match (op.request.as_ref()?, told) {
            (Op::RequestRange(it), Some(OpAnswer::ResponseRange(answer))) => read(key, it, answer),
            (Op::RequestPut(it), Some(OpAnswer::ResponsePut(answer))) => put(key, it, Some(answer), revision),
            (Op::RequestPut(it), _) => put(key, it, None, revision),
            (Op::RequestDeleteRange(it), Some(OpAnswer::ResponseDeleteRange(answer))) => delete(key, it, Some(answer)),
            (Op::RequestDeleteRange(it), _) => delete(key, it, None),
            _ => None,
        }
    });
    let actions = actions.collect();
    let conditions = condition.into_iter().filter(|it| !matches!(it, Condition::All(here) if here.is_empty())).collect();
    Branch { conditions, actions }
}

/// Whether a register can be what somebody was told; then it is known better.
fn learn(register: &Register, told: &Register) -> Option<Register> {
    match (register, told) {
        (None, None) => Some(None),
        (Some(it), Some(told)) => {
            let known = |it: i64, told: i64| it == 0 || it == told;
            let fits = it.value == told.value
                && it.lease == told.lease
                && it.version == told.version
                && known(it.mod_revision, told.mod_revision)
                && known(it.create_revision, told.create_revision);
            fits.then(|| Some(told.clone()))
        }
        _ => None,
    }
}

/// Whether a condition holds; `None` when a revision that it asks for is not known.
fn holds(compare: &Compare, register: &Register) -> Option<bool> {
    let Some(kv) = register else {
        return Some(compare.target() != CompareTarget::Value && compares(compare, &KeyValue::default()));
    };
    let unknown = match compare.target() {
        CompareTarget::Mod => kv.mod_revision == 0,
        CompareTarget::Create => kv.create_revision == 0,
        _ => false,
    };
    (!unknown).then(|| compares(compare, kv))
}

impl Condition {
    fn may_hold(&self, register: &Register) -> bool {
        match self {
            Self::All(compares) => compares.iter().all(|it| holds(it, register) != Some(false)),
            Self::NotAll(compares) => compares.iter().any(|it| holds(it, register) != Some(true)),
        }
    }
}

impl Action {
    /// The register after it; `None` if it cannot have gone so.
    fn apply(&self, register: &Register) -> Option<Register> {
        match self {
            Self::Read(told) => learn(register, told),
            Self::Put { put, found, revision } => {
                let before = found.as_ref().map_or_else(|| Some(register.clone()), |told| learn(register, told))?;
                let old = before.as_ref();
                Some(Some(KeyValue {
                    key: put.key.clone(),
                    create_revision: old.map_or(*revision, |kv| kv.create_revision),
                    mod_revision: *revision,
                    version: old.map_or(0, |kv| kv.version) + 1,
                    value: match old {
                        Some(old) if put.ignore_value => old.value.clone(),
                        _ => put.value.clone(),
                    },
                    lease: match old {
                        Some(old) if put.ignore_lease => old.lease,
                        _ => put.lease,
                    },
                }))
            }
            Self::Delete { existed, found } => {
                let before = found.as_ref().map_or_else(|| Some(register.clone()), |told| learn(register, told))?;
                existed.is_none_or(|existed| existed == before.is_some()).then_some(None)
            }
            Self::End(lease) => Some(register.clone().filter(|kv| kv.lease != *lease)),
        }
    }
}

impl Step {
    /// What each of the possible registers may have become.
    fn apply(&self, registers: &[Register]) -> Vec<Register> {
        let mut after: Vec<Register> = Vec::new();
        for register in registers {
            for branch in &self.branches {
                if !branch.conditions.iter().all(|condition| condition.may_hold(register)) {
                    continue;
                }
                let end = branch.actions.iter().try_fold(register.clone(), |register, action| action.apply(&register));
                if let Some(end) = end
                    && !after.contains(&end)
                {
                    after.push(end);
                }
            }
        }
        after
    }
}

/// Which steps are in the order so far: all below `whole`, and those of the bits from there on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Taken {
    whole: usize,
    bits: Vec<u64>,
}

impl Taken {
    fn has(&self, nth: usize) -> bool {
        nth < self.whole || {
            let at = nth - self.whole;
            self.bits.get(at / 64).is_some_and(|word| word >> (at % 64) & 1 == 1)
        }
    }

    fn with(&self, nth: usize) -> Self {
        let mut next = self.clone();
        let at = nth - self.whole;
        if next.bits.len() <= at / 64 {
            next.bits.resize(at / 64 + 1, 0);
        }
        next.bits[at / 64] |= 1 << (at % 64);
        let full = next.bits.iter().take_while(|word| **word == u64::MAX).count();
        next.bits.drain(..full);
        next.whole += full * 64;
        next
    }
}

/// A place in the search: what may come next, and where it goes on from here.
struct Node {
    taken: Taken,
    registers: Vec<Register>,
    next: Vec<usize>,
}

struct Search<'a> {
    /// Those that must be in the order, by call, then those that may be.
    steps: Vec<&'a Step>,
    required: usize,
}

impl<'a> Search<'a> {
    fn new(steps: &'a [Step]) -> Self {
        let mut ordered: Vec<&Step> = steps.iter().filter(|step| step.answered.is_some()).collect();
        let required = ordered.len();
        ordered.sort_by_key(|step| step.called);
        ordered.extend(steps.iter().filter(|step| step.answered.is_none()));
        Self { steps: ordered, required }
    }

    fn run(&self) -> Result<(), String> {
        let mut seen: HashSet<(Taken, Vec<Register>)> = HashSet::new();
        let first = Taken::default();
        let next = self.candidates(&first);
        let mut path = vec![Node { taken: first, registers: vec![None], next }];
        let mut deepest = (0, String::from("nothing fits"));
        for _ in 0..STEPS_MAX {
            let depth = path.len();
            let Some(node) = path.last_mut() else { return Err(deepest.1) };
            if self.is_whole(&node.taken) {
                return Ok(());
            }
            let Some(nth) = node.next.pop() else {
                path.pop();
                continue;
            };
            let registers = self.steps[nth].apply(&node.registers);
            if registers.is_empty() {
                if depth > deepest.0 {
                    deepest = (depth, format!("after {} operations it is {:?}", depth - 1, node.registers));
                }
                continue;
            }
            let taken = node.taken.with(nth);
            if seen.insert((taken.clone(), registers.clone())) {
                let next = self.candidates(&taken);
                path.push(Node { taken, registers, next });
            }
        }
        Err(format!("no order was found in {STEPS_MAX} steps"))
    }

    fn is_whole(&self, taken: &Taken) -> bool {
        (taken.whole..self.required).all(|nth| taken.has(nth))
    }

    /// What may be next: what was called before the first of the others was answered. The last is tried first.
    fn candidates(&self, taken: &Taken) -> Vec<usize> {
        let mut first_answer = u64::MAX;
        let mut found = Vec::new();
        for nth in taken.whole.min(self.required)..self.required {
            let step = self.steps[nth];
            if step.called > first_answer {
                break;
            }
            if !taken.has(nth) {
                first_answer = first_answer.min(step.answered.unwrap_or(u64::MAX));
                found.push(nth);
            }
        }
        found.retain(|nth| self.steps[*nth].called <= first_answer);
        let optional = self.required.max(taken.whole)..self.steps.len();
        let optional = optional.filter(|nth| !taken.has(*nth) && self.steps[*nth].called <= first_answer);
        let mut candidates: Vec<usize> = optional.collect();
        candidates.extend(found.into_iter().rev());
        candidates
    }
}

fn failure(key: &Bytes, steps: &[Step], operations: &[Operation], why: &str) -> Violation {
    let mut told: Vec<String> =
        steps.iter().filter_map(|step| Some(super::explain::show(operations.get(step.operation?)?))).collect();
    let count = told.len();
    told.truncate(40);
    let how = format!("{}: {why}; its {count} operations: {}", shown(key), told.join("; "));
    Violation { promise: PROMISE, how }
}
