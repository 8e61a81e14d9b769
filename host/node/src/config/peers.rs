//! How a node comes to its cluster: where it listens for other members, what it tells them, and which cluster it is of.
//!
//! **Invariant:** what contradicts itself is refused here, before anything is touched, with the flag's name and what to give instead.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use kvasir_api::limits;
use kvasir_transport::identity::OperatorFiles;
use kvasir_transport::token::JoinToken;

use super::{ConfigError, Given, parse};

/// The cluster's token unless another is given.
pub(crate) const CLUSTER_TOKEN: &str = "kvasir-cluster";
const LISTEN: &str = "127.0.0.1:2380";

/// The peers' part of the config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Peers {
    /// `host:port` to listen on.
    pub(crate) listen: String,
    /// URLs for other members; empty: the address that was bound.
    pub(crate) advertise: Vec<String>,
    /// Names the cluster at bootstrap.
    pub(crate) cluster_token: String,
    /// How the node comes to its cluster.
    pub(crate) origin: Origin,
    /// The operator's own certificates.
    pub(crate) files: Option<OperatorFiles>,
}

/// How a node without data comes to its cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// As the first member.
    Founder,
    /// As one of these, names with their peer URLs.
    Static(BTreeMap<String, Vec<String>>),
    /// As a member that was added with `member add`, to these.
    Existing(BTreeMap<String, Vec<String>>),
    /// With a join token.
    Join {
        /// It.
        token: JoinToken,
        /// Never to vote unless promoted by its operator.
        learner: bool,
    },
}

/// Settles the peers' part.
pub(super) fn settle(given: &BTreeMap<&'static str, Given>, name: &str) -> Result<Peers, ConfigError> {
    let listen = parse::or(given, "listen-peer-urls", LISTEN.to_owned(), listen)?;
    let advertise = parse::or(given, "initial-advertise-peer-urls", Vec::new(), urls)?;
    if advertise.is_empty() && means_every_address(&listen) {
        return refuse(
            given,
            "listen-peer-urls",
            "is every address, and members must be told one: give --initial-advertise-peer-urls too",
        );
    }
    let cluster_token = parse::or(given, "initial-cluster-token", CLUSTER_TOKEN.to_owned(), token_name)?;
    let cluster = parse::or(given, "initial-cluster", BTreeMap::new(), initial_cluster)?;
    let existing = parse::or(given, "initial-cluster-state", false, state)?;
    let token = parse::or(given, "join", None, |text| {
        text.parse::<JoinToken>().map(Some).map_err(|error| format!("cannot be used: {error}"))
    })?;
    let learner = parse::or(given, "learner", false, parse::yes_or_no)?;
    let files = files(given)?;

    let origin = match token {
        Some(token) => {
            if let Some(other) =
                ["initial-cluster", "initial-cluster-state", "peer-cert-file"].iter().find(|name| given.contains_key(*name))
            {
                let reason = match *other {
                    "peer-cert-file" => {
                        "is for a cluster whose certificates are its own: use `kvasir member add` and --initial-cluster-state existing instead"
                    }
                    _ => "is all that a joining node needs: leave out --initial-cluster and --initial-cluster-state",
                };
                return Err(value("--join".to_owned(), reason));
            }
            Origin::Join { token, learner }
        }
        None if learner => return refuse(given, "learner", "is for a node that joins: give --join too"),
        None if existing => {
            if files.is_none() {
                return refuse(
                    given,
                    "initial-cluster-state",
                    "needs a certificate that the cluster trusts: give --peer-cert-file, --peer-key-file and \
                     --peer-trusted-ca-file, or join with a token of `kvasir token create` and --join",
                );
            }
            Origin::Existing(cluster.clone())
        }
        None if cluster.is_empty() => Origin::Founder,
        None => {
            let Some(mine) = cluster.get(name) else {
                let reason = format!("has no member named {name:?}: add it, or give --name");
                return refuse(given, "initial-cluster", &reason);
            };
            if !advertise.is_empty() && *mine != advertise {
                let reason = format!(
                    "says that {name:?} is at {}, and --initial-advertise-peer-urls says {}: make them the same",
                    mine.join(","),
                    advertise.join(",")
                );
                return refuse(given, "initial-cluster", &reason);
            }
            if cluster.len() > 1 && files.is_none() {
                return refuse(
                    given,
                    "initial-cluster",
                    "has several members, which trust each other by your own certificates: give --peer-cert-file, \
                     --peer-key-file and --peer-trusted-ca-file; or start one node without it, and the others with --join",
                );
            }
            if cluster.len() > 1 { Origin::Static(cluster.clone()) } else { Origin::Founder }
        }
    };
    let advertise = match (advertise.is_empty(), cluster.get(name)) {
        (true, Some(mine)) if !matches!(origin, Origin::Join { .. }) => mine.clone(),
        _ => advertise,
    };
    Ok(Peers { listen, advertise, cluster_token, origin, files })
}

fn value(given: String, reason: &str) -> ConfigError {
    ConfigError::Value { given, reason: reason.to_owned() }
}

fn refuse<T>(given: &BTreeMap<&'static str, Given>, name: &str, reason: &str) -> Result<T, ConfigError> {
    let shown = given.get(name).map_or_else(|| format!("--{name}"), Given::to_string);
    Err(value(shown, reason))
}

fn files(given: &BTreeMap<&'static str, Given>) -> Result<Option<OperatorFiles>, ConfigError> {
    const NAMES: [&str; 3] = ["peer-cert-file", "peer-key-file", "peer-trusted-ca-file"];
    let Some(one) = NAMES.iter().find(|name| given.contains_key(*name)) else { return Ok(None) };
    if let Some(missing) = NAMES.iter().find(|name| !given.contains_key(*name)) {
        return refuse(given, one, &format!("is one of three: give --{missing} too"));
    }
    let path = |name: &str| {
        parse::or(given, name, PathBuf::new(), |text| match text {
            "" => Err("is empty; give the path of a PEM file".to_owned()),
            _ => Ok(PathBuf::from(text)),
        })
    };
    Ok(Some(OperatorFiles { certificate: path(NAMES[0])?, key: path(NAMES[1])?, trusted: path(NAMES[2])? }))
}

/// One `https://host:port`, as `host:port`.
fn listen(text: &str) -> Result<String, String> {
    match text.split(',').collect::<Vec<_>>()[..] {
        [one] => host_and_port(one.trim()),
        _ => Err("names several addresses; give one".to_owned()),
    }
}

/// URLs that other members can use.
fn urls(text: &str) -> Result<Vec<String>, String> {
    let urls: Vec<String> = text.split(',').map(|url| url_of(url.trim())).collect::<Result<_, _>>()?;
    if urls.len() > limits::MEMBER_URLS_MAX {
        return Err(format!("names too many addresses; give at most {}", limits::MEMBER_URLS_MAX));
    }
    Ok(urls)
}

/// A URL where a member may be reached by others.
///
/// # Errors
/// What it should be.
pub(crate) fn url_of(url: &str) -> Result<String, String> {
    let address = host_and_port(url)?;
    if address.ends_with(":0") || means_every_address(&address) || url.len() > limits::MEMBER_URL_BYTES_MAX {
        return Err("is no address that others can reach; give one of this machine, such as https://10.0.0.1:2380".to_owned());
    }
    Ok(format!("https://{address}"))
}

fn host_and_port(url: &str) -> Result<String, String> {
    if url.starts_with("http://") {
        return Err("asks for peers without TLS, and there are none: give an https:// URL".to_owned());
    }
    let wrong = "is not a URL of the form https://host:port; give one, such as https://127.0.0.1:2380";
    parse::authority(url, "https://").ok_or_else(|| wrong.to_owned())
}

fn means_every_address(host_port: &str) -> bool {
    let host = host_port.rsplit_once(':').map_or(host_port, |(host, _)| host);
    host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|address| address.is_unspecified())
}

fn token_name(text: &str) -> Result<String, String> {
    match text {
        "" => Err("is empty; give a name that no other cluster of yours has".to_owned()),
        _ => Ok(text.to_owned()),
    }
}

fn state(text: &str) -> Result<bool, String> {
    match text {
        "new" => Ok(false),
        "existing" => Ok(true),
        _ => Err("is neither new nor existing; give one of them".to_owned()),
    }
}

/// `a=https://h1:2380,b=https://h2:2380`; a name may come again with another URL.
fn initial_cluster(text: &str) -> Result<BTreeMap<String, Vec<String>>, String> {
    let mut cluster: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for part in text.split(',') {
        let Some((name, url)) = part.trim().split_once('=').filter(|(name, _)| !name.is_empty()) else {
            return Err("is not a list of names with URLs; give one, such as a=https://10.0.0.1:2380,b=https://10.0.0.2:2380"
                .to_owned());
        };
        let url = url_of(url)?;
        if !seen.insert(url.clone()) {
            return Err(format!("has {url} twice; give each member its own"));
        }
        cluster.entry(name.to_owned()).or_default().push(url);
    }
    Ok(cluster)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{refusal, settle};
    use super::*;

    fn token() -> String {
        let token = JoinToken { fingerprint: [1; 32], id: 2, secret: [3; 32], addresses: vec!["127.0.0.1:1".to_owned()] };
        token.encode().expect("a token")
    }

    #[test]
    fn a_node_is_a_founder_that_listens_on_loopback_unless_told_otherwise() {
        let peers = settle(&[], &[]).expect("defaults").peers;
        assert_eq!((peers.listen.as_str(), peers.origin), ("127.0.0.1:2380", Origin::Founder));
        let flags =
            [("listen-peer-urls", "https://0.0.0.0:7"), ("initial-advertise-peer-urls", "https://a:7/,https://[::1]:7")];
        let peers = settle(&flags, &[]).expect("addresses").peers;
        assert_eq!(peers.advertise, ["https://a:7", "https://[::1]:7"]);
        // A cluster of one by etcd's flag.
        let peers = settle(&[("initial-cluster", "default=https://h:1")], &[]).expect("one member").peers;
        assert_eq!((peers.origin, &peers.advertise[..]), (Origin::Founder, &["https://h:1".to_owned()][..]));
    }

    #[test]
    fn addresses_of_peers_that_cannot_be_are_refused() {
        for wrong in ["127.0.0.1:2380", "https://h", "ftp://h:1", "https://::1:80", ""] {
            assert!(refusal(&[("listen-peer-urls", wrong)], &[]).contains("https://127.0.0.1:2380"), "{wrong}");
        }
        assert!(refusal(&[("listen-peer-urls", "http://h:1")], &[]).contains("https://"));
        assert!(refusal(&[("listen-peer-urls", "https://h:1,https://h:2")], &[]).contains("give one"));
        let line = refusal(&[("listen-peer-urls", "https://0.0.0.0:2380")], &[]);
        assert!(line.contains("--initial-advertise-peer-urls"), "{line}");
        for wrong in ["https://h:0", "https://0.0.0.0:5", "https://[::]:5"] {
            assert!(refusal(&[("initial-advertise-peer-urls", wrong)], &[]).contains("others can reach"), "{wrong}");
        }
    }

    #[test]
    fn a_join_token_is_read_or_refused_and_goes_with_nothing_else() {
        let config = settle(&[("join", &token()), ("learner", "true")], &[]).expect("a token");
        assert!(matches!(&config.peers.origin, Origin::Join { token, learner: true } if token.id == 2));
        let line = refusal(&[("join", "10.0.0.1:2380")], &[]);
        assert!(line.starts_with("--join ") && line.contains("kvasir token create"), "{line}");
        for other in [("initial-cluster", "default=https://h:1"), ("initial-cluster-state", "existing")] {
            let line = refusal(&[("join", &token()), other], &[]);
            assert!(line.starts_with("--join") && line.contains("--initial-cluster"), "{line}");
        }
        assert!(refusal(&[("learner", "true")], &[]).contains("--join"));
        assert!(refusal(&[("learner", "maybe")], &[]).contains("true or false"));
    }

    #[test]
    fn a_static_bootstrap_needs_certificates_and_this_node_in_it() {
        let files = [("peer-cert-file", "c"), ("peer-key-file", "k"), ("peer-trusted-ca-file", "t")];
        let cluster = ("initial-cluster", "a=https://h:1,b=https://h:2,b=https://h:3");
        let with = |more: &[(&'static str, &'static str)]| [&[cluster, ("name", "b")], more].concat();
        let peers = settle(&with(&files), &[]).expect("a static cluster").peers;
        assert!(matches!(&peers.origin, Origin::Static(members) if members.len() == 2));
        assert_eq!(peers.advertise, ["https://h:2", "https://h:3"]);
        for (flags, words) in [
            (with(&[]), ["--peer-cert-file", "--join"]),
            (with(&files[..2]), ["--peer-cert-file", "--peer-trusted-ca-file"]),
            ([&[cluster], &files[..]].concat(), ["\"default\"", "--name"]),
            ([&with(&files)[..], &[("initial-advertise-peer-urls", "https://h:9")]].concat(), ["https://h:9", "the same"]),
            (vec![("initial-cluster", "a=http://127.0.0.1:2380")], ["--initial-cluster", "https://"]),
            (vec![("initial-cluster", "a")], ["--initial-cluster", "a=https://"]),
            (vec![("initial-cluster", "a=https://h:1,b=https://h:1")], ["https://h:1", "twice"]),
            (vec![("initial-cluster-state", "old")], ["new", "existing"]),
            (vec![("initial-cluster-state", "existing")], ["--peer-cert-file", "--join"]),
            (vec![("initial-cluster-token", "")], ["--initial-cluster-token", "empty"]),
        ] {
            let line = refusal(&flags, &[]);
            assert!(words.iter().all(|word| line.contains(word)), "{words:?}: {line}");
        }
        assert_eq!(
            settle(&[&files[..], &[("initial-cluster-state", "existing")]].concat(), &[]).expect("existing").peers.origin,
            Origin::Existing(BTreeMap::new())
        );
    }
}
