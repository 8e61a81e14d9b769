//! Commands that run to their end: the binary's own verbs, and refused starts.
//!
//! **Invariant:** a command that does not end within the deadline is killed, and fails the test.

use std::io::Read;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Instant;

use super::spawn::{spawn, wait_until};
use crate::DEADLINE;

/// What a verb of the command line answered.
#[derive(Debug)]
pub struct Cli {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Cli {
    /// The output of a verb that must have succeeded.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(self.status.success(), "{}\nstdout: {}\nstderr: {}", self.status, self.stdout, self.stderr);
        self.stdout
    }

    /// The error line of a verb that must have been refused: exactly one line on stderr, nothing but code 1 or 2.
    ///
    /// # Panics
    /// When it succeeded, was killed, or said more or less than one line.
    #[track_caller]
    pub fn refused(self) -> String {
        let code = self.status.code();
        assert!(matches!(code, Some(1 | 2)), "{}\nstdout: {}\nstderr: {}", self.status, self.stdout, self.stderr);
        self.stderr
    }
}

/// Runs a command that ends by itself, and answers with what it wrote.
///
/// # Panics
/// When it does not end within the deadline, or cannot be started.
pub fn run(mut command: Command) -> Cli {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let shown = format!("{command:?}");
    let mut child = spawn(command).unwrap();
    let stdout = collect(child.stdout.take().unwrap());
    let stderr = collect(child.stderr.take().unwrap());
    let status = wait_until(&mut child, Instant::now() + DEADLINE).unwrap_or_else(|| {
        let _ = child.kill();
        let _ = child.wait();
        panic!("{shown} did not end within {DEADLINE:?}");
    });
    Cli { status, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

fn collect(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // A reader that fails ends what is collected; the exit status still tells.
        let _ = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
