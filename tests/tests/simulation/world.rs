//! The simulated world's clock and chances: what the code under test, tokio, openraft and std ask the system for, comes from here.
//!
//! This program defines `clock_gettime`, `getrandom` and `epoll_wait` itself, so that the linker takes these instead of the C
//! library's. On a thread that has entered the world they answer from its seed: time stands still while tasks run and jumps to the
//! next timer when none can; random numbers are a function of the seed. On every other thread they ask the system, as ever.
//!
//! The seams meet all that would differ between two runs of a seed: `std::time::Instant` and tokio's timers (`clock_gettime`,
//! `epoll_wait`), the keys of `RandomState`, tokio's own choices in `select!` and in waking watchers, which are drawn from such a
//! key, and openraft's election timeouts (`getrandom`). A process enters one world only: tokio counts the runtimes of a process,
//! and its choices depend on that count.
//!
//! **Invariant:** nothing in the world waits for anything outside of it: time passes only when every task waits for time.

#![allow(unsafe_code, reason = "the C library's functions are replaced; each has its proof")]

use std::cell::Cell;
use std::future::Future;
use std::time::Duration;

use libc::{c_int, c_long, c_void, clockid_t, epoll_event, size_t, ssize_t, timespec};

/// Wall time at which every world begins: 2026-01-01T00:00:00Z.
const WALL_NS: u64 = 1_767_225_600_000_000_000;
/// Monotonic time at which every world begins.
const MONOTONIC_NS: u64 = 1_000_000_000_000;

thread_local! {
    /// Nanoseconds since the world began; `None` on a thread that is not in it.
    static NOW: Cell<Option<u64>> = const { Cell::new(None) };
    /// Where the random numbers go on from.
    static CHANCE: Cell<u64> = const { Cell::new(0) };
    /// The world ends here, whoever still waits.
    static END: Cell<u64> = const { Cell::new(u64::MAX) };
}

/// Lives in a world of this seed, on a thread and a runtime of its own, for `span` at most.
///
/// # Panics
/// When what is lived panics, or is not over in time.
pub(crate) fn enter<T: Send + 'static, F: Future<Output = T>>(
    seed: u64,
    span: Duration,
    life: impl FnOnce() -> F + Send + 'static,
) -> std::thread::Result<T> {
    let live = move || {
        CHANCE.set(seed);
        END.set(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX));
        NOW.set(Some(0));
        // Time is told by `epoll_wait`, which tokio calls only with its I/O enabled.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let out = runtime.block_on(life());
        // What is left of the world is not taken down in order: nothing of it is looked at any more.
        std::mem::forget(runtime);
        out
    };
    std::thread::Builder::new().name("world".into()).spawn(live).expect("a thread").join()
}

/// Nanoseconds since this world began.
pub(crate) fn now() -> u64 {
    NOW.get().expect("a thread in the world")
}

fn chance() -> u64 {
    let state = CHANCE.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
    CHANCE.set(state);
    let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The time of a clock.
///
/// # Safety
/// `time` must be null or valid for a write, as for the C library's function.
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(clock: clockid_t, time: *mut timespec) -> c_int {
    let Some(now) = NOW.get() else {
        // SAFETY: the system call of this name takes just these arguments, and what the caller promises about `time` is what it asks.
        return unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) } as c_int;
    };
    let base = if clock == libc::CLOCK_REALTIME { WALL_NS } else { MONOTONIC_NS };
    let ns = base + now;
    let value = timespec { tv_sec: (ns / 1_000_000_000) as i64, tv_nsec: (ns % 1_000_000_000) as c_long };
    if !time.is_null() {
        // SAFETY: not null, and then valid for a write by the caller's promise.
        unsafe { time.write(value) };
    }
    0
}

/// Random bytes.
///
/// # Safety
/// `buffer` must be valid for a write of `length` bytes, as for the C library's function.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut c_void, length: size_t, flags: u32) -> ssize_t {
    if NOW.get().is_none() {
        // SAFETY: the system call of this name takes just these arguments, and the caller's promise is what it asks.
        return unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) } as ssize_t;
    }
    let mut at = 0;
    while at < length {
        let bytes = chance().to_ne_bytes();
        let part = bytes.len().min(length - at);
        // SAFETY: `at + part <= length`, and the buffer is valid for a write of `length` bytes by the caller's promise; the source
        // is a local array of at least `part` bytes, which does not overlap it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), buffer.cast::<u8>().add(at), part) };
        at += part;
    }
    length as ssize_t
}

/// Waits for events: in the world, for nothing but time.
///
/// # Safety
/// `events` must be valid for a write of `events_max` events, as for the C library's function.
#[unsafe(no_mangle)]
unsafe extern "C" fn epoll_wait(poll: c_int, events: *mut epoll_event, events_max: c_int, timeout_ms: c_int) -> c_int {
    let simulated = NOW.get();
    let wait_ms = if simulated.is_some() { 0 } else { timeout_ms };
    let no_mask: *const c_void = std::ptr::null();
    // SAFETY: the arguments of the system call, which does what `epoll_wait` does as no signals are masked; what the caller promises
    // about `events` is what it asks.
    let ready = unsafe { libc::syscall(libc::SYS_epoll_pwait, poll, events, events_max, wait_ms, no_mask, 8usize) } as c_int;
    // A task has woken the root of the runtime: no time passes.
    let Some(now) = simulated.filter(|_| ready == 0 && timeout_ms != 0) else { return ready };
    let Ok(timeout_ms) = u64::try_from(timeout_ms) else { stand_still("every task waits, and none for time") };
    let then = now + timeout_ms * 1_000_000;
    if then > END.get() {
        stand_still("it is not over in time");
    }
    NOW.set(Some(then));
    0
}

/// Ends the process: nothing can be thrown through a C function.
fn stand_still(why: &str) -> ! {
    eprintln!("the simulated world stands still: {why}");
    std::process::abort();
}
