//! Log lines that a person can read: one line each, time in UTC, level, where, what.
//!
//! **Invariant:** set up once, by `serve`; the client verbs log nothing.

use std::fs::OpenOptions;
use std::io::{self, IsTerminal};

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::prelude::*;

use crate::config::{Config, LogOutput};

/// Starts logging as the config says.
///
/// # Errors
/// One line when the log's file cannot be opened.
pub(crate) fn start(config: &Config) -> Result<(), String> {
    let (writer, colours) = match &config.log_output {
        LogOutput::Stderr => (BoxMakeWriter::new(io::stderr), io::stderr().is_terminal()),
        LogOutput::Stdout => (BoxMakeWriter::new(io::stdout), io::stdout().is_terminal()),
        LogOutput::File(path) => {
            let file = OpenOptions::new().create(true).append(true).open(path).map_err(|error| {
                format!("cannot write logs to {}: {error}; give --log-outputs another path, or stderr", path.display())
            })?;
            (BoxMakeWriter::new(file), false)
        }
    };
    let levels = levels(&config.log_level);
    let lines = tracing_subscriber::fmt::layer().compact().with_ansi(colours).with_writer(writer);
    // A second start in one process (tests) keeps the first.
    let _ = tracing_subscriber::registry().with(lines.with_filter(levels)).try_init();
    Ok(())
}

/// The filter for a level or directives. A level alone, up to `info`, is kvasir's: the consensus library tells each step of its
/// start and every stale message at `info` and `warn`, which is for those who ask for it (`debug`, or `info,openraft=info`).
fn levels(text: &str) -> Targets {
    // Checked when the config was settled; `info` is what remains should that ever change.
    let asked: Targets = text.parse().unwrap_or_else(|_| Targets::new().with_default(LevelFilter::INFO));
    match text.parse::<LevelFilter>() {
        Ok(level) if level <= LevelFilter::INFO => asked.with_target("openraft", level.min(LevelFilter::ERROR)),
        _ => asked,
    }
}

#[cfg(test)]
mod tests {
    use super::levels;
    use tracing::Level;

    #[test]
    fn a_level_alone_keeps_the_consensus_library_quiet() {
        let info = levels("info");
        assert!(info.would_enable("kvasir_engine::lease", &Level::INFO));
        assert!(!info.would_enable("openraft::core::raft_core", &Level::WARN));
        assert!(info.would_enable("openraft::core::raft_core", &Level::ERROR));
        assert!(!levels("off").would_enable("openraft", &Level::ERROR));
    }

    #[test]
    fn who_asks_for_more_gets_it() {
        assert!(levels("debug").would_enable("openraft", &Level::DEBUG));
        let both = levels("warn,openraft=info");
        assert!(both.would_enable("openraft", &Level::INFO) && !both.would_enable("kvasir_node", &Level::INFO));
    }
}
