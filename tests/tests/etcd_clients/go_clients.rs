//! Go programs on clientv3, today's import path and the old one: `tests/go/clientv3`, `tests/go/clientv3-old`.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use crate::process::run;
use crate::server::{Server, client};

/// How long a scenario may take; the longest one wants 16 seconds.
const SCENARIO_LIMIT: Duration = Duration::from_secs(100);

/// Every scenario that needs nothing but a server. They mostly wait, so all run at the same time.
const SCENARIOS: [&str; 7] = ["put-get", "dial-timeout", "watch", "lease-expiry", "keep-alive", "mutex", "mutex-fairness"];

fn every_scenario(program: &Path, path: &str) {
    let server = Server::start();
    let address = server.address();
    let ended: Vec<_> = std::thread::scope(|scope| {
        let running = SCENARIOS.map(|scenario| {
            scope.spawn(move || {
                let prefix = format!("/{path}/{scenario}/");
                // The two mutex scenarios would queue up behind each other on one name.
                let lock = if scenario == "mutex" { "/my-lock/".to_owned() } else { format!("/my-lock-{path}/") };
                let arguments = ["-endpoint", address, "-prefix", &prefix, "-lock", &lock, scenario];
                run(program, &arguments, "", SCENARIO_LIMIT)
            })
        });
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut failed = String::new();
    for (scenario, ended) in SCENARIOS.iter().zip(ended) {
        if !(ended.success && ended.stdout.ends_with("ok\n")) {
            let _ = writeln!(failed, "--- {scenario}\n{}{}", ended.stdout, ended.stderr);
        }
    }
    assert!(failed.is_empty(), "scenarios of {path} failed:\n{failed}");
}

#[test]
fn a_program_on_todays_clientv3_sees_etcd() {
    let Some(program) = client("Go clientv3, today's path", "KVASIR_GO_CLIENT", "clientv3") else { return };
    every_scenario(&program, "clientv3");
}

#[test]
fn a_program_on_the_old_clientv3_sees_etcd() {
    let Some(program) = client("Go clientv3, old path", "KVASIR_GO_CLIENT_OLD", "clientv3-old") else { return };
    every_scenario(&program, "clientv3-old");
}
