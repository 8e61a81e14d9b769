//! `log`: lines for `kvasir plugin logs`.

use crate::bindings::kvasir::plugin::log::{Host, Level};
use crate::run::Run;

impl Host for Run {
    async fn log(&mut self, level: Level, target: String, message: String) -> wasmtime::Result<()> {
        self.charge()?;
        let level = match level {
            Level::Trace => "trace",
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Warn => "warn",
            Level::Error => "error",
        };
        self.facts.log.guest(&self.facts.source, level, &target, &message);
        Ok(())
    }
}
