//! Leases never end early: not before their time after the last renewal that was answered.

use std::collections::BTreeMap;

use super::explain::{Explained, Place};
use super::{Operation, Outcome, Request, Response, Violation};

const NANOSECONDS: u64 = 1_000_000_000;

/// What the clients know of a lease.
#[derive(Debug, Default)]
struct Lease {
    /// It lives at least so long.
    lives_to: u64,
    ttl: u64,
    /// The first moment at which somebody was told that it is gone, or what came after its end.
    gone_at: Option<u64>,
    /// When somebody first asked for its end, and may have got it.
    revoked: Option<u64>,
}

/// Until when each lease certainly was to live, by what its clients were told.
pub(super) fn lives_to(operations: &[Operation]) -> BTreeMap<i64, u64> {
    let mut granted = BTreeMap::new();
    let mut lives = BTreeMap::new();
    for operation in operations {
        if let (Request::Grant { id, .. }, Outcome::Answered { response: Response::Lease { ttl, .. }, .. }) =
            (&operation.request, &operation.outcome)
        {
            granted.insert(*id, u64::try_from(*ttl).unwrap_or(0).saturating_mul(NANOSECONDS));
        }
    }
    for operation in operations {
        let (Request::Grant { id, .. } | Request::KeepAlive { id }) = &operation.request else { continue };
        let Outcome::Answered { response: Response::Lease { ttl, .. }, .. } = &operation.outcome else { continue };
        if let Some(whole) = granted.get(id).filter(|_| *ttl > 0) {
            let to = lives.entry(*id).or_insert(0);
            *to = operation.called.saturating_add(*whole).max(*to);
        }
    }
    lives
}

/// Checks that no lease ended before its time. A lease lives from the moment its grant or its renewal took effect, which is after it
/// was asked for; its end is before the first moment at which somebody was told of it.
///
/// # Errors
/// The lease that ended early.
pub fn leases_keep_their_time(operations: &[Operation], explained: &Explained) -> Result<(), Violation> {
    let mut leases = BTreeMap::<i64, Lease>::new();
    for operation in operations {
        match (&operation.request, &operation.outcome) {
            (Request::Grant { id, .. }, Outcome::Answered { response: Response::Lease { ttl, .. }, .. }) => {
                let lease = leases.entry(*id).or_default();
                lease.ttl = u64::try_from(*ttl).unwrap_or(0);
            }
            (Request::Revoke { id }, Outcome::Answered { .. } | Outcome::Unknown) => {
                let lease = leases.entry(*id).or_default();
                lease.revoked = Some(lease.revoked.unwrap_or(u64::MAX).min(operation.called));
            }
            _ => {}
        }
    }
    for operation in operations {
        let (Request::Grant { id, .. } | Request::KeepAlive { id }) = &operation.request else { continue };
        let Outcome::Answered { at, response: Response::Lease { ttl, .. } } = &operation.outcome else { continue };
        let Some(lease) = leases.get_mut(id).filter(|lease| lease.ttl > 0) else { continue };
        if *ttl > 0 {
            lease.lives_to = lease.lives_to.max(operation.called.saturating_add(lease.ttl.saturating_mul(NANOSECONDS)));
        } else {
            lease.gone_at = Some(lease.gone_at.unwrap_or(u64::MAX).min(*at));
        }
    }
    for (id, revision) in explained.ended() {
        let seen = operations.iter().zip(&explained.places).filter(|(_, place)| {
            place.is_some_and(|place| match place {
                Place::Made(at) | Place::Saw(at) => at >= *revision,
            })
        });
        let first = seen.filter_map(|(operation, _)| operation.answered_at()).min();
        if let (Some(lease), Some(first)) = (leases.get_mut(id), first) {
            lease.gone_at = Some(lease.gone_at.unwrap_or(u64::MAX).min(first));
        }
    }
    for (id, lease) in leases {
        if let Some(gone_at) = lease.gone_at
            && gone_at < lease.lives_to
            && lease.revoked.is_none_or(|revoked| revoked > gone_at)
        {
            let how = format!("lease {id:x} of {} s was to live until {} and was gone at {gone_at}", lease.ttl, lease.lives_to);
            return Err(Violation { promise: "leases never end early", how });
        }
    }
    Ok(())
}
