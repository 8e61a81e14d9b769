//! Join tokens, and the authorities that members trust.

use bytes::Bytes;
use kvasir_api::command::{AuthoritySet, Command, Stamp, TokenCreate, TokenRemove, TokenUse, command::Body};
use kvasir_api::{Error, limits};

use super::harness::*;
use crate::{Reply, TokenUsed};

/// Makes a token whose secret has hash `[id; 32]`, good for a minute.
pub(super) fn create(machine: &mut Machine, id: u8) -> Reply {
    machine.run(create_body(id))
}

fn create_body(id: u8) -> Body {
    Body::TokenCreate(TokenCreate { id: id.into(), secret_hash: vec![id; 32].into(), ttl_ms: 60_000 })
}

pub(super) fn use_it(machine: &mut Machine, id: u8, key: u8, joined: bool) -> Reply {
    machine.run(use_body(id, id, key, joined))
}

fn use_body(id: u8, secret: u8, key: u8, joined: bool) -> Body {
    let (secret_hash, key_hash) = (vec![secret; 32].into(), vec![key; 32].into());
    Body::TokenUse(TokenUse { id: id.into(), secret_hash, key_hash, joined })
}

pub(super) fn set_authorities(machine: &mut Machine, expect_epoch: u64, roots: &[&[u8]], signing: u32) -> Reply {
    let roots = roots.iter().map(|root| Bytes::copy_from_slice(root)).collect();
    machine.run(Body::AuthoritySet(AuthoritySet { expect_epoch, roots, signing }))
}

fn at(machine: &mut Machine, wall_ms: u64, body: Body) -> Reply {
    let stamp = Some(Stamp { cluster_ms: machine.cluster_ms, wall_ms });
    let command = Command { stamp, ..machine.command(body) };
    machine.apply(command)
}

fn node(reply: Reply) -> (u64, bool) {
    match reply {
        Reply::TokenUse { node_id, joined, .. } => (node_id, joined),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_token_gives_one_key_one_node_id_the_index_of_the_entry() {
    let mut machine = Machine::new();
    assert!(matches!(create(&mut machine, 1), Reply::TokenCreate { expires_wall_ms: 60_000, .. }));
    assert_eq!(machine.state.revision(), 1, "tokens bump no revision");
    assert_eq!(node(use_it(&mut machine, 1, 7, false)), (2, false));
    // The answer was lost: the same key gets the same id.
    assert_eq!(node(use_it(&mut machine, 1, 7, false)), (2, false));
    machine.assert_restorable();
    assert!(matches!(error_of(use_it(&mut machine, 1, 8, false)), Error::Precondition(why) if why.contains("another node")));
    // It has joined: whoever asks again learns so.
    assert_eq!(node(use_it(&mut machine, 1, 7, true)), (2, false));
    assert_eq!(node(use_it(&mut machine, 1, 7, false)), (2, true));
    let token = *machine.state.tokens().next().unwrap();
    assert_eq!(token.used, TokenUsed::By { key_hash: [7; 32], node_id: 2, joined: true });
    machine.assert_restorable();
}

#[test]
fn a_token_that_is_unknown_removed_or_with_another_secret_is_refused_in_the_same_words() {
    let mut machine = Machine::new();
    create(&mut machine, 1);
    let wrong_secret = error_of(machine.run(use_body(1, 2, 7, false)));
    let unknown = error_of(use_it(&mut machine, 5, 7, false));
    assert_eq!(wrong_secret, unknown);
    assert!(matches!(&unknown, Error::Missing(why) if why.contains("kvasir token create")), "{unknown}");
    let remove = |machine: &mut Machine| machine.run(Body::TokenRemove(TokenRemove { id: 1 }));
    assert!(matches!(remove(&mut machine), Reply::TokenRemove { .. }));
    assert_eq!(error_of(use_it(&mut machine, 1, 7, false)), unknown);
    assert!(matches!(error_of(remove(&mut machine)), Error::Missing(_)));
    machine.assert_restorable();
}

#[test]
fn a_tokens_time_is_wall_time_and_the_next_token_sweeps_those_that_are_over() {
    let mut machine = Machine::new();
    at(&mut machine, 1_000, create_body(1));
    at(&mut machine, 2_000, create_body(2));
    assert_eq!(node(at(&mut machine, 60_999, use_body(1, 1, 7, false))).0, 3);
    // Its own user neither.
    let over = error_of(at(&mut machine, 61_000, use_body(1, 1, 7, false)));
    assert!(matches!(over, Error::Precondition(why) if why.contains("time is over")));
    at(&mut machine, 61_000, create_body(3));
    assert_eq!(machine.state.tokens().map(|token| token.id).collect::<Vec<_>>(), [2, 3]);
    machine.assert_restorable();
}

#[test]
fn tokens_that_cannot_be_are_refused_and_there_are_not_too_many() {
    let mut machine = Machine::new();
    let good = TokenCreate { id: 1, secret_hash: vec![1; 32].into(), ttl_ms: 1 };
    for bad in [
        TokenCreate { id: 0, ..good.clone() },
        TokenCreate { secret_hash: bytes("short"), ..good.clone() },
        TokenCreate { ttl_ms: 0, ..good.clone() },
        TokenCreate { ttl_ms: limits::JOIN_TOKEN_TTL_S_MAX * 1_000 + 1, ..good.clone() },
    ] {
        assert!(matches!(error_of(machine.run(Body::TokenCreate(bad))), Error::Invalid(_)));
    }
    for id in 1..=limits::JOIN_TOKENS_MAX as u64 {
        let reply = machine.run(Body::TokenCreate(TokenCreate { id, ..good.clone() }));
        assert!(matches!(reply, Reply::TokenCreate { .. }));
    }
    assert!(matches!(error_of(machine.run(Body::TokenCreate(good.clone()))), Error::Precondition(_)));
    let more = TokenCreate { id: 5_000, ..good };
    assert!(matches!(error_of(machine.run(Body::TokenCreate(more))), Error::Exhausted(_)));
    let bad_key = TokenUse { id: 1, secret_hash: vec![1; 32].into(), key_hash: bytes("short"), joined: false };
    assert!(matches!(error_of(machine.run(Body::TokenUse(bad_key))), Error::Invalid(_)));
    machine.assert_restorable();
}

#[test]
fn authorities_change_one_step_at_a_time() {
    let mut machine = Machine::new();
    assert!(machine.state.authorities().is_none());
    assert!(matches!(set_authorities(&mut machine, 0, &[b"old", b"new"], 0), Reply::AuthoritySet { epoch: 1, .. }));
    machine.assert_restorable();
    let stale = error_of(set_authorities(&mut machine, 0, &[b"other"], 0));
    assert!(matches!(stale, Error::Precondition(why) if why.contains("epoch 1, not 0")));
    let large = vec![0; limits::AUTHORITY_BYTES_MAX + 1];
    for (roots, signing) in [(&[][..], 0), (&[&b"a"[..]], 1), (&[b"a", b"b", b"c"], 0), (&[b""], 0), (&[&large], 0)] {
        assert!(matches!(error_of(set_authorities(&mut machine, 1, roots, signing)), Error::Invalid(_)));
    }
    assert!(matches!(set_authorities(&mut machine, 1, &[b"old", b"new"], 1), Reply::AuthoritySet { epoch: 2, .. }));
    let authorities = machine.state.authorities().unwrap();
    assert_eq!((&authorities.roots[authorities.signing][..], authorities.epoch), (&b"new"[..], 2));
    machine.assert_restorable();
}
