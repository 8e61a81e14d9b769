//! Small histories, right ones and wrong ones: each checker must let the first pass and name the promise that the second breaks.

use bytes::Bytes;
use kvasir_api::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use kvasir_api::etcdserverpb::request_op::Request as Op;
use kvasir_api::etcdserverpb::response_op::Response as OpAnswer;
use kvasir_api::etcdserverpb::{
    Compare, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, RequestOp,
    ResponseHeader, ResponseOp, TxnRequest, TxnResponse,
};
use kvasir_api::mvccpb::{Event, KeyValue};

use super::*;

fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader { revision, ..ResponseHeader::default() })
}

fn kv(key: &str, value: &str, create: i64, modified: i64, version: i64) -> KeyValue {
    KeyValue {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        create_revision: create,
        mod_revision: modified,
        version,
        lease: 0,
    }
}

fn done(span: (u64, u64), request: Request, response: Response) -> Operation {
    Operation { client: 1, called: span.0, request, outcome: Outcome::Answered { at: span.1, response } }
}

fn lost(called: u64, request: Request) -> Operation {
    Operation { client: 2, called, request, outcome: Outcome::Unknown }
}

fn put_of(key: &str, value: &str) -> PutRequest {
    PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..PutRequest::default() }
}

fn put(span: (u64, u64), key: &str, value: &str, revision: i64) -> Operation {
    let response = PutResponse { header: header(revision), prev_kv: None };
    done(span, Request::Put(put_of(key, value)), Response::Put(response))
}

fn leased(span: (u64, u64), key: &str, lease: i64, revision: i64) -> Operation {
    let request = PutRequest { lease, ..put_of(key, "leased") };
    done(span, Request::Put(request), Response::Put(PutResponse { header: header(revision), prev_kv: None }))
}

fn delete(span: (u64, u64), key: &str, deleted: i64, revision: i64) -> Operation {
    let request = DeleteRangeRequest { key: key.to_owned().into(), ..DeleteRangeRequest::default() };
    let response = DeleteRangeResponse { header: header(revision), deleted, prev_kvs: Vec::new() };
    done(span, Request::Delete(request), Response::Delete(response))
}

fn get(span: (u64, u64), key: &str, found: Option<KeyValue>, revision: i64) -> Operation {
    let request = RangeRequest { key: key.to_owned().into(), ..RangeRequest::default() };
    let count = i64::from(found.is_some());
    let response = RangeResponse { header: header(revision), kvs: found.into_iter().collect(), more: false, count };
    done(span, Request::Range(request), Response::Range(response))
}

/// Puts `value` if the key was last changed at `expected`.
fn swap_of(key: &str, expected: i64, value: &str) -> TxnRequest {
    let compare = Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Mod.into(),
        key: key.to_owned().into(),
        target_union: Some(TargetUnion::ModRevision(expected)),
        ..Compare::default()
    };
    let put = RequestOp { request: Some(Op::RequestPut(put_of(key, value))) };
    TxnRequest { compare: vec![compare], success: vec![put], failure: Vec::new() }
}

fn swap(span: (u64, u64), key: &str, expected: i64, value: &str, succeeded: bool, revision: i64) -> Operation {
    let answer = ResponseOp { response: Some(OpAnswer::ResponsePut(PutResponse::default())) };
    let responses = if succeeded { vec![answer] } else { Vec::new() };
    let response = TxnResponse { header: header(revision), succeeded, responses };
    done(span, Request::Txn(swap_of(key, expected, value)), Response::Txn(response))
}

fn grant(span: (u64, u64), id: i64, ttl: i64) -> Operation {
    done(span, Request::Grant { id, ttl }, Response::Lease { header: None, ttl })
}

fn keep_alive(span: (u64, u64), id: i64, ttl: i64) -> Operation {
    done(span, Request::KeepAlive { id }, Response::Lease { header: None, ttl })
}

/// The events that these requests make, each with a revision of its own.
fn events_of(requests: &[Request]) -> Vec<Event> {
    let mut keys = Keys::default();
    let mut events = Vec::new();
    for (nth, request) in requests.iter().enumerate() {
        events.extend(keys.execute(request, nth as i64 + 2).0);
    }
    events
}

fn timeline_of(requests: &[Request]) -> Timeline {
    Timeline::new(events_of(requests), None).expect("a model follows its own rules")
}

fn all(operations: &[Operation], timeline: &Timeline) -> Result<Explained, Violation> {
    check(operations, timeline, &[], None, |_| false)
}

fn promise<T: std::fmt::Debug>(result: Result<T, Violation>) -> &'static str {
    result.expect_err("a promise is broken").promise
}

fn request(operation: &Operation) -> Request {
    operation.request.clone()
}

#[test]
fn a_right_history_passes() {
    let operations = [
        put((1, 4), "a", "1", 2),
        get((5, 6), "a", Some(kv("a", "1", 2, 2, 1)), 2),
        put((7, 9), "a", "2", 3),
        // Concurrent with the put before, and served first.
        get((8, 10), "a", Some(kv("a", "1", 2, 2, 1)), 2),
        swap((11, 12), "a", 2, "3", false, 3),
        swap((13, 14), "a", 3, "3", true, 4),
        delete((15, 16), "a", 1, 5),
        delete((17, 18), "a", 0, 5),
        get((19, 20), "a", None, 5),
    ];
    let timeline = timeline_of(&[0, 2, 5, 6].map(|nth| request(&operations[nth])));
    let explained = all(&operations, &timeline).expect("it keeps every promise");
    assert_eq!([0, 1, 2, 5, 6].map(|nth| explained.made(nth)), [Some(2), None, Some(3), Some(4), Some(5)]);
    linearizable(&operations, None).expect("without revisions, too");
}

#[test]
fn a_stale_read_is_found_by_both() {
    let operations = [put((1, 2), "a", "1", 2), put((3, 4), "a", "2", 3), get((5, 6), "a", Some(kv("a", "1", 2, 2, 1)), 2)];
    let timeline = timeline_of(&[request(&operations[0]), request(&operations[1])]);
    assert_eq!(promise(all(&operations, &timeline)), "revisions follow real time");
    assert_eq!(promise(linearizable(&operations, None)), "each key is linearizable");
    // A member may serve it so if it was asked for what it has.
    let mut serializable = operations;
    if let Request::Range(range) = &mut serializable[2].request {
        range.serializable = true;
    }
    all(&serializable, &timeline).expect("a serializable read may be old");
}

#[test]
fn a_serializable_read_of_what_never_was_is_found() {
    let mut read = get((5, 6), "a", Some(kv("a", "9", 2, 2, 1)), 2);
    if let Request::Range(range) = &mut read.request {
        range.serializable = true;
    }
    let operations = [put((1, 2), "a", "1", 2), read];
    let timeline = timeline_of(&[request(&operations[0])]);
    assert_eq!(promise(all(&operations, &timeline)), "answers are what the request gets at its revision");
}

#[test]
fn an_acknowledged_write_that_is_gone_is_found() {
    let operations = [put((1, 2), "a", "1", 2), put((3, 4), "a", "2", 3)];
    let timeline = timeline_of(&[request(&operations[0])]);
    assert_eq!(promise(all(&operations, &timeline)), "what was acknowledged is there");
    // Somebody else's write has its revision.
    let other = lost(1, Request::Put(put_of("b", "x")));
    let timeline = timeline_of(&[request(&operations[0]), request(&other)]);
    let operations = [operations[0].clone(), operations[1].clone(), other];
    assert_eq!(promise(all(&operations, &timeline)), "what was acknowledged is there");
}

#[test]
fn a_write_of_unknown_fate_may_happen_late_or_never_but_not_twice_and_not_before_it_was_sent() {
    let unknown = lost(3, Request::Put(put_of("a", "late")));
    let first = put((1, 2), "a", "1", 2);
    let never = [first.clone(), unknown.clone(), get((5, 6), "a", Some(kv("a", "1", 2, 2, 1)), 2)];
    all(&never, &timeline_of(&[request(&first)])).expect("it may never happen");
    let late = [never[0].clone(), never[1].clone(), never[2].clone(), get((7, 8), "a", Some(kv("a", "late", 2, 3, 2)), 3)];
    all(&late, &timeline_of(&[request(&first), request(&unknown)])).expect("it may happen after others have read");
    let twice = timeline_of(&[request(&first), request(&unknown), request(&unknown)]);
    assert_eq!(promise(all(&late, &twice)), "each revision is one whole request");
    let early = [lost(9, Request::Put(put_of("a", "early"))), get((5, 6), "a", Some(kv("a", "early", 2, 2, 1)), 2)];
    // Who is sent after a revision was seen has not made it, so nobody has.
    assert_eq!(promise(all(&early, &timeline_of(&[request(&early[0])]))), "each revision is one whole request");
    assert_eq!(promise(linearizable(&early, None)), "each key is linearizable");
}

#[test]
fn a_refused_write_that_happened_is_found() {
    let mut refused = lost(1, Request::Put(put_of("a", "1")));
    refused.outcome = Outcome::Refused;
    let timeline = timeline_of(&[request(&refused)]);
    assert_eq!(promise(all(&[refused], &timeline)), "each revision is one whole request");
}

#[test]
fn half_a_transaction_is_found() {
    let two = TxnRequest {
        success: ["a", "b"].map(|key| RequestOp { request: Some(Op::RequestPut(put_of(key, "1"))) }).to_vec(),
        ..TxnRequest::default()
    };
    let operations = [lost(1, Request::Txn(two))];
    all(&operations, &timeline_of(&[request(&operations[0])])).expect("whole");
    let half = timeline_of(&[Request::Put(put_of("a", "1"))]);
    assert_eq!(promise(all(&operations, &half)), "each revision is one whole request");
}

#[test]
fn a_swap_that_saw_what_it_should_not_is_found_by_both() {
    let operations = [put((1, 2), "a", "1", 2), put((3, 4), "a", "2", 3), swap((5, 6), "a", 2, "3", true, 4)];
    let timeline = timeline_of(&[0, 1].map(|nth| request(&operations[nth])));
    let mut events: Vec<Event> = timeline.revisions().flat_map(|(_, events)| events.to_vec()).collect();
    events.push(Event { kv: Some(kv("a", "3", 2, 4, 3)), ..Event::default() });
    let timeline = Timeline::new(events, None).expect("each event is right by itself");
    assert_eq!(promise(all(&operations, &timeline)), "answers are what the request gets at its revision");
    assert_eq!(promise(linearizable(&operations, None)), "each key is linearizable");
}

#[test]
fn two_reads_that_see_two_writes_in_two_orders_are_found() {
    let operations = [
        lost(1, Request::Put(put_of("a", "1"))),
        lost(1, Request::Put(put_of("a", "2"))),
        get((2, 3), "a", Some(kv("a", "1", 2, 2, 1)), 2),
        get((4, 5), "a", Some(kv("a", "2", 2, 3, 2)), 3),
        get((6, 7), "a", Some(kv("a", "1", 2, 2, 1)), 2),
    ];
    linearizable(&operations[..4], None).expect("one order is right");
    assert_eq!(promise(linearizable(&operations, None)), "each key is linearizable");
}

#[test]
fn many_concurrent_writers_are_searched_in_time() {
    // Twelve writers whose writes all overlap, and readers who tell the order in the end.
    let mut operations = Vec::new();
    let mut requests = Vec::new();
    for round in 0..40i64 {
        for writer in 0..12i64 {
            let nth = round * 12 + writer;
            let span = (round as u64 * 100 + writer as u64, round as u64 * 100 + 90);
            operations.push(put(span, "a", &nth.to_string(), nth + 2));
            requests.push(Request::Put(put_of("a", &nth.to_string())));
        }
        let last = round * 12 + 11;
        let seen = kv("a", &last.to_string(), 2, last + 2, last + 1);
        operations.push(get((round as u64 * 100 + 95, round as u64 * 100 + 98), "a", Some(seen), last + 2));
    }
    all(&operations, &timeline_of(&requests)).expect("they are in order");
}

#[test]
fn timelines_with_gaps_and_wrong_events_are_refused() {
    let events = events_of(&[Request::Put(put_of("a", "1")), Request::Put(put_of("a", "2"))]);
    let mut gap = events.clone();
    gap.remove(0);
    assert_eq!(promise(Timeline::new(gap, None)), "revisions are dense and in order");
    let mut wrong = events.clone();
    wrong[1].kv.as_mut().expect("a key").version = 7;
    assert_eq!(promise(Timeline::new(wrong, None)), "events are what etcd's rules make of the writes before");
    let mut wrong = events.clone();
    wrong[1].prev_kv = Some(kv("a", "0", 2, 2, 1));
    assert_eq!(promise(Timeline::new(wrong, None)), "events are what etcd's rules make of the writes before");
    assert_eq!(
        promise(Timeline::new(events, Some(&Keys::default()))),
        "events are what etcd's rules make of the writes before"
    );
}

#[test]
fn leases_end_with_all_their_keys_and_never_early() {
    const S: u64 = 1_000_000_000;
    let operations = |gone_at: u64| {
        vec![
            grant((S, 2 * S), 7, 5),
            leased((3 * S, 3 * S + 1), "a", 7, 2),
            leased((3 * S, 3 * S + 1), "b", 7, 3),
            keep_alive((4 * S, 4 * S + 1), 7, 5),
            get((gone_at - 1, gone_at), "a", None, 4),
        ]
    };
    let ended: Vec<Request> = vec![request(&operations(S)[1]), request(&operations(S)[2]), Request::Revoke { id: 7 }];
    let timeline = timeline_of(&ended);
    let explained = all(&operations(9 * S + 1), &timeline).expect("it lived from 4 s to 9 s");
    assert_eq!(explained.ended(), [(7, 4)]);
    assert_eq!(promise(all(&operations(8 * S), &timeline)), "leases never end early");
    let mut revoked = operations(8 * S);
    revoked.push(lost(5 * S, Request::Revoke { id: 7 }));
    all(&revoked, &timeline).expect("somebody asked for its end");
    let mut half = events_of(&ended);
    half.pop();
    let half = Timeline::new(half, None).expect("each event is right by itself");
    assert_eq!(promise(all(&operations(9 * S + 1), &half)), "each revision is one whole request");
}

#[test]
fn a_lost_delete_that_looks_like_the_end_of_a_lease_is_not_taken_for_one() {
    const S: u64 = 1_000_000_000;
    let delete = DeleteRangeRequest { key: "a".into(), ..DeleteRangeRequest::default() };
    let mut operations = vec![
        grant((S, 2 * S), 7, 5),
        leased((3 * S, 3 * S + 1), "a", 7, 2),
        lost(4 * S, Request::Delete(delete.clone())),
        put((5 * S, 5 * S + 1), "a", "1", 4),
        lost(6 * S, Request::Delete(delete.clone())),
        get((7 * S, 7 * S + 1), "a", None, 5),
        keep_alive((8 * S, 8 * S + 1), 7, 5),
    ];
    let delete = Request::Delete(delete);
    let timeline = timeline_of(&[request(&operations[1]), delete.clone(), request(&operations[3]), delete]);
    let explained = all(&operations, &timeline).expect("each delete has its request, and the lease lives on");
    assert_eq!((explained.made(2), explained.made(4), explained.ended()), (Some(3), Some(5), &[][..]));
    // With one request less there is nothing but the lease to explain the first.
    operations.remove(2);
    assert_eq!(promise(all(&operations, &timeline)), "leases never end early");
}

#[test]
fn a_lease_that_its_keeper_finds_gone_too_early_is_found() {
    const S: u64 = 1_000_000_000;
    let operations = [grant((S, 2 * S), 7, 5), keep_alive((3 * S, 4 * S), 7, 0)];
    assert_eq!(promise(all(&operations, &timeline_of(&[]))), "leases never end early");
    let operations = [grant((S, 2 * S), 7, 5), keep_alive((3 * S, 6 * S), 7, 0)];
    all(&operations, &timeline_of(&[])).expect("it had its time");
}

/// Three revisions; the second is of two keys.
fn watchable() -> Timeline {
    let two = TxnRequest {
        success: ["a", "b"].map(|key| RequestOp { request: Some(Op::RequestPut(put_of(key, "2"))) }).to_vec(),
        ..TxnRequest::default()
    };
    timeline_of(&[Request::Put(put_of("a", "1")), Request::Txn(two), Request::Put(put_of("c", "3"))])
}

fn batch(timeline: &Timeline, revisions: std::ops::RangeInclusive<i64>) -> Batch {
    let revision = *revisions.end();
    Batch { revision, events: revisions.flat_map(|at| timeline.at(at)).cloned().collect() }
}

fn watch(streams: Vec<(i64, Vec<Batch>)>) -> Watched {
    Watched { name: "w".to_owned(), key: Bytes::from_static(&[0]), range_end: Bytes::from_static(&[0]), prev_kv: true, streams }
}

#[test]
fn a_watch_that_is_resumed_where_it_was_passes() {
    let timeline = watchable();
    let whole = watch(vec![(2, vec![batch(&timeline, 2..=4)])]);
    watched(&whole, &timeline, Some(4)).expect("in one piece");
    let pieces = watch(vec![(2, vec![batch(&timeline, 2..=2)]), (3, vec![batch(&timeline, 3..=4)])]);
    watched(&pieces, &timeline, Some(4)).expect("in two");
    assert_eq!(pieces.resume_from(), Some(5));
    let mut idle = watch(vec![(2, vec![Batch { revision: 4, events: Vec::new() }]), (5, Vec::new())]);
    idle.key = Bytes::from_static(b"nobody");
    idle.range_end = Bytes::new();
    watched(&idle, &timeline, Some(4)).expect("a notice of progress says that nothing came");
}

#[test]
fn watches_that_break_their_promises_are_found() {
    let timeline = watchable();
    let one = |change: &dyn Fn(&mut Vec<Batch>)| {
        let mut batches = vec![batch(&timeline, 2..=2), batch(&timeline, 3..=3), batch(&timeline, 4..=4)];
        change(&mut batches);
        watched(&watch(vec![(2, batches)]), &timeline, Some(4))
    };
    one(&|_| {}).expect("unchanged it is right");
    assert_eq!(promise(one(&|it| it.swap(0, 1))), "watches are complete");
    assert_eq!(promise(one(&|it| drop(it.remove(1)))), "watches are complete");
    assert_eq!(promise(one(&|it| drop(it.remove(2)))), "watches are complete");
    let again = "watches are ordered, and tell each event once, each revision whole";
    assert_eq!(promise(one(&|it| it.insert(1, it[0].clone()))), again);
    assert_eq!(promise(one(&|it| drop(it[1].events.pop()))), "watches tell each revision whole");
    let torn = |it: &mut Vec<Batch>| {
        let event = it[1].events.remove(0);
        it.insert(1, Batch { revision: 3, events: vec![event] });
    };
    assert_eq!(promise(one(&torn)), "watches tell each revision whole");
    assert_eq!(promise(one(&|it| it[1].events[0].prev_kv = None)), "watches tell the previous value");
    assert_eq!(
        promise(one(&|it| it[2].events[0].kv = Some(kv("c", "4", 4, 4, 1)))),
        "watches are ordered, complete, and tell what happened"
    );
    assert_eq!(promise(one(&|it| it[2].revision = 3)), "watches tell what happened");
    let early = watch(vec![(3, vec![batch(&timeline, 2..=4)])]);
    assert_eq!(promise(watched(&early, &timeline, Some(4))), "watches begin where they were asked to");
    let skipped = watch(vec![(2, vec![batch(&timeline, 2..=2)]), (4, vec![batch(&timeline, 4..=4)])]);
    assert_eq!(promise(watched(&skipped, &timeline, Some(4))), "watches are resumed where they were");
    let progress = watch(vec![(2, vec![batch(&timeline, 2..=2), Batch { revision: 3, events: Vec::new() }])]);
    assert_eq!(promise(watched(&progress, &timeline, None)), "watches are complete");
}
