//! A stream's task: serves those of its watchers that are behind, from the ring or from history, and tells idle ones the revision.
//!
//! **Invariant:** only this task moves a watcher on while it is behind; a response is built once its stream has room for it, one at a
//! time.

use std::ops::RangeInclusive;
use std::sync::Arc;

use kvasir_api::etcdserverpb::WatchResponse;
use kvasir_api::limits::{HISTORY_READ_BYTES_MAX, HISTORY_READ_ROWS_MAX, WATCH_CATCH_UP_WATCHERS_MAX};
use kvasir_consensus::blocking;
use tokio::sync::Notify;

use super::event::Event;
use super::frame::Responses;
use super::history::{self, Want};
use super::hub::{Hub, answer, push};
use super::index::{Index, Slot};
use super::queue::Queue;
use super::ring::Stretch;
use super::stream::cancel;
use super::watcher::Watcher;

/// Events matched with watchers that are behind before others get their turn.
const EVENTS_PER_TURN: usize = 256;

/// The stream's task: serves watchers that are behind, and tells idle ones the revision.
pub(super) async fn serve(hub: Arc<Hub>, id: u64, queue: Arc<Queue>, wake: Arc<Notify>) {
    let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + hub.progress_interval, hub.progress_interval);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = wake.notified() => {}
            _ = tick.tick() => notify_progress(&hub, id),
        }
        loop {
            match catch_up(&hub, id, &queue).await {
                Step::More => {}
                Step::Done => break,
                Step::Ended => return,
            }
        }
    }
}

fn notify_progress(hub: &Hub, id: u64) {
    let mut inner = hub.lock();
    let inner = &mut *inner;
    let dispatched = inner.dispatched;
    let Some(stream) = inner.streams.get(&id) else { return };
    for slot in stream.by_id.values() {
        let Some(Some(watcher)) = inner.watchers.get_mut(*slot) else { continue };
        let idle = !std::mem::take(&mut watcher.sent);
        // A stream that is not read has more to come anyway.
        let due = watcher.progress_notify && watcher.synced && watcher.next <= dispatched + 1;
        if idle && due && stream.queue.has_room() {
            push(&stream.queue, &answer(hub.header(dispatched), watcher.shape.watch_id));
        }
    }
}

enum Step {
    /// Somebody is still behind.
    More,
    /// Nobody is.
    Done,
    /// The stream is gone.
    Ended,
}

/// Those of a stream that are behind, as they were when a piece of history was read for them.
struct Behind {
    from: u64,
    watchers: Vec<(Slot, Watcher)>,
}

/// One piece of history for all of a stream's watchers that are behind.
async fn catch_up(hub: &Arc<Hub>, id: u64, queue: &Queue) -> Step {
    {
        let inner = hub.lock();
        match inner.streams.get(&id) {
            None => return Step::Ended,
            Some(_) if inner.closed => return Step::Ended,
            Some(stream) if stream.behind.is_empty() => return Step::Done,
            Some(_) => {}
        }
    }
    if !queue.room().await {
        return Step::Ended;
    }
    let Some(behind) = behind(hub, id) else { return Step::Done };
    let Some(link) = hub.link() else { return Step::Done };
    let (events, upto) = match hub.ring_after(behind.from - 1, HISTORY_READ_ROWS_MAX, HISTORY_READ_BYTES_MAX) {
        Stretch::Here(events, upto) => (events, upto),
        Stretch::Gone => match read_history(hub, &behind).await {
            Ok(piece) => piece,
            Err(error) => {
                link.consensus.raise(format!("state file: cannot read history: {error}"));
                return Step::Ended;
            }
        },
    };
    // Asked after reading: whatever was still there then is what a watcher from there on must see.
    let compacted = link.consensus.state().read().compact_revision();
    let header = hub.header(upto);
    for some in behind.watchers.chunks(WATCH_CATCH_UP_WATCHERS_MAX) {
        if !queue.has_room() {
            break;
        }
        let chosen = choose(some, &events, compacted..=upto).await;
        for ((slot, read_for), chosen) in some.iter().zip(chosen) {
            if read_for.next < compacted {
                let watch_id = read_for.shape.watch_id;
                if still(hub, *slot, read_for) && cancel(hub, id, watch_id) {
                    let canceled = WatchResponse {
                        canceled: true,
                        compact_revision: i64::try_from(compacted).unwrap_or(i64::MAX),
                        ..answer(hub.header(*link.revisions.borrow()), watch_id)
                    };
                    push(queue, &canceled);
                }
                continue;
            }
            let chosen = chosen.into_iter().filter_map(|at| events.get(at as usize)).cloned().collect();
            hand_over(hub, queue, *slot, read_for, Responses::new(read_for.shape, header, chosen), upto);
        }
        tokio::task::yield_now().await;
    }
    Step::More
}

/// The events for each of the watchers whose next revision is within the bounds, by their place.
async fn choose(watchers: &[(Slot, Watcher)], events: &[Arc<Event>], next: RangeInclusive<u64>) -> Vec<Vec<u32>> {
    let mut chosen = vec![Vec::new(); watchers.len()];
    let mut index = Index::default();
    for (at, (_, watcher)) in watchers.iter().enumerate().filter(|(_, (_, watcher))| next.contains(&watcher.next)) {
        index.insert(watcher.tenant, &watcher.range, at);
    }
    for (at, event) in events.iter().enumerate() {
        if at % EVENTS_PER_TURN == EVENTS_PER_TURN - 1 {
            tokio::task::yield_now().await;
        }
        let row = event.row();
        // A piece has at most a few thousand events and one revision's own, far below 2^32.
        let event_at = u32::try_from(at).unwrap_or(u32::MAX);
        index.matching(row.tenant, &row.key, |place| {
            let watcher = &watchers[place].1;
            if event.main() >= watcher.next && watcher.wants(event) {
                chosen[place].push(event_at);
            }
        });
    }
    chosen
}

/// Gives a watcher that is behind what was chosen for it, as far as there is room, and makes it synced if that is all there is. A
/// response is built outside of the hub's lock, one at a time.
fn hand_over(hub: &Hub, queue: &Queue, slot: Slot, read_for: &Watcher, mut responses: Responses, upto: u64) {
    let mut expected = read_for.clone();
    let mut at = 0;
    while responses.first_main(at).is_some() {
        if !queue.has_room() || responses.get(at).is_none() {
            return;
        }
        let mut inner = hub.lock();
        let Some(Some(watcher)) = inner.watchers.get_mut(slot) else { return };
        if !same(watcher, &expected) || !hub.offer(queue, watcher, &mut responses, at) {
            return;
        }
        at += 1;
        watcher.next = responses.first_main(at).unwrap_or(upto + 1);
        expected.next = watcher.next;
    }
    let mut inner = hub.lock();
    let Some(Some(watcher)) = inner.watchers.get_mut(slot) else { return };
    if !same(watcher, &expected) {
        return;
    }
    watcher.next = watcher.next.max(upto + 1);
    hub.meet(&mut inner, slot);
}

/// Whether the slot still holds the watcher that history was read for. Only this stream's task moves its watchers on while they
/// are behind, so that an equal place means the same watcher.
fn same(watcher: &Watcher, read_for: &Watcher) -> bool {
    !watcher.synced
        && watcher.stream == read_for.stream
        && watcher.shape == read_for.shape
        && watcher.next == read_for.next
        && watcher.range == read_for.range
}

fn still(hub: &Hub, slot: Slot, read_for: &Watcher) -> bool {
    hub.lock().watchers.get(slot).and_then(Option::as_ref).is_some_and(|watcher| same(watcher, read_for))
}

fn behind(hub: &Hub, id: u64) -> Option<Behind> {
    let inner = hub.lock();
    let stream = inner.streams.get(&id)?;
    let watchers: Vec<(Slot, Watcher)> =
        stream.behind.iter().filter_map(|slot| Some((*slot, inner.watchers.get(*slot)?.as_ref()?.clone()))).collect();
    let from = watchers.iter().map(|(_, watcher)| watcher.next).min()?.max(1);
    Some(Behind { from, watchers })
}

async fn read_history(hub: &Hub, behind: &Behind) -> std::io::Result<(Vec<Arc<Event>>, u64)> {
    let Some(link) = hub.link() else { return Ok((Vec::new(), 0)) };
    hub.counters.history_reads.add(1);
    let (store, from, to) = (link.consensus.store().clone(), behind.from, *link.revisions.borrow());
    let wanted: Vec<Watcher> = behind.watchers.iter().map(|(_, watcher)| watcher.clone()).collect();
    // Never closed. After a restart every watcher reads history: a few at a time, so that the disk serves others too.
    let _turn = hub.history_reads.acquire().await;
    let read = blocking(store.is_driven(), move || {
        let mut index = Index::default();
        for (place, watcher) in wanted.iter().enumerate() {
            index.insert(watcher.tenant, &watcher.range, place);
        }
        history::read(&store, from, to, |row| {
            let (mut found, mut prev) = (false, false);
            index.matching(row.tenant, &row.key, |place| {
                found = true;
                prev |= wanted[place].shape.prev_kv;
            });
            match (found, prev) {
                (false, _) => Want::Nothing,
                (true, false) => Want::Row,
                (true, true) => Want::WithPrev,
            }
        })
    });
    let piece = read.await.unwrap_or_else(|error| Err(std::io::Error::other(error)))?;
    Ok((piece.changes.into_iter().map(Event::new).collect(), piece.upto))
}
