//! Slices against the whole: the state answers the same range under one hold of its lock.

use std::collections::BTreeMap;

use kvasir_api::command::command::Body;
use kvasir_api::command::{Command, Stamp};
use kvasir_api::etcdserverpb::{CompactionRequest, DeleteRangeRequest, PutRequest};
use kvasir_machine::{COMMAND_VERSION, Effects, EntryId, Rev};

use super::*;

/// xorshift64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

struct Machine {
    state: State,
    index: u64,
    values: BTreeMap<Rev, Bytes>,
}

impl Machine {
    fn new() -> Self {
        Self { state: State::new(), index: 0, values: BTreeMap::new() }
    }

    fn run(&mut self, body: Body) {
        self.index += 1;
        let stamp = Some(Stamp { cluster_ms: 1, wall_ms: 1 });
        let command = Command { version: COMMAND_VERSION, stamp, body: Some(body), ..Command::default() };
        let mut effects = Effects::default();
        let entry = EntryId { index: self.index, term: 1, leader: 1 };
        self.state.apply(entry, &command, false, &mut effects);
        for change in effects.changes {
            self.values.insert(change.row.rev, change.row.value.clone());
        }
    }

    fn fill(&self, mut reply: RangeReply) -> RangeReply {
        reply.fill(&mut |rev| self.values.get(&rev).cloned().ok_or(())).expect("every row is kept");
        reply
    }

    fn sliced(&self, request: &RangeRequest, keys_max: usize) -> Result<RangeReply, Error> {
        let mut collect = Collect::new(0, request.clone());
        loop {
            let slice = collect.slice(&self.state, keys_max)?;
            if !collect.take(slice) {
                return Ok(self.fill(collect.finish()));
            }
        }
    }
}

fn key(random: &mut Random) -> Bytes {
    Bytes::from(format!("k{:02}", random.below(40)))
}

fn request(random: &mut Random, revision: u64) -> RangeRequest {
    let mut pick = |of: &[i64]| of[random.below(of.len() as u64) as usize];
    let (limit, order, target) = (pick(&[0, 0, 1, 3, 30]), pick(&[0, 1, 2]), pick(&[0, 0, 1, 2, 3, 4]));
    let filters: Vec<i64> = (0..4).map(|_| pick(&[0, 0, 0, 5, 20, 60])).collect();
    let (keys_only, count_only) = (pick(&[0, 0, 1]) == 1, pick(&[0, 0, 0, 1]) == 1);
    let revision = if random.below(2) == 0 { 0 } else { random.below(revision + 2) as i64 - 1 };
    let (key, range_end) = match random.below(4) {
        0 => (key(random), Bytes::new()),
        1 => (Bytes::from_static(b"\0"), Bytes::from_static(b"\0")),
        2 => (key(random), Bytes::from_static(b"\0")),
        _ => (key(random), key(random)),
    };
    RangeRequest {
        key,
        range_end,
        limit,
        revision,
        sort_order: order as i32,
        sort_target: target as i32,
        keys_only,
        count_only,
        min_mod_revision: filters[0],
        max_mod_revision: filters[1],
        min_create_revision: filters[2],
        max_create_revision: filters[3],
        ..RangeRequest::default()
    }
}

#[test]
fn slices_make_what_the_whole_range_is() {
    for seed in 1..=40 {
        let mut random = Random(u64::wrapping_mul(seed, 0x9e37_79b9_7f4a_7c15));
        let mut machine = Machine::new();
        for _ in 0..150 {
            let key = key(&mut random);
            if random.below(4) == 0 {
                machine.run(Body::DeleteRange(DeleteRangeRequest { key, ..DeleteRangeRequest::default() }));
            } else {
                // Few values, so that an order by value has equals.
                let value = Bytes::from(format!("v{}", random.below(5)));
                machine.run(Body::Put(PutRequest { key, value, ..PutRequest::default() }));
            }
        }
        if seed % 3 == 0 {
            machine.run(Body::Compact(CompactionRequest { revision: 30, physical: false }));
        }
        for _ in 0..300 {
            let request = request(&mut random, machine.state.revision());
            let keys_max = 1 + random.below(7) as usize;
            let whole = machine.state.range(0, &request).map(|reply| machine.fill(reply));
            assert_eq!(machine.sliced(&request, keys_max), whole, "seed {seed}: {request:?} in slices of {keys_max}");
        }
    }
}

#[test]
fn a_cut_order_keeps_little_and_is_the_whole_ones_beginning() {
    let mut machine = Machine::new();
    for n in 0..20_000u64 {
        let key = Bytes::from(format!("{:05}", n.wrapping_mul(7_919) % 20_000));
        machine.run(Body::Put(PutRequest { key, ..PutRequest::default() }));
    }
    let all = Bytes::from_static(b"\0");
    let request = RangeRequest {
        key: all.clone(),
        range_end: all,
        limit: 10,
        sort_order: SortOrder::Descend as i32,
        sort_target: SortTarget::Mod as i32,
        ..RangeRequest::default()
    };
    let mut collect = Collect::new(0, request.clone());
    loop {
        let slice = collect.slice(&machine.state, 1_000).expect("there");
        let more = collect.take(slice);
        assert!(collect.items.len() <= 2 * RANGE_SLICE_KEYS);
        if !more {
            break;
        }
    }
    assert_eq!(Ok(collect.finish()), machine.state.range(0, &request));
}

#[test]
fn a_compaction_between_two_slices_is_noticed() {
    let mut machine = Machine::new();
    for n in 0..10 {
        machine.run(Body::Put(PutRequest { key: Bytes::from(format!("{n}")), ..PutRequest::default() }));
    }
    let all = Bytes::from_static(b"\0");
    let request = RangeRequest { key: all.clone(), range_end: all, ..RangeRequest::default() };
    let mut collect = Collect::new(0, request.clone());
    let slice = collect.slice(&machine.state, 3).expect("there");
    assert!(collect.take(slice));
    machine.run(Body::Put(PutRequest { key: Bytes::from_static(b"0"), ..PutRequest::default() }));
    machine.run(Body::Compact(CompactionRequest { revision: 12, physical: false }));
    assert_eq!(collect.slice(&machine.state, 3).err(), Some(Error::Compacted));
}
