//! The handshakes of others that are under way: so many and no more.
//!
//! A handshake takes a round trip or two, and somebody who begins one and says nothing more would hold its place until the time for
//! it is over. So nobody is turned away: whoever comes when all places are taken gets that of the oldest handshake from the address
//! that has the most. Whoever begins many gives up its own first.
//!
//! **Invariant:** never more than the places, whoever comes.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

#[derive(Debug)]
pub(super) struct Handshakes {
    places: usize,
    /// Oldest first.
    under_way: Mutex<VecDeque<UnderWay>>,
}

#[derive(Debug)]
struct UnderWay {
    from: IpAddr,
    given_up: CancellationToken,
}

/// A handshake's place, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    all: Arc<Handshakes>,
    given_up: CancellationToken,
}

impl Handshakes {
    pub(super) fn new(places: usize) -> Arc<Self> {
        Arc::new(Self { places: places.max(1), under_way: Mutex::default() })
    }

    /// A place for a handshake with `from`.
    pub(super) fn enter(self: &Arc<Self>, from: IpAddr) -> Place {
        let given_up = CancellationToken::new();
        let mut under_way = self.under_way.lock();
        while under_way.len() >= self.places {
            let mut counts = HashMap::new();
            for known in &*under_way {
                *counts.entry(known.from).or_insert(0usize) += 1;
            }
            let most = counts.values().copied().max();
            let oldest = under_way.iter().position(|known| counts.get(&known.from).copied() == most);
            // One of those that have the most is there: there are some.
            if let Some(oldest) = oldest.and_then(|at| under_way.remove(at)) {
                oldest.given_up.cancel();
            }
        }
        under_way.push_back(UnderWay { from, given_up: given_up.clone() });
        Place { all: Arc::clone(self), given_up }
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.under_way.lock().len()
    }
}

impl Place {
    /// Resolves once the place is somebody else's.
    pub(super) async fn given_up(&self) {
        self.given_up.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.given_up.is_cancelled() {
            // The token tells it from the others: nobody else can cancel it, so it is still among them.
            self.given_up.cancel();
            self.all.under_way.lock().retain(|known| !known.given_up.is_cancelled());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_has_the_most_gives_up_its_oldest() {
        let handshakes = Handshakes::new(4);
        let [many, one, other] = [[10, 0, 0, 1], [10, 0, 0, 2], [10, 0, 0, 3]].map(IpAddr::from);
        let is_given_up = |place: &Place| place.given_up.is_cancelled();
        let first = handshakes.enter(one);
        let greedy: Vec<Place> = (0..3).map(|_| handshakes.enter(many)).collect();
        let second = handshakes.enter(other);
        assert_eq!(greedy.iter().map(is_given_up).collect::<Vec<_>>(), [true, false, false]);
        let more: Vec<Place> = (0..20).map(|_| handshakes.enter(many)).collect();
        assert_eq!(handshakes.count(), 4);
        assert!(!is_given_up(&first) && !is_given_up(&second));
        assert_eq!(more.iter().filter(|place| !is_given_up(place)).count(), 2, "the last two of them");
        drop((greedy, more, first));
        assert_eq!(handshakes.count(), 1);
        drop(second);
        assert_eq!(handshakes.count(), 0);
    }
}
