//! Writes: put, delete and transactions, from etcd's request to etcd's response.
//!
//! **Invariant:** a transaction that writes nothing is a read: it is linearized, never proposed.

use kvasir_api::Error;
use kvasir_api::command::command::Body;
use kvasir_api::etcdserverpb::response_op::Response;
use kvasir_api::etcdserverpb::{
    DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, ResponseOp, TxnRequest, TxnResponse,
};
use kvasir_machine::{
    DeleteRangeReply, Item, OpReply, PutReply, Reply, State, TxnReply, check_delete_range, check_put, check_txn,
};

use crate::authorise;
use crate::caller::Caller;
use crate::engine::Engine;
use crate::metrics::Executed;

/// A reply of another kind than the command's: a fault of ours.
pub(crate) fn unexpected(reply: &Reply) -> Error {
    Error::Internal(format!("apply answered another command: {reply:?}"))
}

impl Engine {
    /// Puts a key (etcd `KV.Put`).
    ///
    /// # Errors
    /// etcd's: `EmptyKey`, `ValueProvided`, `LeaseProvided`, `KeyNotFound`, `LeaseNotFound`, `NoSpace`, `RequestTooLarge`,
    /// `TooManyRequests`, `Timeout` (fate unknown).
    pub async fn put(&self, caller: &Caller, request: PutRequest) -> Result<PutResponse, Error> {
        check_put(&request)?;
        match self.submit(caller, Body::Put(request)).await? {
            Reply::Put(reply) => Ok(self.put_response(reply)),
            reply => Err(unexpected(&reply)),
        }
    }

    /// Deletes a key or a range (etcd `KV.DeleteRange`).
    ///
    /// # Errors
    /// As [`Engine::put`].
    pub async fn delete_range(&self, caller: &Caller, request: DeleteRangeRequest) -> Result<DeleteRangeResponse, Error> {
        check_delete_range(&request)?;
        match self.submit(caller, Body::DeleteRange(request)).await? {
            Reply::DeleteRange(reply) => Ok(self.delete_response(reply)),
            reply => Err(unexpected(&reply)),
        }
    }

    /// Runs a transaction (etcd `KV.Txn`).
    ///
    /// # Errors
    /// As [`Engine::put`], and `TooManyOps`, `DuplicateKey`, `Compacted`, `FutureRevision`.
    pub async fn txn(&self, caller: &Caller, request: TxnRequest) -> Result<TxnResponse, Error> {
        check_txn(&request)?;
        if State::is_read_only(&request) {
            authorise::allow_txn(caller, &request)?;
            self.linearize().await?;
            let reply = self.consensus().state().read().read_txn(caller.tenant, &request)?;
            let reply = self.fill_txn(reply).await?;
            self.inner().counters.executed(&Executed::of_txn(&reply));
            return Ok(self.txn_response(reply));
        }
        match self.submit(caller, Body::Txn(request)).await? {
            Reply::Txn(reply) => Ok(self.txn_response(reply)),
            reply => Err(unexpected(&reply)),
        }
    }

    fn put_response(&self, reply: PutReply) -> PutResponse {
        PutResponse { header: Some(self.header_at(reply.revision)), prev_kv: reply.prev.map(Item::into_key_value) }
    }

    fn delete_response(&self, reply: DeleteRangeReply) -> DeleteRangeResponse {
        DeleteRangeResponse {
            header: Some(self.header_at(reply.revision)),
            deleted: i64::try_from(reply.deleted).unwrap_or(i64::MAX),
            prev_kvs: reply.prevs.into_iter().map(Item::into_key_value).collect(),
        }
    }

    pub(crate) fn txn_response(&self, reply: TxnReply) -> TxnResponse {
        TxnResponse {
            header: Some(self.header_at(reply.revision)),
            succeeded: reply.succeeded,
            responses: reply
                .responses
                .into_iter()
                .map(|op| ResponseOp {
                    response: Some(match op {
                        OpReply::Range(range) => Response::ResponseRange(self.range_response(range)),
                        OpReply::Put(put) => Response::ResponsePut(self.put_response(put)),
                        OpReply::DeleteRange(delete) => Response::ResponseDeleteRange(self.delete_response(delete)),
                        OpReply::Txn(txn) => Response::ResponseTxn(self.txn_response(txn)),
                    }),
                })
                .collect(),
        }
    }
}
