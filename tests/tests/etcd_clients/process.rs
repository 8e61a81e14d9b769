//! Client processes: with lines to read as they come, standard input, signals, and an end.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use kvasir_tests::DEADLINE;
use rustix::process::{Pid, Signal, kill_process};

/// A client that runs on while the test reads what it says. Dropped, it is killed.
pub(crate) struct Running {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Running {
    pub(crate) fn start(program: &Path, arguments: &[&str]) -> Self {
        let mut child = Command::new(program)
            .args(arguments)
            .env_remove("ETCDCTL_ENDPOINTS")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        let (send, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                // The test has read enough.
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines, seen: Vec::new() }
    }

    /// The next line it prints.
    ///
    /// # Panics
    /// When none comes in time, with what came before.
    #[track_caller]
    pub(crate) fn line(&mut self) -> String {
        match self.lines.recv_timeout(DEADLINE) {
            Ok(line) => {
                self.seen.push(line.clone());
                line
            }
            Err(why) => panic!("no further line: {why}; so far: {:?}", self.seen),
        }
    }

    /// The next line, if one comes within this span.
    pub(crate) fn try_line(&mut self, span: Duration) -> Option<String> {
        let line = self.lines.recv_timeout(span).ok()?;
        self.seen.push(line.clone());
        Some(line)
    }

    /// The next lines it prints, exactly these.
    #[track_caller]
    pub(crate) fn expect(&mut self, lines: &[&str]) {
        for (nth, want) in lines.iter().enumerate() {
            let got = self.line();
            assert_eq!(got, *want, "line {} of {lines:?}; seen {:?}", nth + 1, self.seen);
        }
    }

    /// Asserts that it prints nothing for this long. Only for what must not happen.
    #[track_caller]
    pub(crate) fn expect_silence(&mut self, span: Duration) {
        match self.lines.recv_timeout(span) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(line) => panic!("unexpected line {line:?} after {:?}", self.seen),
            Err(RecvTimeoutError::Disconnected) => panic!("it ended; it had said {:?}", self.seen),
        }
    }

    /// Ctrl-C, and waits for the end.
    pub(crate) fn interrupt(mut self) -> ExitStatus {
        kill_process(Pid::from_child(&self.child), Signal::INT).unwrap();
        wait(&mut self.child, DEADLINE).expect("it ends when interrupted")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is gone after the wait.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a client that ended by itself has said.
pub(crate) struct Ended {
    pub(crate) success: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs a client to its end, with this on its standard input.
///
/// # Panics
/// When it does not end in time.
#[track_caller]
pub(crate) fn run(program: &Path, arguments: &[&str], input: &str, limit: Duration) -> Ended {
    let mut child = Command::new(program)
        .args(arguments)
        .env_remove("ETCDCTL_ENDPOINTS")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    let mut stdout = child.stdout.take().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let out = std::thread::spawn(move || {
        let mut text = String::new();
        stdout.read_to_string(&mut text).map(|_| text)
    });
    let err = std::thread::spawn(move || {
        let mut text = String::new();
        stderr.read_to_string(&mut text).map(|_| text)
    });
    // A client that does not read its input may have ended already.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let status = wait(&mut child, limit);
    if status.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let (stdout, stderr) = (out.join().unwrap().unwrap(), err.join().unwrap().unwrap());
    let Some(status) = status else {
        panic!("{} {arguments:?} did not end within {limit:?}\nstdout: {stdout}\nstderr: {stderr}", program.display());
    };
    Ended { success: status.success(), stdout, stderr }
}

fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if Instant::now() >= end {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
