//! The text of `/metrics`, in Prometheus' format: etcd's names where the meaning is etcd's, `kvasir_` for the rest.
//!
//! **Invariant:** pure but for the clock-free readings it is given; every metric has its help and type.

use std::fmt::Write;

use kvasir_api::kvasir::plugin::v1::PluginStatus;
use kvasir_engine::EngineMetrics;
use kvasir_plugins::PluginMetrics;

use super::pages::ETCD_VERSION;

/// One metric without labels: name, type, help, value.
type Sample = (&'static str, &'static str, &'static str, u64);

pub(super) fn text(engine: &EngineMetrics, host: &PluginMetrics, plugins: &[PluginStatus]) -> String {
    let mut text = String::with_capacity(16 * 1024);
    for sample in engine_samples(engine).into_iter().chain(host_samples(host)) {
        write_sample(&mut text, sample);
    }
    let version = format!("{{server_version=\"{ETCD_VERSION}\"}}");
    write_family(&mut text, "etcd_server_version", "gauge", "Version of etcd's API that is served.", [(version, 1)]);
    let own = format!("{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"));
    write_family(&mut text, "kvasir_build_info", "gauge", "Version of kvasir.", [(own, 1)]);
    write_process(&mut text);
    write_plugins(&mut text, plugins);
    text
}

fn engine_samples(engine: &EngineMetrics) -> Vec<Sample> {
    vec![
        ("etcd_server_has_leader", "gauge", "Whether this member knows a leader.", engine.has_leader.into()),
        ("etcd_server_is_leader", "gauge", "Whether this member leads.", engine.is_leader.into()),
        ("etcd_server_is_learner", "gauge", "Whether this member is a learner.", 0),
        ("etcd_server_proposals_committed_total", "gauge", "Entries of the raft log that are committed.", engine.applied_index),
        ("etcd_server_proposals_applied_total", "gauge", "Entries of the raft log that are applied.", engine.applied_index),
        ("etcd_server_proposals_pending", "gauge", "Commands proposed and not yet answered.", engine.proposals_pending),
        (
            "etcd_server_proposals_failed_total",
            "counter",
            "Commands refused because too many waited.",
            engine.proposals_refused,
        ),
        ("etcd_server_quota_backend_bytes", "gauge", "Logical bytes that may be stored.", engine.quota_bytes),
        ("etcd_mvcc_db_total_size_in_bytes", "gauge", "Logical bytes stored.", engine.logical_bytes),
        ("etcd_mvcc_db_total_size_in_use_in_bytes", "gauge", "Logical bytes stored.", engine.logical_bytes),
        ("etcd_debugging_mvcc_current_revision", "gauge", "The store's revision.", engine.revision),
        ("etcd_debugging_mvcc_compact_revision", "gauge", "Compacted up to this revision.", engine.compact_revision),
        ("etcd_mvcc_range_total", "counter", "Range requests.", engine.ranges),
        ("etcd_mvcc_put_total", "counter", "Put requests.", engine.puts),
        ("etcd_mvcc_delete_total", "counter", "Delete requests.", engine.deletes),
        ("etcd_mvcc_txn_total", "counter", "Transactions.", engine.txns),
        ("etcd_debugging_mvcc_watch_stream_total", "gauge", "Open watch streams.", engine.watch_streams),
        ("etcd_debugging_mvcc_watcher_total", "gauge", "Watchers.", engine.watchers),
        (
            "etcd_debugging_mvcc_slow_watcher_total",
            "gauge",
            "Watchers that read history at the moment.",
            engine.watchers_behind,
        ),
        ("etcd_debugging_mvcc_events_total", "counter", "Events sent to watchers.", engine.watch_events),
        ("etcd_debugging_lease_granted_total", "counter", "Leases granted.", engine.leases_granted),
        ("etcd_debugging_lease_revoked_total", "counter", "Leases revoked.", engine.leases_revoked),
        ("etcd_debugging_lease_renewed_total", "counter", "Renewals answered.", engine.leases_renewed),
        ("etcd_server_lease_expired_total", "counter", "Leases that expired.", engine.leases_expired),
        ("kvasir_leases", "gauge", "Leases in force.", engine.leases),
        ("kvasir_lock_waiters", "gauge", "Callers waiting for a lock.", engine.lock_waiters),
        ("kvasir_compactions_total", "counter", "Compactions asked for.", engine.compactions),
        ("kvasir_raft_term", "gauge", "Raft's term.", engine.raft_term),
        ("kvasir_raft_log_index", "gauge", "Last entry of the raft log.", engine.log_index),
        ("kvasir_raft_applied_index", "gauge", "Last applied entry.", engine.applied_index),
        ("kvasir_checkpoint_index", "gauge", "Last entry that a durable checkpoint covers.", engine.checkpoint_index),
        ("kvasir_state_tail_bytes", "gauge", "Applied bytes that are not in the state file yet.", engine.tail_bytes),
        // Entries over syncs is what group commit makes of them.
        ("kvasir_log_syncs_total", "counter", "Syncs of the raft log.", engine.log_syncs),
        (
            "kvasir_log_entries_total",
            "counter",
            "Entries appended to the raft log; over syncs: entries per sync.",
            engine.log_entries,
        ),
        ("kvasir_log_bytes_total", "counter", "Bytes appended to the raft log.", engine.log_bytes),
        ("kvasir_proposals_total", "counter", "Commands accepted for proposal.", engine.proposals),
        ("kvasir_read_rounds_total", "counter", "ReadIndex rounds.", engine.read_rounds),
        ("kvasir_reads_confirmed_total", "counter", "Linearizable reads that those rounds served.", engine.reads_confirmed),
        ("kvasir_watch_responses_total", "counter", "Responses sent to watchers.", engine.watch_responses),
        (
            "kvasir_watch_history_reads_total",
            "counter",
            "Reads of history for watchers that were behind.",
            engine.history_reads,
        ),
    ]
}

fn host_samples(host: &PluginMetrics) -> Vec<Sample> {
    vec![
        ("kvasir_plugins", "gauge", "Installed plugins.", host.plugins),
        ("kvasir_plugins_quarantined", "gauge", "Plugins that are quarantined.", host.plugins_quarantined),
        ("kvasir_plugins_failed", "gauge", "Plugins whose code cannot run here.", host.plugins_failed),
        ("kvasir_plugins_running", "gauge", "Runs going on now.", host.running),
        ("kvasir_plugins_runs_total", "counter", "Runs ended.", host.runs_total),
        ("kvasir_plugins_faults_total", "counter", "Runs that failed by the guest's fault.", host.faults_total),
        ("kvasir_plugins_stopped_total", "counter", "Runs that trapped or were stopped by a limit.", host.stopped_total),
        (
            "kvasir_plugins_conflicts_total",
            "counter",
            "Runs repeated because what they read had changed.",
            host.conflicts_total,
        ),
        ("kvasir_plugins_effects_total", "counter", "Effects committed.", host.effects_total),
        ("kvasir_plugins_parked_total", "counter", "Events parked as dead letters.", host.parked_total),
        ("kvasir_plugins_quarantines_total", "counter", "Times a plugin was quarantined.", host.quarantines_total),
        ("kvasir_plugins_cpu_microseconds_total", "counter", "Processor time of guests.", host.cpu_us_total),
        ("kvasir_plugins_run_microseconds_total", "counter", "Time from start to end of runs.", host.run_us_total),
        (
            "kvasir_plugins_lag_revisions_max",
            "gauge",
            "Largest distance of a watch trigger from the store.",
            host.lag_revisions_max,
        ),
        ("kvasir_plugins_pool_memories", "gauge", "Linear memories in use and kept warm.", host.pool_memories),
    ]
}

fn write_sample(text: &mut String, (name, kind, help, value): Sample) {
    write_family(text, name, kind, help, [(String::new(), value)]);
}

fn write_family(text: &mut String, name: &str, kind: &str, help: &str, samples: impl IntoIterator<Item = (String, u64)>) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    for (labels, value) in samples {
        let _ = writeln!(text, "{name}{labels} {value}");
    }
}

/// What Prometheus' own client library says of a process, where the kernel tells it.
fn write_process(text: &mut String) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    if let Some(kib) = kib {
        write_sample(text, ("process_resident_memory_bytes", "gauge", "Resident memory.", kib * 1024));
    }
    if let Ok(descriptors) = std::fs::read_dir("/proc/self/fd") {
        write_sample(text, ("process_open_fds", "gauge", "Open file descriptors.", descriptors.count() as u64));
    }
}

fn write_plugins(text: &mut String, plugins: &[PluginStatus]) {
    let info = plugins.iter().map(|plugin| {
        let state = format!("{{plugin={},state={}}}", quoted(&plugin.name), quoted(&plugin.state));
        (state, plugin.generation)
    });
    write_family(text, "kvasir_plugin_generation", "gauge", "Generation in force, by plugin and state.", info);
    type Reading = fn(&kvasir_api::kvasir::plugin::v1::TriggerStatus) -> u64;
    let families: [(&str, &str, &str, Reading); 6] = [
        ("kvasir_plugin_runs_total", "counter", "Runs of a trigger.", |trigger| trigger.runs),
        ("kvasir_plugin_faults_total", "counter", "Runs that ended in a fault of the guest.", |trigger| trigger.faults),
        ("kvasir_plugin_dead_letters", "gauge", "Events parked.", |trigger| trigger.dead_letters),
        ("kvasir_plugin_lag_revisions", "gauge", "Revisions between the trigger's cursor and the store.", |trigger| {
            trigger.lag_revisions
        }),
        ("kvasir_plugin_owner_epoch", "gauge", "Owner epoch of the trigger.", |trigger| trigger.owner_epoch),
        ("kvasir_plugin_last_run_microseconds", "gauge", "Duration of the last run.", |trigger| trigger.last_run_us),
    ];
    for (name, kind, help, reading) in families {
        let samples = plugins.iter().flat_map(|plugin| {
            plugin.triggers.iter().map(move |trigger| {
                let labels = format!("{{plugin={},trigger={}}}", quoted(&plugin.name), quoted(&trigger.id));
                (labels, reading(trigger))
            })
        });
        write_family(text, name, kind, help, samples);
    }
}

/// A label's value with what the format reserves escaped.
fn quoted(value: &str) -> String {
    format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvasir_api::kvasir::plugin::v1::TriggerStatus;

    #[test]
    fn every_metric_is_named_once_and_has_a_value() {
        let engine = EngineMetrics { puts: 7, ..EngineMetrics::default() };
        let samples: Vec<_> = engine_samples(&engine).into_iter().chain(host_samples(&PluginMetrics::default())).collect();
        let mut names: Vec<_> = samples.iter().map(|sample| sample.0).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), samples.len());
        assert!(samples.contains(&("etcd_mvcc_put_total", "counter", "Put requests.", 7)));
    }

    #[test]
    fn plugins_are_labelled_and_labels_are_escaped() {
        let trigger = TriggerStatus { id: "t".into(), runs: 3, ..TriggerStatus::default() };
        let plugin = PluginStatus { name: "a\"b".into(), triggers: vec![trigger], ..PluginStatus::default() };
        let mut text = String::new();
        write_plugins(&mut text, &[plugin]);
        assert!(text.contains("kvasir_plugin_runs_total{plugin=\"a\\\"b\",trigger=\"t\"} 3\n"), "{text}");
        assert!(
            text.lines()
                .all(|line| line.starts_with("# ") || line.rsplit_once(' ').is_some_and(|(_, v)| v.parse::<u64>().is_ok()))
        );
    }
}
