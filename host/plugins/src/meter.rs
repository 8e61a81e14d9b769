//! What a run uses of processor and time, measured so that a busy machine does not count against the guest.
//!
//! Processor time is that of the threads that poll the run. Wall time is the same plus every wait for the host; the time a guest is
//! ready and others have the processor is neither. Ticks of the epoch would count all of it.
//!
//! **Invariant:** a guest that runs is looked at on every tick, one that waits has a deadline.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::time::Sleep;

use crate::manifest::Limits;
use crate::stop::Stop;

/// One run's use so far.
pub(crate) struct Meter {
    limits: Limits,
    cpu_ns: AtomicU64,
    waited_ns: AtomicU64,
    /// Thread time at the start of the poll going on.
    poll_started_ns: AtomicU64,
    /// The guest gave its thread away because of a tick, not to wait for the host.
    yielded: AtomicBool,
}

impl Meter {
    pub(crate) fn new(limits: Limits) -> Arc<Self> {
        let zero = || AtomicU64::new(0);
        Arc::new(Self { limits, cpu_ns: zero(), waited_ns: zero(), poll_started_ns: zero(), yielded: AtomicBool::new(false) })
    }

    pub(crate) fn cpu(&self) -> Duration {
        Duration::from_nanos(self.cpu_ns.load(Ordering::Relaxed))
    }

    /// Asked on every tick, from within a poll and on its thread; the guest then gives its thread away.
    ///
    /// # Errors
    /// The limit that is used up.
    pub(crate) fn tick(&self) -> Result<(), Stop> {
        let poll = thread_cpu_ns().saturating_sub(self.poll_started_ns.load(Ordering::Relaxed));
        let cpu = self.cpu() + Duration::from_nanos(poll);
        if cpu > self.limits.cpu.0 {
            return Err(Stop::Cpu(self.limits.cpu.to_string()));
        }
        if cpu + self.waited() > self.limits.wall.0 {
            return Err(self.wall());
        }
        self.yielded.store(true, Ordering::Relaxed);
        Ok(())
    }

    pub(crate) fn wall(&self) -> Stop {
        Stop::Wall(self.limits.wall.to_string())
    }

    fn waited(&self) -> Duration {
        Duration::from_nanos(self.waited_ns.load(Ordering::Relaxed))
    }
}

fn thread_cpu_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// A run under its meter.
pub(crate) struct Metered<F> {
    call: Pin<Box<F>>,
    meter: Arc<Meter>,
    pending_since: Option<Instant>,
    deadline: Pin<Box<Sleep>>,
}

impl<F> Metered<F> {
    pub(crate) fn new(call: F, meter: Arc<Meter>) -> Self {
        let deadline = Box::pin(tokio::time::sleep(meter.limits.wall.0));
        Self { call: Box::pin(call), meter, pending_since: None, deadline }
    }
}

impl<T, F: Future<Output = wasmtime::Result<T>>> Future for Metered<F> {
    type Output = wasmtime::Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let meter = self.meter.clone();
        let yielded = meter.yielded.swap(false, Ordering::Relaxed);
        if let Some(since) = self.pending_since.take().filter(|_| !yielded) {
            meter.waited_ns.fetch_add(since.elapsed().as_nanos() as u64, Ordering::Relaxed);
        }
        let started = thread_cpu_ns();
        meter.poll_started_ns.store(started, Ordering::Relaxed);
        let polled = self.call.as_mut().poll(cx);
        meter.cpu_ns.fetch_add(thread_cpu_ns().saturating_sub(started), Ordering::Relaxed);
        if polled.is_ready() {
            return polled;
        }
        let now = Instant::now();
        self.pending_since = Some(now);
        if meter.yielded.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        let left = meter.limits.wall.0.saturating_sub(meter.cpu() + meter.waited());
        if left.is_zero() {
            return Poll::Ready(Err(wasmtime::Error::new(meter.wall())));
        }
        self.deadline.as_mut().reset((now + left).into());
        match self.deadline.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(wasmtime::Error::new(meter.wall()))),
            Poll::Pending => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Span;

    fn limits(cpu_ms: u64, wall_ms: u64) -> Limits {
        let span = |ms| Span(Duration::from_millis(ms));
        Limits { cpu: span(cpu_ms), wall: span(wall_ms), ..Limits::default() }
    }

    #[tokio::test]
    async fn a_wait_without_end_is_stopped_by_the_wall_limit() {
        let meter = Meter::new(limits(1_000, 20));
        let run = Metered::new(std::future::pending::<wasmtime::Result<()>>(), meter.clone());
        let error = tokio::time::timeout(Duration::from_secs(30), run).await.unwrap().unwrap_err();
        assert_eq!(error.downcast_ref::<Stop>(), Some(&meter.wall()));
    }

    #[tokio::test]
    async fn being_kept_from_the_processor_counts_neither_as_cpu_nor_as_wall() {
        let meter = Meter::new(limits(1_000, 50));
        let ticking = meter.clone();
        // Yields on ticks like a guest that computes; between two polls the thread is others' for longer than the limit.
        let mut polls = 0;
        let call = std::future::poll_fn(move |cx| {
            polls += 1;
            if polls > 3 {
                return Poll::Ready(Ok(()));
            }
            ticking.tick().unwrap();
            cx.waker().wake_by_ref();
            Poll::Pending
        });
        let mut run = Box::pin(Metered::new(call, meter));
        std::future::poll_fn(|cx| {
            let polled = run.as_mut().poll(cx);
            let others = Instant::now();
            while others.elapsed() < Duration::from_millis(60) {
                std::thread::yield_now();
            }
            polled
        })
        .await
        .unwrap();
    }
}
