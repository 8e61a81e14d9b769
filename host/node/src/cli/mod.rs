//! The client verbs, named and flagged as etcdctl's: they come through the gRPC door like any other client.
//!
//! **Invariant:** results go to standard output, everything else to standard error; a write whose fate is unknown is not
//! sent again.

mod cert;
mod connect;
mod get;
mod keys;
mod lease;
mod lock;
mod maintain;
mod member;
mod out;
mod plugin;
mod put;
mod snapshot;
mod status;
mod token;
mod txn;
mod watch;
mod words;

use std::io::ErrorKind;
use std::process::ExitCode;
use std::time::Duration;

use crate::args::{EXIT_FAILED, EXIT_USAGE, fail};
use connect::Connection;
use out::{Format, Out};

/// Flags that every client verb takes.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Global {
    /// Addresses of the node, comma-separated; the first that answers is used
    #[arg(
        long,
        global = true,
        env = "KVASIR_ENDPOINTS",
        default_value = "127.0.0.1:2379",
        value_name = "HOST:PORT",
        help_heading = "Client options"
    )]
    endpoints: String,
    /// How results are written
    #[arg(
        short = 'w',
        long = "write-out",
        global = true,
        value_enum,
        default_value = "simple",
        value_name = "FORMAT",
        help_heading = "Client options"
    )]
    write_out: Format,
    /// Wait so long for a connection (500ms, 5s)
    #[arg(long, global = true, default_value = "5s", value_parser = duration, value_name = "DURATION", help_heading = "Client options")]
    dial_timeout: Duration,
    /// Wait so long for the answer to one command (500ms, 5s)
    #[arg(long, global = true, default_value = "10s", value_parser = duration, value_name = "DURATION", help_heading = "Client options")]
    command_timeout: Duration,
}

/// What a client can ask for.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    /// Writes a key; without a value on the command line, it is read from standard input
    Put(put::Put),
    /// Reads a key or a range of keys
    Get(get::Get),
    /// Deletes a key or a range of keys, and prints how many
    Del(put::Del),
    /// Runs several requests as one, if what they depend on holds; read from standard input
    Txn(txn::Txn),
    /// Prints changes of a key or a range of keys as they happen
    Watch(watch::Watch),
    /// Leases: keys attached to one go when it ends
    #[command(subcommand)]
    Lease(lease::Lease),
    /// Holds a lock: until interrupted, or while a command runs
    Lock(lock::Lock),
    /// How every member of the cluster is
    Status,
    /// Forgets history below a revision
    #[command(visible_alias = "compact")]
    Compaction(maintain::Compaction),
    /// Members of the cluster
    #[command(subcommand)]
    Member(member::Member),
    /// Hands leadership to a member
    MoveLeader(member::Id),
    /// Tokens, with which nodes join the cluster
    #[command(subcommand)]
    Token(token::Token),
    /// Certificates of members, and the authority behind them
    #[command(subcommand)]
    Cert(cert::Cert),
    /// Snapshots: saves one, looks at one, makes a new cluster of one
    #[command(subcommand)]
    Snapshot(snapshot::Snapshot),
    /// Alarms, such as a full quota
    #[command(subcommand)]
    Alarm(maintain::Alarm),
    /// Plugins: install, look at and remove the code that runs in the node
    #[command(subcommand)]
    Plugin(plugin::Plugin),
}

/// A verb was called with flags that do not go together.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// Runs a verb to its end.
pub(crate) fn run(global: &Global, verb: Verb) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("cannot start: {error}"), EXIT_FAILED),
    };
    let mut out = Out::stdout(global.write_out);
    let outcome = runtime.block_on(dispatch(global, verb, &mut out));
    // Standard input may still be read by a thread that cannot be stopped; nothing waits for it.
    runtime.shutdown_background();
    let outcome = outcome.and_then(|code| out.flush().map(|()| code).map_err(anyhow::Error::from));
    outcome.unwrap_or_else(|error| failed(&error))
}

fn failed(error: &anyhow::Error) -> ExitCode {
    if let Some(error) = error.downcast_ref::<std::io::Error>()
        && error.kind() == ErrorKind::BrokenPipe
    {
        // The reader has seen enough (`kvasir get --prefix / | head`).
        return ExitCode::SUCCESS;
    }
    if let Some(usage) = error.downcast_ref::<Usage>() {
        return fail(&usage.0, EXIT_USAGE);
    }
    fail(&connect::explain(error), EXIT_FAILED)
}

async fn dispatch(global: &Global, verb: Verb, out: &mut Out) -> anyhow::Result<ExitCode> {
    let connection = Connection::new(global);
    match verb {
        Verb::Put(put) => put.run(&connection, out).await?,
        Verb::Get(get) => get.run(&connection, out).await?,
        Verb::Del(del) => del.run(&connection, out).await?,
        Verb::Txn(txn) => txn.run(&connection, out).await?,
        Verb::Watch(watch) => watch.run(&connection, out).await?,
        Verb::Lease(lease) => lease.run(&connection, out).await?,
        Verb::Lock(lock) => return lock.run(&connection, out).await,
        Verb::Status => status::status(&connection, out).await?,
        Verb::Compaction(compaction) => compaction.run(&connection, out).await?,
        Verb::Member(member) => member.run(&connection, out).await?,
        Verb::MoveLeader(to) => to.lead(&connection, out).await?,
        Verb::Cert(cert) => cert.run(&connection, out).await?,
        Verb::Token(token) => token.run(&connection, out).await?,
        Verb::Snapshot(snapshot) => snapshot.run(&connection, out).await?,
        Verb::Alarm(alarm) => alarm.run(&connection, out).await?,
        Verb::Plugin(plugin) => plugin.run(&connection, out).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// `500ms`, `5s`, `2m`.
fn duration(text: &str) -> Result<Duration, String> {
    crate::config::parse::duration(text)
}

/// A lease's id, in hexadecimal as etcdctl prints and takes it.
fn lease_id(text: &str) -> Result<i64, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    match i64::from_str_radix(digits, 16) {
        Ok(id) if id >= 0 => Ok(id),
        _ => Err("not a lease ID; give it in hexadecimal, as `lease grant` prints it".to_owned()),
    }
}

/// An id of a member or a token, in hexadecimal as it is printed.
fn hexadecimal(text: &str) -> Result<u64, String> {
    u64::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16)
        .map_err(|_| "not an ID; give it in hexadecimal, as it is printed".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::FromArgMatches;

    fn verb(words: &[&str]) -> Result<Verb, clap::Error> {
        let matches = crate::args::command().try_get_matches_from(std::iter::once(&"kvasir").chain(words))?;
        Verb::from_arg_matches(&matches)
    }

    #[test]
    fn the_verbs_take_etcdctls_flags() {
        for line in [
            "put a b",
            "put a",
            "put --lease=1234abcd --prev-kv a b",
            "put --ignore-value a",
            "put a -- -b",
            "get a",
            "get a z --rev=3 --limit 2 --order=DESCEND --sort-by=MODIFY",
            "get --prefix /a --keys-only --consistency=s -w json",
            "get --from-key a --print-value-only",
            "get --prefix --count-only a --endpoints=127.0.0.1:1",
            "del a --prefix --prev-kv",
            "del --from-key a",
            "txn",
            "txn -i",
            "txn --interactive -w json",
            "watch a --rev 4 --prev-kv --prefix",
            "lease grant 5",
            "lease keep-alive --once 694d",
            "lease timetolive 694d --keys",
            "lease revoke 694d",
            "lease list",
            "lock name --ttl 5",
            "lock name echo --flag x",
            "status",
            "compaction 5 --physical",
            "member list",
            "member add b --peer-urls=https://h:1,https://h:2 --learner",
            "member remove 8e9e05c52164694d",
            "member update 1f --peer-urls https://h:1",
            "member promote 1f",
            "move-leader 1f",
            "cert rotate-authority",
            "cert name --name a",
            "alarm disarm",
            "snapshot save a.snap --endpoints=127.0.0.1:1",
            "snapshot status a.snap -w json",
            "snapshot restore a.snap --data-dir d --name a --initial-cluster-token t",
            "snapshot restore a.snap --data-dir d --bump-revision 1000 --mark-compacted",
            "token create --ttl 30m",
            "token ls -w json",
            "token rm 1f",
            "plugin install a.wasm --grant kv:read=/config/ --grant kv:write=/rendered/ --config k=v --dry-run",
            "plugin install a.wasm --manifest plugin.toml --accept-requested --upgrade",
            "plugin ls",
            "plugin logs -f --tail 5 a",
            "plugin dlq list a",
        ] {
            let words: Vec<&str> = line.split(' ').collect();
            if let Err(error) = verb(&words) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn flags_that_contradict_each_other_are_refused() {
        for line in [
            "get a --prefix --from-key",
            "del a --prefix --from-key",
            "lease grant soon",
            "lease revoke zz",
            "get --order=UP a",
            "member add b",
            "member add b --peer-urls=http://h:1",
            "member remove zz",
            "snapshot restore a.snap",
            "snapshot restore a.snap --data-dir d --bump-revision 5",
            "snapshot restore a.snap --data-dir d --mark-compacted",
        ] {
            let words: Vec<&str> = line.split(' ').collect();
            assert!(verb(&words).is_err(), "{line}");
        }
    }

    #[test]
    fn lease_ids_are_hexadecimal() {
        assert_eq!(lease_id("694d"), Ok(0x694d));
        assert_eq!(lease_id("0x694d"), Ok(0x694d));
        assert!(lease_id("-1").is_err() && lease_id("").is_err() && lease_id("xyz").is_err());
    }
}
