//! The command line: which verb, with which flags; a refusal of it is one line and exit code 2.
//!
//! **Invariant:** exit codes are 0 (done), 1 (refused or failed, with one `error: ` line on standard error) and 2 (usage);
//! only `lock`, which runs a command, passes on another.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command, FromArgMatches, Subcommand, error::ErrorKind};

use crate::cli::{self, Verb};
use crate::config::refused::NOT_YET;
use crate::config::{Config, ConfigError, SETTINGS, variable};
use crate::serve;

/// Refused or failed.
pub(crate) const EXIT_FAILED: u8 = 1;
/// Asked for in a way that is not understood.
pub(crate) const EXIT_USAGE: u8 = 2;

/// Runs the command line to its end and says how it ended.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let matches = match command().try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(error) => return refuse(&error),
    };
    match matches.subcommand() {
        Some(("serve", flags)) => match serve_config(flags) {
            Ok(config) => serve::run(config),
            Err(error) => fail(&error.to_string(), EXIT_USAGE),
        },
        _ => match (cli::Global::from_arg_matches(&matches), Verb::from_arg_matches(&matches)) {
            (Ok(global), Ok(verb)) => cli::run(&global, verb),
            (Err(error), _) | (_, Err(error)) => refuse(&error),
        },
    }
}

/// Says why on standard error, as one line, and gives the exit code.
pub(crate) fn fail(reason: &str, code: u8) -> ExitCode {
    let line = reason.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
    // Nobody is left to tell when standard error is closed.
    let _ = writeln!(std::io::stderr(), "error: {line}");
    ExitCode::from(code)
}

/// The whole command tree.
pub(crate) fn command() -> Command {
    let serve = SETTINGS.iter().fold(Command::new("serve").about("Runs a node: no flags needed"), |command, setting| {
        let help = format!("{} [env: {}]", setting.help, variable(setting.name));
        let arg = Arg::new(setting.name).long(setting.name).help(help).allow_negative_numbers(true);
        command.arg(match setting.value {
            // On or off: the bare flag turns it on.
            "" => arg.num_args(0..=1).default_missing_value("true").value_name("BOOL"),
            value => arg.value_name(value),
        })
    });
    // etcd's flags that are refused parse with or without a value, so that the refusal can say why.
    let serve = NOT_YET.iter().fold(serve, |command, (name, _)| {
        command
            .arg(Arg::new(*name).long(*name).hide(true).num_args(0..=1).default_missing_value("").allow_negative_numbers(true))
    });
    let root = Command::new("kvasir")
        .about("A strongly consistent key-value node that runs its users' code, and its client")
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand_required(true)
        .arg_required_else_help(true)
        .max_term_width(120)
        .subcommand(serve);
    <cli::Global as clap::Args>::augment_args(Verb::augment_subcommands(root))
}

fn serve_config(flags: &ArgMatches) -> Result<Config, ConfigError> {
    Config::settle(
        |name| flags.get_one::<String>(name).cloned(),
        |variable| std::env::var_os(variable).map(|value| value.to_string_lossy().into_owned()),
    )
}

/// A usage error in one line; help and version as clap prints them.
fn refuse(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // A reader that went away (`kvasir --help | head -1`) is no failure.
            let _ = error.print();
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            ExitCode::from(EXIT_USAGE)
        }
        _ => fail(&usage_line(error), EXIT_USAGE),
    }
}

/// clap's explanation without its heading, tips kept, usage left to `--help`.
fn usage_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let kept: Vec<&str> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:"))
        .filter(|line| !line.is_empty() && !line.starts_with("For more information"))
        .collect();
    let line = kept.join(" ");
    format!("{}; see --help", line.strip_prefix("error: ").unwrap_or(&line))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<ArgMatches, clap::Error> {
        command().try_get_matches_from(std::iter::once(&"kvasir").chain(words))
    }

    #[test]
    fn the_command_tree_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn an_unknown_flag_is_refused_in_one_line_that_names_it() {
        let error = parse(&["serve", "--data-dri", "/x"]).expect_err("a typo");
        let line = usage_line(&error);
        assert!(line.contains("--data-dri") && line.contains("--data-dir") && !line.contains('\n'), "{line}");
        assert!(!line.starts_with("error"), "{line}");
    }

    #[test]
    fn a_flag_without_its_value_is_refused() {
        let line = usage_line(&parse(&["serve", "--data-dir"]).expect_err("no value"));
        assert!(line.contains("--data-dir"), "{line}");
    }

    #[test]
    fn a_flag_does_not_swallow_the_next_one() {
        let line = usage_line(&parse(&["serve", "--data-dir", "--name", "a"]).expect_err("no value"));
        assert!(line.contains("--data-dir"), "{line}");
        let matches = parse(&["serve", "--unsafe-no-fsync", "--name", "a"]).expect("parsed, to be refused with a reason");
        let (_, flags) = matches.subcommand().expect("serve");
        assert_eq!(flags.get_one::<String>("name").map(String::as_str), Some("a"));
        assert!(matches!(serve_config(flags), Err(ConfigError::NotYet { name, .. }) if name == "unsafe-no-fsync"));
        // What begins with a dash and is no flag is a value still, to be refused for what it is.
        let matches = parse(&["serve", "--quota-backend-bytes", "-1", "--data-dir=-x"]).expect("parsed");
        let (_, flags) = matches.subcommand().expect("serve");
        assert_eq!(flags.get_one::<String>("data-dir").map(String::as_str), Some("-x"));
        assert!(serve_config(flags).is_err_and(|error| error.to_string().contains("quota-backend-bytes")));
    }

    #[test]
    fn serve_reads_its_flags_and_refuses_what_is_not_supported_yet() {
        let matches = parse(&["serve", "--name", "a", "--listen-client-urls=http://127.0.0.1:0"]).expect("flags");
        let (_, flags) = matches.subcommand().expect("serve");
        let config = serve_config(flags).expect("a config");
        assert_eq!((config.name.as_str(), config.listen[0].as_str()), ("a", "127.0.0.1:0"));
        for words in [&["serve", "--unsafe-no-fsync"][..], &["serve", "--wal-dir", "/x"], &["serve", "--client-cert-auth=true"]]
        {
            let matches = parse(words).expect("parsed, to be refused with a reason");
            let (_, flags) = matches.subcommand().expect("serve");
            assert!(matches!(serve_config(flags), Err(ConfigError::NotYet { .. })), "{words:?}");
        }
    }
}
