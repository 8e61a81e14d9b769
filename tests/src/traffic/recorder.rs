//! One client: it sends one request at a time to the member of its choice, and notes what became of it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kvasir_api::etcdserverpb::{LeaseGrantRequest, LeaseRevokeRequest};
use tonic::{Code, Status};

use super::Shared;
use crate::history::{Operation, Outcome, Request, Response};
use crate::{Client, Random};

/// How long a client waits for an answer: long enough for an election, and shorter than a cut lasts.
pub(super) const PATIENCE: Duration = Duration::from_secs(4);
const CONNECT_WITHIN: Duration = Duration::from_secs(1);
/// Between two attempts to find a member that takes connections.
const RETRY_AFTER: Duration = Duration::from_millis(100);

pub(super) struct Recorder {
    pub(super) id: u32,
    pub(super) shared: Arc<Shared>,
    pub(super) random: Random,
    operations: Vec<Operation>,
    client: Option<Client>,
    sequence: u64,
}

impl Recorder {
    pub(super) fn new(id: u32, shared: Arc<Shared>, random: Random) -> Self {
        Self { id, shared, random, operations: Vec::new(), client: None, sequence: 0 }
    }

    pub(super) fn goes_on(&self) -> bool {
        self.shared.goes_on()
    }

    pub(super) fn finish(self) -> Vec<Operation> {
        self.operations
    }

    /// A value that nobody else writes.
    pub(super) fn value(&mut self) -> String {
        self.sequence += 1;
        format!("{}.{}", self.id, self.sequence)
    }

    /// A connection to some member; `None` when none was found before the traffic ended.
    pub(super) async fn client(&mut self) -> Option<Client> {
        while self.client.is_none() {
            let slot = self.random.below(self.shared.addresses.len() as u64) as usize;
            match Client::try_connect(&self.shared.addresses.endpoint(slot), CONNECT_WITHIN).await {
                Ok(client) => self.client = Some(client),
                Err(_) if !self.goes_on() => return None,
                Err(_) => tokio::time::sleep(RETRY_AFTER).await,
            }
        }
        // A member that stands cut off answers nobody; one in a while is left for another without a reason.
        if self.random.below(500) == 0 { self.client.take() } else { self.client.clone() }
    }

    /// Another member from now on.
    pub(super) fn leave(&mut self) {
        self.client = None;
    }

    /// Sends a request and notes it; `None` when it was not answered.
    pub(super) async fn ask(&mut self, request: Request) -> Option<Response> {
        let client = self.client().await?;
        let called = self.shared.now();
        let outcome = match tokio::time::timeout(PATIENCE, send(&client, &request)).await {
            Ok(Ok(response)) => {
                self.shared.answered.fetch_add(1, Ordering::Relaxed);
                Outcome::Answered { at: self.shared.now(), response }
            }
            Ok(Err(status)) => {
                if is_connection(&status) {
                    self.leave();
                }
                if is_certain(&status) { Outcome::Refused } else { Outcome::Unknown }
            }
            Err(_) => {
                self.leave();
                Outcome::Unknown
            }
        };
        if outcome == Outcome::Unknown {
            self.shared.unknown.fetch_add(1, Ordering::Relaxed);
        }
        let response = match &outcome {
            Outcome::Answered { response, .. } => Some(response.clone()),
            _ => None,
        };
        // A read that was not answered says nothing.
        if response.is_some() || !matches!(request, Request::Range(_) | Request::KeepAlive { .. }) {
            self.operations.push(Operation { client: self.id, called, request, outcome });
        }
        response
    }
}

/// Whether the request certainly never takes effect: the refusals that are decided before anything is written.
pub(super) fn is_certain(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::NotFound
            | Code::OutOfRange
            | Code::AlreadyExists
            | Code::ResourceExhausted
    )
}

/// Whether another member may do better.
pub(super) fn is_connection(status: &Status) -> bool {
    !is_certain(status)
}

async fn send(client: &Client, request: &Request) -> Result<Response, Status> {
    Ok(match request {
        Request::Range(it) => Response::Range(client.range(it.clone()).await?),
        Request::Put(it) => Response::Put(client.kv.clone().put(it.clone()).await?.into_inner()),
        Request::Delete(it) => Response::Delete(client.kv.clone().delete_range(it.clone()).await?.into_inner()),
        Request::Txn(it) => Response::Txn(client.txn(it.clone()).await?),
        Request::Grant { id, ttl } => {
            let answer = client.lease.clone().lease_grant(LeaseGrantRequest { id: *id, ttl: *ttl }).await?.into_inner();
            Response::Lease { header: answer.header, ttl: answer.ttl }
        }
        Request::KeepAlive { id } => {
            let answer = client.keep_alive(*id).await?;
            Response::Lease { header: None, ttl: answer.ttl }
        }
        Request::Revoke { id } => {
            let answer = client.lease.clone().lease_revoke(LeaseRevokeRequest { id: *id }).await?.into_inner();
            Response::Lease { header: answer.header, ttl: 0 }
        }
    })
}
