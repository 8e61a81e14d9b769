//! The one place that authorises a request and hands it to consensus, for every door: gRPC, HTTP, a plugin's host call.
//!
//! What is authorised is the range that will be executed, exactly as it will be: no door normalises a `range_end` after this
//! point (etcd's GHSA-xg4h-6gfc-h4m8 was a `\0` normalised before the check).
//!
//! **Invariant:** [`Engine::propose_as`] and [`Engine::propose_in_term`] are the only ways to `Consensus::propose`; what names keys or leases comes to it through
//! [`Engine::submit`], or from the engine itself: renewals, expiries, a lock's key given up, a plugin's effect whose writes were
//! authorised when they were staged.

use kvasir_api::Error;
use kvasir_api::command::command::Body;
use kvasir_api::command::{Command, Origin};
use kvasir_api::etcdserverpb::request_op::Request;
use kvasir_api::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest, TxnRequest};
use kvasir_api::limits::REQUEST_BYTES_MAX;
use kvasir_machine::{EffectReply, Reply};
use prost::Message;

use crate::caller::{Caller, KeyRange};
use crate::engine::Engine;
use crate::fill;
use crate::metrics::Executed;

/// What a request wants to do with a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read it, watch it, compare it.
    Read,
    /// Put or delete in it.
    Write,
    /// Take a lock in it.
    Lock,
}

/// Whether `caller` may do this with the whole of `range`.
///
/// # Errors
/// `PermissionDenied`.
pub(crate) fn allow(caller: &Caller, access: Access, range: &KeyRange) -> Result<(), Error> {
    let Some(grants) = &caller.grants else { return Ok(()) };
    let granted = match access {
        Access::Read => &grants.read,
        Access::Write => &grants.write,
        Access::Lock => &grants.lock,
    };
    if granted.iter().any(|granted| granted.contains(range)) { Ok(()) } else { Err(Error::PermissionDenied) }
}

/// Whether `caller` may grant, renew, revoke and attach leases.
///
/// # Errors
/// `PermissionDenied`.
pub(crate) fn allow_leases(caller: &Caller) -> Result<(), Error> {
    match &caller.grants {
        Some(grants) if !grants.lease => Err(Error::PermissionDenied),
        _ => Ok(()),
    }
}

/// Whether `caller` may do what only clients may: compact, alarms, maintenance.
///
/// # Errors
/// `PermissionDenied`.
pub(crate) fn allow_operator(caller: &Caller) -> Result<(), Error> {
    if caller.grants.is_some() { Err(Error::PermissionDenied) } else { Ok(()) }
}

pub(crate) fn allow_range(caller: &Caller, request: &RangeRequest) -> Result<(), Error> {
    if caller.grants.is_none() {
        return Ok(());
    }
    allow(caller, Access::Read, &KeyRange::new(request.key.clone(), request.range_end.clone()))
}

fn allow_put(caller: &Caller, request: &PutRequest) -> Result<(), Error> {
    if caller.grants.is_none() {
        return Ok(());
    }
    let key = KeyRange::single(request.key.clone());
    allow(caller, Access::Write, &key)?;
    if request.prev_kv {
        allow(caller, Access::Read, &key)?;
    }
    if request.lease != 0 { allow_leases(caller) } else { Ok(()) }
}

fn allow_delete(caller: &Caller, request: &DeleteRangeRequest) -> Result<(), Error> {
    if caller.grants.is_none() {
        return Ok(());
    }
    let range = KeyRange::new(request.key.clone(), request.range_end.clone());
    allow(caller, Access::Write, &range)?;
    if request.prev_kv { allow(caller, Access::Read, &range) } else { Ok(()) }
}

/// Both branches, at every depth, whichever will run.
pub(crate) fn allow_txn(caller: &Caller, request: &TxnRequest) -> Result<(), Error> {
    if caller.grants.is_none() {
        return Ok(());
    }
    for compare in &request.compare {
        allow(caller, Access::Read, &KeyRange::new(compare.key.clone(), compare.range_end.clone()))?;
    }
    for op in request.success.iter().chain(&request.failure) {
        match &op.request {
            Some(Request::RequestRange(request)) => allow_range(caller, request)?,
            Some(Request::RequestPut(request)) => allow_put(caller, request)?,
            Some(Request::RequestDeleteRange(request)) => allow_delete(caller, request)?,
            Some(Request::RequestTxn(request)) => allow_txn(caller, request)?,
            None => {}
        }
    }
    Ok(())
}

/// Whether `caller` may have this command proposed.
fn allow_body(caller: &Caller, body: &Body) -> Result<(), Error> {
    match body {
        Body::Put(request) => allow_put(caller, request),
        Body::DeleteRange(request) => allow_delete(caller, request),
        Body::Txn(request) => allow_txn(caller, request),
        Body::LeaseGrant(_) | Body::LeaseRevoke(_) | Body::LeaseRenew(_) => allow_leases(caller),
        _ => allow_operator(caller),
    }
}

impl Engine {
    /// Whether `caller` may do this with the whole of `range`: what a plugin's host asks before it stages a write, the same
    /// question that every other door's request is asked.
    ///
    /// # Errors
    /// `PermissionDenied`.
    pub fn authorise(&self, caller: &Caller, access: Access, range: &KeyRange) -> Result<(), Error> {
        allow(caller, access, range)
    }

    /// Authorises a command and takes it to its reply, with values that memory does not hold filled in.
    ///
    /// # Errors
    /// `PermissionDenied`, `RequestTooLarge`, whatever apply refuses it with, and what `Consensus::propose` returns.
    pub(crate) async fn submit(&self, caller: &Caller, body: Body) -> Result<Reply, Error> {
        allow_body(caller, &body)?;
        self.propose_as(body, caller.origin.clone(), caller.tenant).await
    }

    /// Takes an authorised command to its reply.
    pub(crate) async fn propose_as(&self, body: Body, origin: Origin, tenant: u64) -> Result<Reply, Error> {
        self.propose_command(body, origin, tenant, 0).await
    }

    /// Takes a decision of the leader of a term to its reply; by an entry of another term nothing is done.
    ///
    /// # Errors
    /// `NotLeader` when this node does not lead in that term, and what a proposal can fail with.
    pub(crate) async fn propose_in_term(&self, term: u64, body: Body) -> Result<Reply, Error> {
        if self.consensus().leading_term() != Some(term) {
            return Err(Error::NotLeader);
        }
        let caller = Caller::client();
        self.propose_command(body, caller.origin, caller.tenant, term).await
    }

    async fn propose_command(&self, body: Body, origin: Origin, tenant: u64, term: u64) -> Result<Reply, Error> {
        let origin = (origin != Origin::default()).then_some(origin);
        let held = fill::lowest_revision(&body);
        let staged = Executed::staged(&body);
        let command = Command { tenant, origin, term, body: Some(body), ..Command::default() };
        if command.encoded_len() > REQUEST_BYTES_MAX {
            return Err(Error::RequestTooLarge);
        }
        let _hold = held.map(|revision| self.inner().holds.hold(revision));
        let counters = &self.inner().counters;
        let reply = self.consensus().propose(command).await.inspect_err(|error| {
            // What was refused before it was proposed is counted where it was.
            if *error != Error::TooManyRequests {
                counters.proposals_failed.add(1);
            }
        })?;
        counters.executed(&match &reply {
            Reply::Effect { reply: EffectReply::Applied { .. }, .. } => staged,
            reply => Executed::of(reply),
        });
        match reply {
            Reply::Error { error, .. } => Err(error),
            reply if reply.has_holes() => self.fill_reply(reply).await.map_err(|error| {
                // It is committed: anything but an unknown fate would be taken for a refusal.
                tracing::warn!(%error, "a committed command's reply could not be filled in");
                Error::Timeout
            }),
            reply => Ok(reply),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::caller::Grants;

    fn plugin(grants: Grants) -> Caller {
        Caller { grants: Some(Arc::new(grants)), ..Caller::client() }
    }

    #[test]
    fn nothing_is_allowed_that_is_not_granted() {
        let caller = plugin(Grants::default());
        assert_eq!(allow(&caller, Access::Read, &KeyRange::single("a")), Err(Error::PermissionDenied));
        assert_eq!(allow_leases(&caller), Err(Error::PermissionDenied));
        assert_eq!(allow_operator(&caller), Err(Error::PermissionDenied));
        assert_eq!(allow_operator(&Caller::client()), Ok(()));
    }

    #[test]
    fn a_txn_is_allowed_only_if_both_branches_and_every_compare_are() {
        let caller =
            plugin(Grants { read: vec![KeyRange::prefix("/r/")], write: vec![KeyRange::prefix("/w/")], ..Grants::default() });
        let put = |key: &'static str| kvasir_api::etcdserverpb::RequestOp {
            request: Some(Request::RequestPut(PutRequest { key: key.into(), ..PutRequest::default() })),
        };
        let mut txn = TxnRequest { success: vec![put("/w/a")], ..TxnRequest::default() };
        assert_eq!(allow_txn(&caller, &txn), Ok(()));
        txn.failure = vec![put("/r/a")];
        assert_eq!(allow_txn(&caller, &txn), Err(Error::PermissionDenied));
        txn.failure.clear();
        txn.compare = vec![kvasir_api::etcdserverpb::Compare {
            key: "/r/a".into(),
            range_end: bytes::Bytes::from_static(b"\0"),
            ..Default::default()
        }];
        assert_eq!(allow_txn(&caller, &txn), Err(Error::PermissionDenied));
    }

    #[test]
    fn reading_what_a_write_replaced_needs_the_right_to_read() {
        let caller = plugin(Grants { write: vec![KeyRange::prefix("/w/")], ..Grants::default() });
        let mut put = PutRequest { key: "/w/a".into(), ..PutRequest::default() };
        assert_eq!(allow_put(&caller, &put), Ok(()));
        put.prev_kv = true;
        assert_eq!(allow_put(&caller, &put), Err(Error::PermissionDenied));
        put.prev_kv = false;
        put.lease = 4;
        assert_eq!(allow_put(&caller, &put), Err(Error::PermissionDenied));
    }
}
