//! Members, and how a membership is written in the log and the state file.
//!
//! **Invariant:** bytes that do not decode to a membership openraft accepts are an error, never a default.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use bytes::Bytes;
use prost::Message;

use crate::identity::INDEX_END;

/// A member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Member {
    /// Its `--name`.
    pub name: String,
    /// Where peers reach it.
    pub peer_urls: Vec<String>,
    /// Where clients reach it.
    pub client_urls: Vec<String>,
    /// Whether it is made a voter once it has caught up. Says nothing of a voter.
    pub promote: bool,
    /// The version of commands that it knows; 0 while it has not said so.
    pub command_version: u32,
}

/// A member as the membership has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberInfo {
    /// Its id.
    pub id: u64,
    /// Its name and where it is reached.
    pub member: Member,
    /// Whether it does not vote.
    pub learner: bool,
}

impl Member {
    /// Where its peer URLs lead, `host:port`.
    pub fn peer_addresses(&self) -> Vec<String> {
        self.peer_urls
            .iter()
            .map(|url| url.split_once("://").map_or(url.as_str(), |(_, rest)| rest).trim_end_matches('/').to_owned())
            .collect()
    }
}

impl std::fmt::Display for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

pub(crate) type Membership = openraft::Membership<u64, Member>;

/// A membership as it is stored; fields are only ever added.
#[derive(Clone, PartialEq, Message)]
struct MembershipRecord {
    /// One set of voters, or two while the membership changes.
    #[prost(message, repeated, tag = "1")]
    configs: Vec<VoterSet>,
    /// Every member, learners as well.
    #[prost(message, repeated, tag = "2")]
    members: Vec<MemberRecord>,
}

#[derive(Clone, PartialEq, Message)]
struct VoterSet {
    #[prost(uint64, repeated, tag = "1")]
    ids: Vec<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct MemberRecord {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, repeated, tag = "3")]
    peer_urls: Vec<String>,
    #[prost(string, repeated, tag = "4")]
    client_urls: Vec<String>,
    #[prost(bool, tag = "5")]
    promote: bool,
    #[prost(uint32, tag = "6")]
    command_version: u32,
}

impl MemberRecord {
    fn new(id: u64, member: &Member) -> Self {
        let Member { name, peer_urls, client_urls, promote, command_version } = member.clone();
        Self { id, name, peer_urls, client_urls, promote, command_version }
    }

    fn into_member(self) -> (u64, Member) {
        let Self { id, name, peer_urls, client_urls, promote, command_version } = self;
        (id, Member { name, peer_urls, client_urls, promote, command_version })
    }
}

/// A member's id and record, as bytes.
pub(crate) fn encode_member(id: u64, member: &Member) -> Vec<u8> {
    MemberRecord::new(id, member).encode_to_vec()
}

/// The member of these bytes, and its id.
///
/// # Errors
/// `InvalidData` when they are none.
pub(crate) fn decode_member(bytes: &[u8]) -> io::Result<(u64, Member)> {
    MemberRecord::decode(bytes)
        .map(MemberRecord::into_member)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("not a member: {error}")))
}

/// Whether a node that is not in the membership of entry `as_of` may have become a member after it: its id is the index of an entry
/// behind that one. The id of a member that was there before, and that of a bootstrap, is not.
pub(crate) fn is_to_come(node: u64, as_of: u64) -> bool {
    (as_of..INDEX_END).contains(&node)
}

/// What a node is told that is no member, as of the membership of an entry.
pub(crate) fn not_a_member(node: u64, as_of: u64) -> String {
    format!("node {node:016x} is not a member of this cluster as of entry {as_of}")
}

/// The entry that [`not_a_member`] names, if that is what was said.
pub(crate) fn said_not_a_member(node: u64, said: &str) -> Option<u64> {
    let (_, rest) = said.split_once(&format!("node {node:016x} is not a member of this cluster as of entry "))?;
    rest.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()
}

/// The bytes of a membership.
pub(crate) fn encode(membership: &Membership) -> Bytes {
    let record = MembershipRecord {
        configs: membership
            .get_joint_config()
            .iter()
            .map(|voters| VoterSet { ids: voters.iter().copied().collect() })
            .collect(),
        members: membership.nodes().map(|(id, member)| MemberRecord::new(*id, member)).collect(),
    };
    Bytes::from(record.encode_to_vec())
}

/// The membership of these bytes.
///
/// # Errors
/// `InvalidData` when they are none.
pub(crate) fn decode(bytes: &Bytes) -> io::Result<Membership> {
    let record = MembershipRecord::decode(bytes.clone())
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("not a membership: {error}")))?;
    let configs: Vec<BTreeSet<u64>> = record.configs.into_iter().map(|voters| voters.ids.into_iter().collect()).collect();
    let members: BTreeMap<u64, Member> = record.members.into_iter().map(MemberRecord::into_member).collect();
    if configs.is_empty() && members.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(configs, members)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("not a membership: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_membership_reads_back_as_it_was_written() {
        let member = |name: &str| Member {
            name: name.to_owned(),
            peer_urls: vec!["https://a:1".to_owned()],
            client_urls: Vec::new(),
            promote: name == "c",
            command_version: 3,
        };
        let members = BTreeMap::from([(1, member("a")), (2, member("b")), (3, member("c"))]);
        let joint = Membership::new(vec![BTreeSet::from([1, 2]), BTreeSet::from([2])], members).expect("valid");
        assert_eq!(decode(&encode(&joint)).expect("decodes"), joint);
        assert_eq!(decode(&Bytes::new()).expect("decodes"), Membership::default());
        assert!(decode(&Bytes::from_static(b"\xff\xff")).is_err());
        let info = decode_member(&encode_member(3, &joint.get_node(&3).expect("a member").clone())).expect("decodes");
        assert_eq!((info.0, Some(&info.1)), (3, joint.get_node(&3)));
    }

    #[test]
    fn a_node_that_is_told_that_it_is_no_member_knows_as_of_when() {
        let said = format!("the stream has ended: refused: {}, so it was", not_a_member(7, 42));
        assert_eq!(said_not_a_member(7, &said), Some(42));
        assert_eq!(said_not_a_member(8, &said), None);
        assert_eq!(said_not_a_member(7, "the stream has ended"), None);
    }
}
