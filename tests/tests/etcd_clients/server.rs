//! Where the clients under test are, and the server they talk to.

use std::path::{Path, PathBuf};

use kvasir_tests::Node;

/// The server of one test.
pub(crate) enum Server {
    /// A node of the test's own.
    Own(Box<Node>),
    /// One that was there before, shared by all tests: each test keeps to keys of its own.
    Shared(String),
}

impl Server {
    /// Starts a node, or uses the server that `KVASIR_CLIENT_TESTS_ENDPOINT` names.
    pub(crate) fn start() -> Self {
        match std::env::var("KVASIR_CLIENT_TESTS_ENDPOINT") {
            Ok(endpoint) => Self::Shared(endpoint),
            Err(_) => Self::Own(Box::new(Node::start())),
        }
    }

    /// `127.0.0.1:45123`
    pub(crate) fn address(&self) -> &str {
        match self {
            Self::Own(node) => node.address(),
            Self::Shared(address) => address,
        }
    }
}

/// The client program of this name, or `None`, said out loud, when it is not there.
///
/// # Panics
/// When it is not there and `KVASIR_REQUIRE_CLIENTS=1` asks for it.
pub(crate) fn client(case: &str, variable: &str, name: &str) -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(variable).filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        assert!(path.exists(), "{variable} names {}, which is not there", path.display());
        return Some(path);
    }
    let prepared = clients_dir().join(name);
    if prepared.exists() {
        return Some(prepared);
    }
    skip(case, &format!("no {name}: `cargo xtask test --only clients` prepares it, or set {variable}"));
    None
}

/// Says that a case is skipped and why; past the test harness's capture, so that it is seen.
///
/// # Panics
/// When `KVASIR_REQUIRE_CLIENTS=1` makes a skip a failure.
pub(crate) fn skip(case: &str, reason: &str) {
    assert!(std::env::var_os("KVASIR_REQUIRE_CLIENTS").is_none_or(|it| it != "1"), "{case}: {reason}");
    kvasir_tests::skip(case, reason);
}

/// `target/clients`: beside the profile's folder that the test executable lives in.
fn clients_dir() -> PathBuf {
    let executable = std::env::current_exe().unwrap();
    let target = executable.ancestors().nth(3).unwrap_or(Path::new("."));
    target.join("clients")
}
