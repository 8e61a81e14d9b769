//! Precedence of the sources, and the line that each wrong value gives.

use super::refused::NOT_YET;
use super::{Config, ConfigError, LogOutput, SETTINGS};

/// Settles from lists of (name, value) and (variable, value).
pub(super) fn settle(flags: &[(&str, &str)], environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let look = |list: &[(&str, &str)], name: &str| list.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
    Config::settle(|name| look(flags, name), |name| look(environment, name))
}

pub(super) fn refusal(flags: &[(&str, &str)], environment: &[(&str, &str)]) -> String {
    match settle(flags, environment) {
        Ok(config) => panic!("accepted: {config:?}"),
        Err(error) => error.to_string(),
    }
}

fn file(text: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().expect("a scratch folder");
    let path = folder.path().join("kvasir.toml");
    std::fs::write(&path, text).expect("a file in it");
    let path = path.display().to_string();
    (folder, path)
}

#[test]
fn with_nothing_given_a_single_node_on_loopback_is_served() {
    let config = settle(&[], &[]).expect("defaults");
    assert_eq!(config.listen, ["127.0.0.1:2379"]);
    assert_eq!(config.data_dir, std::path::Path::new("kvasir-data"));
    assert_eq!((config.name.as_str(), config.quota_bytes), ("default", None));
    assert_eq!((config.heartbeat_ms, config.election_ms), (100, 1_000));
    assert_eq!(config.log_output, LogOutput::Stderr);
}

#[test]
fn a_flag_goes_before_the_environment_before_the_file_before_the_default() {
    let (_folder, path) =
        file("name = 'file'\ndata-dir = '/file'\nlisten-client-urls = ['http://127.0.0.1:1', 'http://[::1]:2']\n");
    let config = settle(
        &[("name", "flag"), ("config-file", &path)],
        &[("KVASIR_NAME", "env"), ("KVASIR_DATA_DIR", "/env"), ("KVASIR_QUOTA_BACKEND_BYTES", "7")],
    )
    .expect("a mix of sources");
    assert_eq!(config.name, "flag");
    assert_eq!(config.data_dir, std::path::Path::new("/env"));
    assert_eq!(config.listen, ["127.0.0.1:1", "[::1]:2"]);
    assert_eq!(config.quota_bytes, Some(7));
    assert_eq!(config.election_ms, 1_000);
}

#[test]
fn the_file_itself_may_be_named_by_the_environment() {
    let (_folder, path) = file("heartbeat-interval = 50\n");
    assert_eq!(settle(&[], &[("KVASIR_CONFIG_FILE", &path)]).expect("the file").heartbeat_ms, 50);
}

#[test]
fn an_unknown_field_in_the_file_is_refused_by_name() {
    let (_folder, path) = file("name = 'a'\nqouta-backend-bytes = 1\n");
    let line = refusal(&[("config-file", &path)], &[]);
    assert!(line.contains("unknown field `qouta-backend-bytes`") && line.contains(&path), "{line}");
}

#[test]
fn a_file_that_is_not_toml_is_refused_with_its_line() {
    let (_folder, path) = file("name = 'a'\nname name\n");
    let line = refusal(&[("config-file", &path)], &[]);
    assert!(line.contains("line 2") && !line.contains('\n'), "{line}");
    assert!(refusal(&[("config-file", "/no/such/file")], &[]).contains("/no/such/file"));
}

#[test]
fn a_wrong_value_names_its_source_and_the_remedy() {
    let line = refusal(&[("heartbeat-interval", "fast")], &[]);
    assert_eq!(line, "--heartbeat-interval \"fast\" is not a whole number of milliseconds; give one, such as 100");
    let line = refusal(&[], &[("KVASIR_QUOTA_BACKEND_BYTES", "2G")]);
    assert!(line.starts_with("KVASIR_QUOTA_BACKEND_BYTES=\"2G\" (for --quota-backend-bytes) is not"), "{line}");
    let (_folder, path) = file("log-level = 'loud'\n");
    assert!(refusal(&[("config-file", &path)], &[]).contains("log-level = \"loud\" in "));
}

#[test]
fn an_election_timeout_below_five_heartbeats_is_refused() {
    assert!(refusal(&[("election-timeout", "400")], &[]).contains("give 500 or more"));
}

#[test]
fn urls_must_be_plain_http_with_a_port() {
    for wrong in ["127.0.0.1:2379", "http://127.0.0.1", "http://:2379", "http://h:70000", "http://::1:80", "ftp://h:1", ""] {
        assert!(refusal(&[("listen-client-urls", wrong)], &[]).contains("http://127.0.0.1:2379"), "{wrong}");
    }
    assert!(refusal(&[("listen-client-urls", "https://h:1")], &[]).contains("TLS"));
    let config = settle(&[("advertise-client-urls", "http://a:1/, http://b:2")], &[]).expect("two URLs");
    assert_eq!(config.advertise, ["http://a:1", "http://b:2"]);
}

#[test]
fn durations_carry_their_unit() {
    let config = settle(&[("grpc-keepalive-interval", "0s"), ("grpc-keepalive-timeout", "1500ms")], &[]).expect("durations");
    assert_eq!(config.keepalive_interval, None);
    assert_eq!(config.keepalive_timeout.as_millis(), 1_500);
    assert!(refusal(&[("grpc-keepalive-timeout", "20")], &[]).contains("such as 20s"));
}

#[test]
fn flags_of_etcd_that_are_not_supported_yet_say_so() {
    let line = refusal(&[("auto-tls", "")], &[]);
    assert!(line.starts_with("--auto-tls is not supported in this version: "), "{line}");
    let (_folder, path) = file("wal-dir = '/x'\n");
    assert!(refusal(&[("config-file", &path)], &[]).starts_with("--wal-dir is not supported in this version"));
}

#[test]
fn every_name_stands_in_the_tables_once() {
    let mut names: Vec<_> = SETTINGS.iter().map(|s| s.name).chain(NOT_YET.iter().map(|(name, _)| *name)).collect();
    names.sort_unstable();
    let all = names.len();
    names.dedup();
    assert_eq!(all, names.len());
}
