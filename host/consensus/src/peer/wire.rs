//! Raft's messages as bytes.
//!
//! A request to append is a header and its entries: `u32` length of the header, the header, then for each entry its kind (`u8`),
//! term, node and index (`u64` each), the length of its payload (`u32`) and the payload, all little-endian. Everything else is one
//! protobuf message; fields are only ever added.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kvasir_storage::log::EntryKind;
use openraft::raft::{AppendEntriesRequest, StreamAppendError, StreamAppendResult, VoteRequest, VoteResponse};
use prost::Message;

use crate::kinds::{Entry, Kinds, LogId, Vote, log_id_from, log_id_into, vote_from, vote_into};
use crate::log::{entry_from, entry_into};

/// Payloads up to this many bytes are copied into one buffer with their heads; longer ones go out as they lie in the log.
const COPIED_BYTES_MAX: usize = 4 * 1024;
const ENTRY_HEAD_BYTES: usize = 1 + 3 * 8 + 4;

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct WireLogId {
    #[prost(uint64, tag = "1")]
    term: u64,
    #[prost(uint64, tag = "2")]
    node: u64,
    #[prost(uint64, tag = "3")]
    index: u64,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct WireVote {
    #[prost(uint64, tag = "1")]
    term: u64,
    #[prost(uint64, tag = "2")]
    node: u64,
    #[prost(bool, tag = "3")]
    committed: bool,
}

#[derive(Clone, PartialEq, Message)]
struct AppendHeader {
    #[prost(message, optional, tag = "1")]
    vote: Option<WireVote>,
    #[prost(message, optional, tag = "2")]
    previous: Option<WireLogId>,
    #[prost(message, optional, tag = "3")]
    leader_commit: Option<WireLogId>,
    #[prost(uint32, tag = "4")]
    entries: u32,
}

#[derive(Clone, PartialEq, Message)]
struct AppendAnswer {
    /// What is flushed, when the entries were taken.
    #[prost(message, optional, tag = "1")]
    flushed: Option<WireLogId>,
    /// Where the logs differ.
    #[prost(message, optional, tag = "2")]
    conflict: Option<WireLogId>,
    /// The higher vote that was seen.
    #[prost(message, optional, tag = "3")]
    higher: Option<WireVote>,
}

/// What goes over a stream of class `Vote`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Ask {
    #[prost(oneof = "AskKind", tags = "1, 2, 3")]
    pub(super) kind: Option<AskKind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum AskKind {
    #[prost(message, tag = "1")]
    Vote(AskVote),
    #[prost(message, tag = "2")]
    PreVote(AskVote),
    #[prost(message, tag = "3")]
    Transfer(AskTransfer),
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct AskVote {
    #[prost(message, optional, tag = "1")]
    vote: Option<WireVote>,
    #[prost(message, optional, tag = "2")]
    last: Option<WireLogId>,
    #[prost(bool, tag = "3")]
    transfer: bool,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct AskTransfer {
    #[prost(message, optional, tag = "1")]
    from: Option<WireVote>,
    #[prost(uint64, tag = "2")]
    to: u64,
    #[prost(message, optional, tag = "3")]
    last: Option<WireLogId>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct AskAnswer {
    /// Answers a vote.
    #[prost(message, optional, tag = "1")]
    vote: Option<WireVote>,
    #[prost(bool, tag = "2")]
    pub(super) granted: bool,
    #[prost(message, optional, tag = "3")]
    last: Option<WireLogId>,
    /// Why a transfer was not taken; empty when it was.
    #[prost(string, tag = "4")]
    pub(super) refusal: String,
}

/// Opens a transfer of a snapshot; the file's bytes follow, if the receiver wants them.
#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct SnapshotOffer {
    #[prost(message, optional, tag = "1")]
    vote: Option<WireVote>,
    #[prost(message, optional, tag = "2")]
    last: Option<WireLogId>,
    #[prost(uint64, tag = "3")]
    pub(super) file_bytes: u64,
    /// Tells this file from every other of this sender.
    #[prost(uint64, tag = "4")]
    pub(super) file: u64,
}

/// Answers an offer, without a vote when the file is wanted, and then the file.
#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct SnapshotAnswer {
    /// The receiver's vote, when the file is installed or not wanted.
    #[prost(message, optional, tag = "1")]
    pub(super) vote: Option<WireVote>,
    /// Bytes of it that are here already.
    #[prost(uint64, tag = "2")]
    pub(super) have_bytes: u64,
}

pub(crate) fn invalid(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_string())
}

impl From<LogId> for WireLogId {
    fn from(id: LogId) -> Self {
        let id = log_id_into(id);
        Self { term: id.term, node: id.node, index: id.index }
    }
}

impl From<WireLogId> for LogId {
    fn from(id: WireLogId) -> Self {
        log_id_from(kvasir_storage::log::LogId { term: id.term, node: id.node, index: id.index })
    }
}

impl From<&Vote> for WireVote {
    fn from(vote: &Vote) -> Self {
        let vote = vote_into(vote);
        Self { term: vote.term, node: vote.node, committed: vote.committed }
    }
}

impl From<WireVote> for Vote {
    fn from(vote: WireVote) -> Self {
        vote_from(kvasir_storage::log::Vote { term: vote.term, node: vote.node, committed: vote.committed })
    }
}

fn required<T>(field: Option<T>, name: &str) -> io::Result<T> {
    field.ok_or_else(|| invalid(format!("a message without its {name}")))
}

pub(crate) fn message<M: Message + Default>(frame: Bytes) -> io::Result<M> {
    M::decode(frame).map_err(|error| invalid(format!("not a message of ours: {error}")))
}

/// A request to append, as the parts of a frame.
pub(super) fn encode_append(request: &AppendEntriesRequest<Kinds>) -> Vec<Bytes> {
    let header = AppendHeader {
        vote: Some(WireVote::from(&request.vote)),
        previous: request.prev_log_id.map(WireLogId::from),
        leader_commit: request.leader_commit.map(WireLogId::from),
        entries: u32::try_from(request.entries.len()).unwrap_or(u32::MAX),
    };
    let mut parts = Vec::new();
    let mut buffer = BytesMut::with_capacity(64 + request.entries.len() * (ENTRY_HEAD_BYTES + 64));
    buffer.put_u32_le(u32::try_from(header.encoded_len()).unwrap_or(u32::MAX));
    buffer.extend_from_slice(&header.encode_to_vec());
    for entry in &request.entries {
        let entry = entry_into(entry);
        buffer.put_u8(entry.kind.code());
        buffer.put_u64_le(entry.id.term);
        buffer.put_u64_le(entry.id.node);
        buffer.put_u64_le(entry.id.index);
        buffer.put_u32_le(u32::try_from(entry.payload.len()).unwrap_or(u32::MAX));
        if entry.payload.len() <= COPIED_BYTES_MAX {
            buffer.extend_from_slice(&entry.payload);
        } else {
            parts.push(buffer.split().freeze());
            parts.push(entry.payload);
        }
    }
    if !buffer.is_empty() {
        parts.push(buffer.freeze());
    }
    parts
}

/// Reads a request to append.
///
/// # Errors
/// `InvalidData` when it is none.
pub(super) fn decode_append(mut frame: Bytes) -> io::Result<AppendEntriesRequest<Kinds>> {
    let frame_bytes = frame.len();
    let header = frame.try_get_u32_le().map_err(invalid)? as usize;
    if frame.len() < header {
        return Err(invalid("a header that is longer than its frame"));
    }
    let header: AppendHeader = message(frame.split_to(header))?;
    let mut entries = Vec::with_capacity((header.entries as usize).min(frame.len() / ENTRY_HEAD_BYTES));
    for _ in 0..header.entries {
        entries.push(decode_entry(&mut frame, frame_bytes)?);
    }
    if !frame.is_empty() {
        return Err(invalid("bytes after the last entry"));
    }
    Ok(AppendEntriesRequest {
        vote: required(header.vote, "vote")?.into(),
        prev_log_id: header.previous.map(LogId::from),
        leader_commit: header.leader_commit.map(LogId::from),
        entries,
    })
}

fn decode_entry(frame: &mut Bytes, frame_bytes: usize) -> io::Result<Entry> {
    if frame.len() < ENTRY_HEAD_BYTES {
        return Err(invalid("a frame that ends inside an entry"));
    }
    let kind = frame.get_u8();
    let kind = EntryKind::from_code(kind).ok_or_else(|| invalid(format!("an entry of unknown kind {kind}")))?;
    let id = kvasir_storage::log::LogId { term: frame.get_u64_le(), node: frame.get_u64_le(), index: frame.get_u64_le() };
    let length = frame.get_u32_le() as usize;
    if frame.len() < length {
        return Err(invalid("an entry that is longer than its frame"));
    }
    let payload = frame.split_to(length);
    // Entries stay in memory for a while: a small one must not hold on to the whole frame.
    let payload = if length * 2 < frame_bytes { Bytes::copy_from_slice(&payload) } else { payload };
    entry_from(kvasir_storage::log::LogEntry { id, kind, payload })
}

pub(super) fn encode_appended(result: &StreamAppendResult<Kinds>) -> Bytes {
    let answer = match result {
        Ok(flushed) => AppendAnswer { flushed: flushed.map(WireLogId::from), ..AppendAnswer::default() },
        Err(StreamAppendError::Conflict(at)) => {
            AppendAnswer { conflict: Some(WireLogId::from(*at)), ..AppendAnswer::default() }
        }
        Err(StreamAppendError::HigherVote(vote)) => {
            AppendAnswer { higher: Some(WireVote::from(vote)), ..AppendAnswer::default() }
        }
    };
    Bytes::from(answer.encode_to_vec())
}

pub(super) fn decode_appended(frame: Bytes) -> io::Result<StreamAppendResult<Kinds>> {
    let answer: AppendAnswer = message(frame)?;
    Ok(match (answer.conflict, answer.higher) {
        (None, None) => Ok(answer.flushed.map(LogId::from)),
        (Some(at), None) => Err(StreamAppendError::Conflict(at.into())),
        (None, Some(vote)) => Err(StreamAppendError::HigherVote(vote.into())),
        (Some(_), Some(_)) => return Err(invalid("an answer that says two things")),
    })
}

impl AskVote {
    pub(super) fn new(request: &VoteRequest<Kinds>) -> Self {
        Self {
            vote: Some(WireVote::from(&request.vote)),
            last: request.last_log_id.map(WireLogId::from),
            transfer: request.leadership_transfer,
        }
    }

    pub(super) fn request(self) -> io::Result<VoteRequest<Kinds>> {
        let mut request = VoteRequest::new(required(self.vote, "vote")?.into(), self.last.map(LogId::from));
        request.leadership_transfer = self.transfer;
        Ok(request)
    }
}

impl AskTransfer {
    pub(super) fn new(from: &Vote, to: u64, last: Option<LogId>) -> Self {
        Self { from: Some(WireVote::from(from)), to, last: last.map(WireLogId::from) }
    }

    pub(super) fn parts(self) -> io::Result<(Vote, u64, Option<LogId>)> {
        Ok((required(self.from, "vote")?.into(), self.to, self.last.map(LogId::from)))
    }
}

impl AskAnswer {
    pub(super) fn voted(response: &VoteResponse<Kinds>) -> Self {
        Self {
            vote: Some(WireVote::from(&response.vote)),
            granted: response.vote_granted,
            last: response.last_log_id.map(WireLogId::from),
            refusal: String::new(),
        }
    }

    pub(super) fn transferred(refusal: Option<String>) -> Self {
        Self { refusal: refusal.unwrap_or_default(), ..Self::default() }
    }

    pub(super) fn response(self) -> io::Result<VoteResponse<Kinds>> {
        let vote = Vote::from(required(self.vote, "vote")?);
        Ok(VoteResponse::new(vote, self.last.map(LogId::from), self.granted))
    }
}

impl SnapshotOffer {
    pub(super) fn new(vote: &Vote, last: Option<LogId>, file: u64, file_bytes: u64) -> Self {
        Self { vote: Some(WireVote::from(vote)), last: last.map(WireLogId::from), file_bytes, file }
    }

    pub(super) fn parts(self) -> io::Result<(Vote, LogId)> {
        Ok((required(self.vote, "vote")?.into(), required(self.last, "log id")?.into()))
    }
}

#[cfg(test)]
mod tests {
    use openraft::entry::RaftEntry;
    use proptest::prelude::*;

    use super::*;
    use crate::kinds::Payload;
    use crate::proposed::Proposed;

    fn log_id() -> impl Strategy<Value = LogId> {
        (any::<u64>(), any::<u64>(), any::<u64>()).prop_map(|(term, node, index)| WireLogId { term, node, index }.into())
    }

    fn vote() -> impl Strategy<Value = Vote> {
        (any::<u64>(), any::<u64>(), any::<bool>())
            .prop_map(|(term, node, committed)| WireVote { term, node, committed }.into())
    }

    fn entry() -> impl Strategy<Value = Entry> {
        let payload = prop_oneof![
            Just(Payload::Blank),
            (0usize..10_000).prop_map(|length| Payload::Normal(Proposed::from_bytes(Bytes::from(vec![7; length])))),
            Just(Payload::Membership(crate::membership::Membership::default())),
        ];
        (log_id(), payload).prop_map(|(id, payload)| Entry::new(id, payload))
    }

    fn request() -> impl Strategy<Value = AppendEntriesRequest<Kinds>> {
        let entries = proptest::collection::vec(entry(), 0..6);
        (vote(), proptest::option::of(log_id()), proptest::option::of(log_id()), entries).prop_map(
            |(vote, prev_log_id, leader_commit, entries)| AppendEntriesRequest { vote, prev_log_id, entries, leader_commit },
        )
    }

    fn frame(parts: &[Bytes]) -> Bytes {
        Bytes::from(parts.concat())
    }

    proptest! {
        #[test]
        fn a_request_to_append_is_read_as_it_was_written(request in request()) {
            let read = decode_append(frame(&encode_append(&request))).expect("decodes");
            prop_assert_eq!(read.vote, request.vote);
            prop_assert_eq!(read.prev_log_id, request.prev_log_id);
            prop_assert_eq!(read.leader_commit, request.leader_commit);
            prop_assert_eq!(read.entries, request.entries);
        }

        #[test]
        fn a_request_that_is_cut_or_longer_is_refused(request in request(), cut in 1usize..64) {
            let whole = frame(&encode_append(&request));
            prop_assert!(decode_append(whole.slice(..whole.len().saturating_sub(cut))).is_err());
            prop_assert!(decode_append(Bytes::from([whole.as_ref(), &[0]].concat())).is_err());
        }

        #[test]
        fn any_bytes_are_a_message_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let bytes = Bytes::from(bytes);
            let _ = decode_append(bytes.clone());
            let _ = decode_appended(bytes.clone());
            let _ = message::<Ask>(bytes.clone());
            let _ = message::<SnapshotOffer>(bytes);
        }

        #[test]
        fn answers_are_read_as_they_were_written(flushed in proptest::option::of(log_id()), at in log_id(), vote in vote()) {
            for result in [Ok(flushed), Err(StreamAppendError::Conflict(at)), Err(StreamAppendError::HigherVote(vote))] {
                prop_assert_eq!(decode_appended(encode_appended(&result)).expect("decodes"), result);
            }
        }
    }
}
