//! Components in pieces.

use bytes::Bytes;
use kvasir_api::command::{BlobChunk, command::Body};
use kvasir_api::{Error, limits};

use super::harness::*;
use crate::{Reply, Table};

const CHUNK: usize = limits::BLOB_CHUNK_BYTES;

fn chunk(mark: u8, index: u32, chunks: u32, total_bytes: usize, length: usize) -> Body {
    Body::BlobChunk(BlobChunk {
        digest: vec![mark; 32].into(),
        index,
        chunks,
        total_bytes: total_bytes as u64,
        data: vec![mark; length].into(),
    })
}

#[test]
fn pieces_come_in_order_and_the_last_makes_it_whole() {
    let mut machine = Machine::new();
    let total = 2 * CHUNK + 5;
    let received = |reply| match reply {
        Reply::BlobChunk { received, complete, .. } => (received, complete),
        other => panic!("{other:?}"),
    };
    assert!(matches!(error_of(machine.run(chunk(1, 1, 3, total, CHUNK))), Error::Precondition(_)));
    assert_eq!(received(machine.run(chunk(1, 0, 3, total, CHUNK))), (1, false));
    assert_eq!(received(machine.run(chunk(1, 0, 3, total, CHUNK))), (1, false), "sent again");
    assert_eq!(received(machine.run(chunk(1, 1, 3, total, CHUNK))), (2, false));
    machine.assert_restorable();
    assert!(matches!(error_of(machine.run(chunk(1, 2, 3, total, 4))), Error::Invalid(_)));
    assert_eq!(received(machine.run(chunk(1, 2, 3, total, 5))), (3, true));
    assert_eq!(received(machine.run(chunk(1, 2, 3, total, 5))), (3, true));
    let blob = machine.state.blob(&[1; 32]).unwrap();
    assert_eq!((blob.total_bytes, blob.complete), (total as u64, true));
    assert_eq!(machine.state.logical_bytes(), total as u64);
    let key = (Table::BlobChunk, Bytes::from(crate::blob_chunk_key(&[1; 32], 2)));
    assert_eq!(machine.tables[&key], vec![1; 5]);
    assert_eq!(machine.state.revision(), 1);
    machine.assert_restorable();
}

#[test]
fn sizes_that_do_not_add_up_are_refused() {
    let mut machine = Machine::new();
    let too_large = limits::COMPONENT_BYTES_MAX as usize + 1;
    for bad in [
        chunk(1, 0, 1, 0, 0),
        chunk(1, 0, 2, 10, 10),
        chunk(1, 0, 1, 10, 9),
        chunk(1, 0, 1, 10, 11),
        chunk(1, 0, too_large.div_ceil(CHUNK) as u32, too_large, CHUNK),
        Body::BlobChunk(BlobChunk { digest: bytes("short"), chunks: 1, total_bytes: 1, data: bytes("x"), index: 0 }),
    ] {
        assert!(matches!(error_of(machine.run(bad)), Error::Invalid(_)));
    }
    machine.run(chunk(1, 0, 2, CHUNK + 1, CHUNK));
    assert!(matches!(error_of(machine.run(chunk(1, 1, 2, CHUNK + 2, 2))), Error::Invalid(_)));
}

#[test]
fn only_a_few_components_that_nobody_uses_are_kept() {
    let mut machine = Machine::new();
    machine.install("p", 0);
    for mark in 100..100 + limits::BLOBS_UNUSED_MAX as u8 + 3 {
        machine.upload(mark);
    }
    let kept = (0..=255).filter(|mark| machine.state.blob(&[*mark; 32]).is_some()).count();
    assert_eq!(kept, limits::BLOBS_UNUSED_MAX + 1);
    assert!(machine.state.blob(&[1; 32]).is_some(), "the plugin's own");
    assert!(machine.state.blob(&[100; 32]).is_none(), "the oldest went");
    machine.assert_restorable();
}
