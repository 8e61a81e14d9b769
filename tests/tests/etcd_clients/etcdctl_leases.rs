//! `etcdctl lease`: grant, keep-alive, revoke, timetolive, list.

use std::time::Instant;

use crate::etcdctl::Ctl;

/// Grants a lease of this many seconds and answers its id, as etcdctl prints it.
fn grant(ctl: &Ctl, ttl_s: u32) -> String {
    let line = ctl.ok(&["lease", "grant", &ttl_s.to_string()]);
    let id = line.strip_prefix("lease ").and_then(|rest| rest.split_once(' ')).map(|(id, _)| id.to_owned());
    let id = id.unwrap_or_else(|| panic!("no id in {line:?}"));
    assert_eq!(line, format!("lease {id} granted with TTL({ttl_s}s)\n"));
    id
}

#[test]
fn etcdctl_grants_shows_keeps_and_revokes_a_lease() {
    let Some(ctl) = Ctl::start("etcdctl lease grant, timetolive, keep-alive --once, list, revoke") else { return };
    let id = grant(&ctl, 60);
    ctl.ok(&["put", "lease/a", "v", &format!("--lease={id}")]);
    ctl.ok(&["put", "lease/b", "v", &format!("--lease={id}")]);
    let left = ctl.ok(&["lease", "timetolive", "--keys", &id]);
    let head = format!("lease {id} granted with TTL(60s), remaining(");
    // etcd lists a lease's keys in no particular order.
    let keys = ["lease/a lease/b", "lease/b lease/a"].map(|keys| format!("), attached keys([{keys}])\n"));
    assert!(left.starts_with(&head) && keys.iter().any(|keys| left.ends_with(keys)), "{left}");
    assert_eq!(ctl.ok(&["lease", "keep-alive", "--once", &id]), format!("lease {id} keepalived with TTL(60)\n"));
    assert!(ctl.ok(&["lease", "list"]).lines().any(|line| line == id));

    assert_eq!(ctl.ok(&["lease", "revoke", &id]), format!("lease {id} revoked\n"));
    assert_eq!(ctl.ok(&["get", "--prefix", "lease/"]), "");
    assert_eq!(ctl.ok(&["lease", "timetolive", &id]), format!("lease {id} already expired\n"));
    assert!(ctl.refused(&["lease", "revoke", &id]).contains("etcdserver: requested lease not found"));
    let kept = ctl.refused(&["lease", "keep-alive", "--once", &id]);
    assert!(kept.contains("etcdserver: requested lease not found"), "{kept}");
}

#[test]
fn etcdctl_keeps_a_lease_alive_past_its_ttl_and_lets_it_go() {
    let Some(ctl) = Ctl::start("etcdctl lease keep-alive") else { return };
    let id = grant(&ctl, 3);
    ctl.ok(&["put", "kept/a", "v", &format!("--lease={id}")]);
    let begin = Instant::now();
    let mut keeping = ctl.running(&["lease", "keep-alive", &id]);
    while begin.elapsed().as_secs() < 7 {
        keeping.expect(&[&format!("lease {id} keepalived with TTL(3)")]);
    }
    assert_eq!(ctl.ok(&["get", "kept/a"]), "kept/a\nv\n", "after more than two TTLs");
    let mut watch = ctl.running(&["watch", "kept/a", &format!("--rev={}", ctl.mod_revision("kept/a") + 1)]);
    drop(keeping);
    watch.expect(&["DELETE", "kept/a", ""]);
    assert_eq!(ctl.ok(&["lease", "timetolive", &id]), format!("lease {id} already expired\n"));
}

#[test]
fn a_key_put_again_without_its_lease_outlives_it() {
    let Some(ctl) = Ctl::start("etcdctl put without the lease") else { return };
    let id = grant(&ctl, 60);
    ctl.ok(&["put", "detach/a", "v", &format!("--lease={id}")]);
    ctl.ok(&["put", "detach/b", "v", &format!("--lease={id}")]);
    ctl.ok(&["put", "detach/a", "w"]);
    ctl.ok(&["put", "detach/b", "w", "--ignore-lease"]);
    ctl.ok(&["lease", "revoke", &id]);
    assert_eq!(ctl.ok(&["get", "--prefix", "detach/"]), "detach/a\nw\n");
}
