//! What goes wrong when a node is started or a plugin installed: one clear line that says what is wrong and what to do, an exit
//! code that is not 0, and the data as it was.

#![allow(clippy::unwrap_used, clippy::print_stderr)] // a failed expectation is a failed test; what was skipped goes to the terminal

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use kvasir_tests::{Failure, Install, Mount, Node, artefacts, run};

/// The user and group that own nothing.
const NOBODY: u32 = 65_534;

/// Every file below a folder with its bytes, but for the lock: who holds it writes its process id there.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.file_name() != Some("LOCK".as_ref()) {
                found.insert(path.strip_prefix(folder).unwrap().to_owned(), std::fs::read(&path).unwrap());
            }
        }
    }
    found
}

#[track_caller]
fn assert_unchanged(folder: &Path, before: &BTreeMap<PathBuf, Vec<u8>>) {
    let after = contents(folder);
    let names = |contents: &BTreeMap<PathBuf, Vec<u8>>| contents.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&after), names(before), "the files of the data folder");
    for (path, bytes) in before {
        assert!(after[path] == *bytes, "{} is not as it was", path.display());
    }
}

/// The one line a refused start leaves, without log lines that may precede it.
#[track_caller]
fn error_line(failure: &Failure) -> String {
    let code = failure.status.and_then(|status| status.code());
    assert!(matches!(code, Some(1 | 2)), "the exit code says that it was refused: {failure}");
    let errors: Vec<&str> = failure.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "one line says what is wrong: {failure}");
    assert!(!failure.stderr.contains("panicked"), "{failure}");
    errors[0].to_owned()
}

#[track_caller]
fn refused(builder: kvasir_tests::NodeBuilder) -> String {
    error_line(&builder.try_start().expect_err("the start is refused"))
}

#[track_caller]
fn assert_says(line: &str, words: &[&str]) {
    for word in words {
        assert!(line.contains(word), "{word:?} is not in {line:?}");
    }
}

/// A stopped node's folder with some data in it.
async fn used_folder() -> (tempfile::TempDir, PathBuf) {
    folder_with(200, 500).await
}

async fn folder_with(puts: usize, bytes: usize) -> (tempfile::TempDir, PathBuf) {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("data");
    let mut node = Node::builder().data_dir(&folder).start();
    let client = node.client().await;
    for n in 0..puts {
        client.put(format!("/k/{n}"), vec![b'v'; bytes]).await.unwrap();
    }
    assert!(node.terminate().success());
    (scratch, folder)
}

#[test]
fn wrong_flags_are_refused_before_anything_is_touched() {
    let scratch = tempfile::tempdir().unwrap();
    let cases: &[(&[&str], &[&str])] = &[
        (&["serve", "--data-dri", "x"], &["--data-dri", "--data-dir"]),
        (&["serve", "--listen-client-urls", "not a url"], &["listen-client-urls", "not a url"]),
        (&["serve", "--listen-client-urls", "http://127.0.0.1:99999"], &["listen-client-urls", "99999"]),
        (&["serve", "--quota-backend-bytes", "plenty"], &["quota-backend-bytes", "plenty"]),
        (&["serve", "--election-timeout", "50", "--heartbeat-interval", "100"], &["election-timeout", "heartbeat-interval"]),
        (&["serve", "--config-file", "/does/not/exist.toml"], &["/does/not/exist.toml"]),
        (&["serve", "--cert-file", "server.crt"], &["cert-file", "TLS"]),
        (&["serve", "--initial-cluster", "a=http://127.0.0.1:2380"], &["initial-cluster", "https://"]),
        (
            &["serve", "--initial-cluster", "a=https://h:1,b=https://h:2", "--name", "a"],
            &["initial-cluster", "--peer-cert-file", "--join"],
        ),
        (&["serve", "--initial-cluster", "a=https://h:1"], &["initial-cluster", "\"default\"", "--name"]),
        (&["serve", "--initial-cluster-state", "existing"], &["initial-cluster-state", "--peer-cert-file", "--join"]),
        (&["serve", "--initial-cluster-state", "old"], &["initial-cluster-state", "existing"]),
        (&["serve", "--initial-cluster-token", ""], &["initial-cluster-token", "empty"]),
        (&["serve", "--listen-peer-urls", "http://127.0.0.1:2380"], &["listen-peer-urls", "https://"]),
        (&["serve", "--listen-peer-urls", "https://127.0.0.1"], &["listen-peer-urls", "https://127.0.0.1:2380"]),
        (&["serve", "--listen-peer-urls", "https://0.0.0.0:0"], &["listen-peer-urls", "--initial-advertise-peer-urls"]),
        (&["serve", "--initial-advertise-peer-urls", "https://h:0"], &["initial-advertise-peer-urls", "reach"]),
        (&["serve", "--join", "127.0.0.1:2380"], &["--join", "kvasir token create"]),
        (&["serve", "--learner"], &["--learner", "--join"]),
        (&["serve", "--peer-cert-file", "node.crt"], &["--peer-cert-file", "--peer-key-file"]),
        (&["serve", "--peer-cert-life", "1s"], &["peer-cert-life", "5s"]),
        (&["serve", "--peer-auto-tls"], &["peer-auto-tls", "own certificates"]),
        (&["member", "add", "b"], &["--peer-urls"]),
        (&["member", "remove", "zz"], &["zz", "hexadecimal"]),
        (&["serve", "--log-level", "chatty"], &["log-level", "chatty"]),
        (&["sevre"], &["sevre", "serve"]),
        (&["get"], &["KEY"]),
        (&["plugin", "install"], &["COMPONENT"]),
        (&["lease", "grant", "soon"], &["soon"]),
    ];
    for (arguments, words) in cases {
        let mut command = Command::new(artefacts::kvasir());
        command.args(*arguments).current_dir(scratch.path());
        let answer = run(command);
        let code = answer.status.code();
        assert!(matches!(code, Some(1 | 2)), "{arguments:?}: {answer:?}");
        let line = answer.refused();
        let errors: Vec<_> = line.lines().collect();
        assert!(errors.len() == 1 && errors[0].starts_with("error: "), "{arguments:?}: one line says what is wrong: {line}");
        assert_says(&line, words);
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0, "{arguments:?} left something behind");
    }
}

#[test]
fn a_port_that_is_taken_is_named_and_the_data_is_not_touched() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("data");
    let line = refused(Node::builder().data_dir(&folder).listen(format!("http://{address}")));
    assert_says(&line, &[&address, "in use", "--listen-client-urls"]);
}

#[test]
fn a_port_for_peers_that_is_taken_is_named_and_the_data_is_not_touched() {
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("data");
    let flag = format!("--listen-peer-urls=https://{address}");
    let line = refused(Node::builder().data_dir(&folder).arg(flag));
    assert_says(&line, &[&address, "in use", "--listen-peer-urls"]);
    assert!(!folder.exists());
}

#[test]
fn certificates_that_cannot_be_used_are_named_and_nothing_is_made() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(at("junk"), "no certificate").unwrap();
    let files = |path: &str| {
        let flags = ["--peer-cert-file", "--peer-key-file", "--peer-trusted-ca-file"];
        flags.iter().fold(Node::builder().data_dir(at("data")), |builder, flag| builder.arg(*flag).arg(path))
    };
    assert_says(&refused(files(&at("missing"))), &["--peer-cert-file", &at("missing")]);
    assert_says(&refused(files(&at("junk"))), &["--peer-cert-file", &at("junk"), "PEM"]);
    assert!(!Path::new(&at("data")).exists());
}

#[tokio::test]
async fn a_key_that_others_may_read_and_an_identity_of_another_node_are_refused() {
    let (scratch, folder) = used_folder().await;
    let key = folder.join("identity/node.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640)).unwrap();
    let line = refused(Node::builder().data_dir(&folder));
    assert_says(&line, &[key.to_str().unwrap(), "chmod 600"]);
    // Another node's identity does not make this data that node's.
    let other = scratch.path().join("other");
    assert!(Node::builder().arg("--name").arg("other").data_dir(&other).start().terminate().success());
    std::fs::remove_dir_all(folder.join("identity")).unwrap();
    std::fs::rename(other.join("identity"), folder.join("identity")).unwrap();
    assert_says(&refused(Node::builder().data_dir(&folder)), &["the data folder is of node", "identity"]);
}

#[tokio::test]
async fn a_node_whose_data_is_gone_does_not_come_back_under_its_identity() {
    let (scratch, folder) = used_folder().await;
    let bare = scratch.path().join("bare");
    std::fs::create_dir(&bare).unwrap();
    std::fs::rename(folder.join("identity"), bare.join("identity")).unwrap();
    let line = refused(Node::builder().data_dir(&bare));
    assert_says(&line, &[bare.to_str().unwrap(), "not its data", "kvasir member remove"]);
}

#[tokio::test]
async fn a_port_that_is_taken_leaves_an_existing_folder_as_it_was() {
    let (_scratch, folder) = used_folder().await;
    let before = contents(&folder);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let line = refused(Node::builder().data_dir(&folder).listen(format!("http://{address}")));
    assert_says(&line, &[&address, "in use"]);
    assert_unchanged(&folder, &before);
}

#[tokio::test]
async fn a_folder_in_use_is_refused_and_its_node_goes_on() {
    let node = Node::start();
    let client = node.client().await;
    client.put("a", "1").await.unwrap();
    let line = refused(Node::builder().data_dir(node.data_dir()));
    assert_says(&line, &[node.data_dir().to_str().unwrap(), "in use", &node.pid().unwrap().to_string()]);
    client.put("a", "2").await.unwrap();
}

#[tokio::test]
async fn a_folder_of_another_version_is_refused_and_stays_as_it_was() {
    let (_scratch, folder) = used_folder().await;
    let version = folder.join("VERSION");
    let text = std::fs::read_to_string(&version).expect("the folder's version stands in VERSION");
    let other: String = text.chars().map(|c| if c.is_ascii_digit() { '9' } else { c }).collect();
    assert_ne!(other, text);
    std::fs::write(&version, other).unwrap();
    let before = contents(&folder);
    let line = refused(Node::builder().data_dir(&folder));
    assert_says(&line, &[folder.to_str().unwrap(), "version"]);
    assert_unchanged(&folder, &before);
}

#[test]
fn a_folder_that_is_a_file_or_somebody_elses_is_refused_and_stays_as_it_was() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("file");
    std::fs::write(&file, "mine").unwrap();
    assert_says(&refused(Node::builder().data_dir(&file)), &[file.to_str().unwrap(), "--data-dir"]);
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
    let theirs = scratch.path().join("theirs");
    std::fs::create_dir(&theirs).unwrap();
    std::fs::write(theirs.join("letter.txt"), "dear").unwrap();
    let before = contents(&theirs);
    assert_says(&refused(Node::builder().data_dir(&theirs)), &[theirs.to_str().unwrap(), "letter.txt", "--data-dir"]);
    assert_unchanged(&theirs, &before);
}

#[tokio::test]
async fn a_damaged_file_is_refused_with_its_place_and_stays_as_it_was() {
    let (scratch, folder) = used_folder().await;
    let mut refusals = 0;
    for (path, bytes) in contents(&folder) {
        let damages: Vec<(&str, Vec<u8>)> = match bytes.len() {
            0 => continue,
            len => vec![
                ("the start overwritten", {
                    let mut bytes = bytes.clone();
                    bytes[..64.min(len)].fill(0xa5);
                    bytes
                }),
                ("a byte flipped", {
                    // Among the bytes that mean something: a preallocated file ends in zeros.
                    let used = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0) + 1;
                    let mut bytes = bytes.clone();
                    bytes[used / 3] ^= 0x40;
                    bytes
                }),
            ],
        };
        for (damage, damaged) in damages {
            let copy = scratch.path().join("copy");
            if copy.exists() {
                std::fs::remove_dir_all(&copy).unwrap();
            }
            copy_folder(&folder, &copy);
            std::fs::write(copy.join(&path), damaged).unwrap();
            let before = contents(&copy);
            match Node::builder().data_dir(&copy).try_start() {
                Err(failure) => {
                    let line = error_line(&failure);
                    assert_says(&line, &[copy.to_str().unwrap()]);
                    assert_unchanged(&copy, &before);
                    refusals += 1;
                }
                // Some damage does no harm (a lock file, a free page): then nothing may be missing.
                Ok(node) => {
                    let client = node.client().await;
                    let kept = client.prefix("/k/").await.unwrap();
                    assert_eq!(kept.len(), 200, "{}: {damage}, and nobody noticed", path.display());
                    assert!(
                        kept.iter().all(|kv| kv.value == vec![b'v'; 500]),
                        "{}: {damage}, and nobody noticed",
                        path.display()
                    );
                    eprintln!("{}: {damage} does no harm", path.display());
                }
            }
        }
    }
    assert!(refusals >= 3, "the log, the state file and the version are each checked; {refusals} refusals");
}

#[tokio::test]
async fn a_folder_that_has_lost_a_part_is_refused_and_never_taken_for_a_new_one() {
    // Enough for the log to have more than one segment.
    let (scratch, folder) = folder_with(100, 100_000).await;
    let log = folder.join("log");
    let mut segments: Vec<_> = std::fs::read_dir(&log).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    segments.sort();
    // Records begin after a header of 64 bytes; a segment that was only made ready has none.
    let used = |name: &&std::ffi::OsString| std::fs::read(log.join(name)).unwrap()[64..].iter().any(|byte| *byte != 0);
    let in_use = segments.iter().filter(used).count();
    assert!(in_use >= 2, "{in_use} segments of {segments:?} have records");
    let newest: Vec<PathBuf> = segments[in_use - 1..].iter().map(|name| Path::new("log").join(name)).collect();
    let all: Vec<PathBuf> = segments.iter().map(|name| Path::new("log").join(name)).collect();
    let cases: [(&str, &[PathBuf], &[&str]); 4] = [
        ("the folder of the log emptied", &all, &["/log", "raft log is gone"]),
        ("the folder of the log removed", &[PathBuf::from("log")], &["/log", "missing"]),
        ("the newest segments removed", &newest, &["/log", "newest segments are gone"]),
        ("the state file removed", &[PathBuf::from("state.redb")], &["/state.redb", "missing"]),
    ];
    for (case, gone, words) in cases {
        let copy = scratch.path().join("copy");
        if copy.exists() {
            std::fs::remove_dir_all(&copy).unwrap();
        }
        copy_folder(&folder, &copy);
        for path in gone.iter().map(|path| copy.join(path)) {
            if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) }.unwrap();
        }
        let before = contents(&copy);
        // Not the first time, and not once it has been tried.
        for _ in 0..2 {
            let line = refused(Node::builder().data_dir(&copy));
            assert_says(&line, &[copy.to_str().unwrap(), "nothing was changed"]);
            assert_says(&line, words);
            assert_unchanged(&copy, &before);
        }
        eprintln!("{case}: refused");
    }
}

/// Copies a folder with the modes of its files: a key that others may read is refused for that.
fn copy_folder(from: &Path, to: &Path) {
    for path in contents(from).keys() {
        let target = to.join(path);
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::copy(from.join(path), target).unwrap();
    }
}

#[test]
fn a_folder_that_cannot_be_written_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("data");
    std::fs::create_dir(&folder).unwrap();
    let mode = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    mode(&folder, 0o555);
    let mut command = if rustix::process::geteuid().is_root() {
        // The superuser can write anywhere, so it starts the node as somebody else, who can read the binary and no more.
        mode(scratch.path(), 0o755);
        let binary = scratch.path().join("kvasir");
        std::fs::copy(artefacts::kvasir(), &binary).unwrap();
        mode(&binary, 0o755);
        let mut command = Command::new(binary);
        command.uid(NOBODY).gid(NOBODY).current_dir("/");
        command
    } else {
        Command::new(artefacts::kvasir())
    };
    command.args(["serve", "--listen-client-urls", "http://127.0.0.1:0", "--listen-peer-urls", "https://127.0.0.1:0"]);
    command.arg("--data-dir").arg(&folder);
    let answer = run(command);
    assert!(matches!(answer.status.code(), Some(1 | 2)), "{answer:?}");
    let said = answer.refused();
    let errors: Vec<&str> = said.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "one line says what is wrong: {said}");
    assert_says(errors[0], &[folder.to_str().unwrap(), "not writable"]);
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
}

#[test]
fn a_disk_without_room_to_begin_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(mount) = Mount::new("a disk without room", scratch.path().join("small"), 64 * 1024) else { return };
    let line = refused(Node::builder().data_dir(mount.path().join("data")));
    assert_says(&line, &[mount.path().to_str().unwrap(), "space"]);
}

#[tokio::test]
async fn a_disk_that_fills_up_stops_writes_or_the_node_with_a_clear_line_and_loses_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(mount) = Mount::new("a full disk", scratch.path().join("small"), 512 << 20) else { return };
    let mut node = Node::builder().data_dir(mount.path().join("data")).start();
    let client = node.client().await;
    client.put("/full/first", "there was room").await.unwrap();
    // Somebody else takes nearly all that is free.
    mount.fill(24 << 20);
    let value = |n: u32| vec![b'a' + (n % 26) as u8; 100_000];
    let mut acknowledged = 0;
    let refusal = loop {
        match client.put(format!("/full/{acknowledged:05}"), value(acknowledged)).await {
            Ok(_) => acknowledged += 1,
            Err(status) => break status,
        }
        assert!(acknowledged < 5_000, "half a gigabyte fits into 24 MiB");
    };
    // Either the low space was seen in time and writes are refused, or the disk has refused one itself and the process ends.
    if refusal.message().contains("space exceeded") {
        assert!(client.get("/full/first").await.unwrap().is_some(), "reads go on");
        assert!(node.terminate().success());
    } else {
        let status = node.wait();
        assert!(!status.success(), "a node that a full disk has ended does not end with success");
        let log = node.log();
        let errors: Vec<_> = log.lines().filter(|line| line.starts_with("error: ")).collect();
        assert!(errors.len() == 1 && errors[0].contains("space") && !log.contains("panicked"), "it says why: {log}");
    }
    mount.grow(1 << 30);
    node.restart();
    let client = node.client().await;
    assert!(client.get("/full/first").await.unwrap().is_some());
    for n in 0..acknowledged {
        let kept = client.get(format!("/full/{n:05}")).await.unwrap();
        assert!(kept.is_some_and(|kept| kept == value(n)), "put {n} of {acknowledged} was acknowledged, but is not there");
    }
}

#[tokio::test]
async fn a_manifest_with_an_unknown_field_is_refused_with_the_fields_name() {
    let Some(component) = artefacts::guest("hostile-guest") else { return };
    let node = Node::start();
    let client = node.client().await;
    let good = include_str!("../guests/hostile/plugin.toml");
    let cases = [
        ("colour = \"red\"\n", good.replacen("[plugin]\n", "[plugin]\ncolour = \"red\"\n", 1), "colour"),
        ("an unknown limit", good.replacen("[limits]\n", "[limits]\nheap = \"1MiB\"\n", 1), "heap"),
        ("an unknown table", format!("{good}\n[network]\nallow = true\n"), "network"),
        ("an unknown field of a trigger", good.replacen("id = \"in\"\n", "id = \"in\"\nprefxi = \"/x/\"\n", 1), "prefxi"),
        ("a wrong unit", good.replacen("cpu = \"500ms\"", "cpu = \"500 parsecs\"", 1), "500 parsecs"),
        ("no name", good.replacen("name = \"hostile\"\n", "", 1), "name"),
        ("not TOML", "[plugin\nname=".to_owned(), "line"),
    ];
    let scratch = tempfile::tempdir().unwrap();
    for (case, manifest, word) in cases {
        assert_ne!(manifest, good, "{case}");
        let path = scratch.path().join("plugin.toml");
        std::fs::write(&path, manifest).unwrap();
        let arguments = [component.as_os_str(), "--manifest".as_ref(), path.as_os_str(), "--accept-requested".as_ref()];
        let said = node.cli(["plugin".as_ref(), "install".as_ref()].into_iter().chain(arguments)).refused();
        let errors: Vec<_> = said.lines().filter(|line| line.starts_with("error: ")).collect();
        assert!(errors.len() == 1 && errors[0].contains(word), "{case}: {said}");
    }
    assert_eq!(client.plugin_list().await.unwrap(), []);
    assert_eq!(client.revision().await.unwrap(), 1);
}

#[tokio::test]
async fn an_installation_without_the_grants_it_asks_for_is_refused_with_what_to_do() {
    let Some(component) = artefacts::guest("hostile-guest") else { return };
    let node = Node::start();
    let client = node.client().await;
    let status = client.install(&component, Install::default()).await.expect_err("no grants were given");
    assert_says(status.message(), &["/hostile/", "grant"]);
    let partly = Install { grants: vec!["kv:read=/hostile/".to_owned()], ..Install::default() };
    let status = client.install(&component, partly).await.expect_err("one grant is missing");
    assert_says(status.message(), &["/hostile/out/"]);
    let wrong = Install { grants: vec!["kv:raed=/hostile/".to_owned()], ..Install::default() };
    let status = client.install(&component, wrong).await.expect_err("not a grant");
    assert_says(status.message(), &["kv:raed"]);
    let missing = node.cli(["plugin", "install", "/does/not/exist.wasm"]).refused();
    assert_says(&missing, &["/does/not/exist.wasm"]);
    let unknown = node.cli(["plugin", "rm", "nobody"]).refused();
    assert_says(&unknown, &["nobody"]);
}
