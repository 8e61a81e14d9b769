//! The text of `/metrics`, in Prometheus' format: etcd's names where the meaning is etcd's, `kvasir_` for the rest.
//!
//! What a metric is called and what it means stands with its reading, in the engine and the plugin host; here it is written.
//!
//! **Invariant:** every metric has its help and type. [`text`] reads `/proc`, which blocks.

use std::fmt::Write;

use kvasir_api::ETCD_VERSION;
use kvasir_api::kvasir::plugin::v1::PluginStatus;
use kvasir_api::metrics::{Kind, Sample};
use kvasir_engine::EngineMetrics;
use kvasir_plugins::PluginMetrics;

pub(super) fn text(
    engine: &EngineMetrics,
    host: &PluginMetrics,
    plugins: &[PluginStatus],
    certificate_ends_s: Option<u64>,
) -> String {
    let mut text = String::with_capacity(16 * 1024);
    for sample in engine.samples().into_iter().chain(host.samples()) {
        write_sample(&mut text, sample);
    }
    let version = format!("{{server_version=\"{ETCD_VERSION}\"}}");
    write_family(&mut text, "etcd_server_version", Kind::Gauge, "Version of etcd's API that is served.", [(version, 1)]);
    let own = format!("{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"));
    write_family(&mut text, "kvasir_build_info", Kind::Gauge, "Version of kvasir.", [(own, 1)]);
    let help = "When the certificate that this node shows to the other members ends, in seconds since 1970.";
    if let Some(ends) = certificate_ends_s {
        write_gauge(&mut text, "kvasir_peer_certificate_not_after_seconds", help, ends);
    }
    write_process(&mut text);
    write_plugins(&mut text, plugins);
    text
}

fn write_sample(text: &mut String, Sample { name, kind, help, value }: Sample) {
    write_family(text, name, kind, help, [(String::new(), value)]);
}

fn write_gauge(text: &mut String, name: &'static str, help: &'static str, value: u64) {
    write_sample(text, Sample { name, kind: Kind::Gauge, help, value });
}

fn write_family(text: &mut String, name: &str, kind: Kind, help: &str, samples: impl IntoIterator<Item = (String, u64)>) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {}", kind.as_str());
    for (labels, value) in samples {
        let _ = writeln!(text, "{name}{labels} {value}");
    }
}

/// What Prometheus' own client library says of a process, where the kernel tells it.
fn write_process(text: &mut String) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    if let Some(kib) = kib {
        write_gauge(text, "process_resident_memory_bytes", "Resident memory.", kib * 1024);
    }
    if let Ok(descriptors) = std::fs::read_dir("/proc/self/fd") {
        write_gauge(text, "process_open_fds", "Open file descriptors.", descriptors.count() as u64);
    }
}

fn write_plugins(text: &mut String, plugins: &[PluginStatus]) {
    let info = plugins.iter().map(|plugin| {
        let state = format!("{{plugin={},state={}}}", quoted(&plugin.name), quoted(&plugin.state));
        (state, plugin.generation)
    });
    write_family(text, "kvasir_plugin_generation", Kind::Gauge, "Generation in force, by plugin and state.", info);
    type Reading = fn(&kvasir_api::kvasir::plugin::v1::TriggerStatus) -> u64;
    let families: [(&str, Kind, &str, Reading); 6] = [
        ("kvasir_plugin_runs_total", Kind::Counter, "Runs of a trigger.", |trigger| trigger.runs),
        ("kvasir_plugin_faults_total", Kind::Counter, "Runs that ended in a fault of the guest.", |trigger| trigger.faults),
        ("kvasir_plugin_dead_letters", Kind::Gauge, "Events parked.", |trigger| trigger.dead_letters),
        ("kvasir_plugin_lag_revisions", Kind::Gauge, "Revisions between the trigger's cursor and the store.", |trigger| {
            trigger.lag_revisions
        }),
        ("kvasir_plugin_owner_epoch", Kind::Gauge, "Owner epoch of the trigger.", |trigger| trigger.owner_epoch),
        ("kvasir_plugin_last_run_microseconds", Kind::Gauge, "Duration of the last run.", |trigger| trigger.last_run_us),
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
        let samples: Vec<_> = engine.samples().into_iter().chain(PluginMetrics::default().samples()).collect();
        let mut names: Vec<_> = samples.iter().map(|sample| sample.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), samples.len());
        let text = text(&engine, &PluginMetrics::default(), &[], Some(1_800_000_000));
        assert!(text.contains("kvasir_peer_certificate_not_after_seconds 1800000000\n"), "{text}");
        let put = "# TYPE etcd_mvcc_put_total counter\netcd_mvcc_put_total 7\n";
        assert!(text.contains(put), "{text}");
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
