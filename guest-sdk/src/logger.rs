//! `log` without setup: lines go to the host on wasm, to the harness in tests. A panic's message goes to standard error.
//!
//! Invariant: installing is idempotent and never replaces a logger that somebody else installed.

use std::sync::Once;

struct GuestLogger;

static LOGGER: GuestLogger = GuestLogger;
static INSTALL: Once = Once::new();

/// Makes `log::info!` and friends work. Called before every handler.
pub(crate) fn install() {
    INSTALL.call_once(|| {
        // Fails only if the plugin has a logger of its own, which is then the one it wants.
        if log::set_logger(&LOGGER).is_ok() {
            log::set_max_level(log::LevelFilter::Trace);
        }
        #[cfg(target_family = "wasm")]
        std::panic::set_hook(Box::new(tell));
    });
}

/// A panic is a trap, of which the host sees no text. What it adds to the trap's reason are the last lines of standard error, so
/// the message goes there, with the place on the same line.
#[cfg(target_family = "wasm")]
fn tell(panic: &std::panic::PanicHookInfo<'_>) {
    use std::io::Write;

    let message = panic.payload_as_str().unwrap_or("panicked");
    // Nobody is left to tell of a failure here.
    let _ = match panic.location() {
        Some(place) => writeln!(std::io::stderr(), "panicked at {place}: {message}"),
        None => writeln!(std::io::stderr(), "panicked: {message}"),
    };
}

impl log::Log for GuestLogger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    #[cfg(target_family = "wasm")]
    fn log(&self, record: &log::Record<'_>) {
        crate::host::log(record.level(), record.target(), &record.args().to_string());
    }

    #[cfg(not(target_family = "wasm"))]
    fn log(&self, record: &log::Record<'_>) {
        crate::testing::capture(record.level(), record.target(), &record.args().to_string());
    }

    fn flush(&self) {}
}
