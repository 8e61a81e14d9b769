//! Child processes: shown before they run, limited in time, killed when we give up.
//!
//! **Invariant:** a [`Running`] child is dead when its guard is dropped.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::workspace;

/// A command line that can be shown as a person would type it.
#[derive(Clone)]
pub(crate) struct Cmd {
    words: Vec<OsString>,
    environment: Vec<(OsString, Option<OsString>)>,
    folder: Option<OsString>,
    limit: Option<Duration>,
}

/// The exit status and output of a command that has ended.
pub(crate) struct Output {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Cmd {
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        Self { words: vec![program.as_ref().into()], environment: Vec::new(), folder: None, limit: None }
    }

    /// The cargo that runs us.
    pub(crate) fn cargo() -> Self {
        Self::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
    }

    pub(crate) fn arg(mut self, word: impl AsRef<OsStr>) -> Self {
        self.words.push(word.as_ref().into());
        self
    }

    pub(crate) fn args<I: IntoIterator<Item = W>, W: AsRef<OsStr>>(mut self, words: I) -> Self {
        self.words.extend(words.into_iter().map(|word| word.as_ref().to_owned()));
        self
    }

    pub(crate) fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.as_ref().into(), Some(value.as_ref().into())));
        self
    }

    pub(crate) fn env_remove(mut self, name: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.as_ref().into(), None));
        self
    }

    pub(crate) fn folder(mut self, path: impl AsRef<Path>) -> Self {
        self.folder = Some(path.as_ref().into());
        self
    }

    /// The command is killed, and has failed, when it takes longer.
    pub(crate) fn limit(mut self, limit: Duration) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Shows the command and runs it with our own output; an error when it fails.
    pub(crate) fn run(&self) -> Result<()> {
        println!("  $ {self}");
        // Ours first, then the child's.
        std::io::stdout().flush()?;
        let mut child = Running::of(self.command().stdin(Stdio::null()), self)?;
        let status = child.wait(self.limit)?;
        if !status.success() {
            bail!("`{self}` failed ({status})");
        }
        Ok(())
    }

    /// Shows the command, runs it and hands each line that it prints to `line`, as it comes; it answers how the command ended.
    pub(crate) fn stream(&self, mut line: impl FnMut(&str)) -> Result<ExitStatus> {
        println!("  $ {self}");
        let mut command = self.command();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = Running::of(&mut command, self)?;
        let (send, lines) = mpsc::channel();
        for pipe in child.pipes() {
            let send = send.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(pipe).split(b'\n').map_while(std::result::Result::ok) {
                    // Nobody listens any more: the run was given up.
                    if send.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                        return;
                    }
                }
            });
        }
        drop(send);
        for text in lines {
            line(&text);
        }
        child.wait(self.limit)
    }

    /// Runs the command in silence and answers what it said, however it ended.
    pub(crate) fn output(&self) -> Result<Output> {
        self.output_with("")
    }

    /// The same, with this on its standard input.
    pub(crate) fn output_with(&self, input: &str) -> Result<Output> {
        let mut command = self.command();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = Running::of(&mut command, self)?;
        let readers: Vec<_> = child
            .pipes()
            .into_iter()
            .map(|mut pipe| {
                std::thread::spawn(move || {
                    let mut bytes = Vec::new();
                    // A pipe that breaks ends what is collected; the exit status still tells.
                    let _ = pipe.read_to_end(&mut bytes);
                    String::from_utf8_lossy(&bytes).into_owned()
                })
            })
            .collect();
        if let Some(mut stdin) = child.child.stdin.take() {
            // A command that does not read its input may have ended already.
            let _ = stdin.write_all(input.as_bytes());
        }
        let status = child.wait(self.limit)?;
        let mut texts = readers.into_iter().map(|reader| reader.join().unwrap_or_default());
        let (stdout, stderr) = (texts.next().unwrap_or_default(), texts.next().unwrap_or_default());
        Ok(Output { status, stdout, stderr })
    }

    /// Runs the command in silence and answers its standard output; an error, with what it said, when it fails.
    pub(crate) fn read(&self) -> Result<String> {
        let output = self.output()?;
        if !output.status.success() {
            bail!("`{self}` failed ({}): {}{}", output.status, output.stdout, output.stderr);
        }
        Ok(output.stdout)
    }

    /// Starts the command with its output piped; where the machine has `setpriv`, it is told to stop even when we are killed.
    pub(crate) fn start(&self) -> Result<Running> {
        let mut tied = self.clone();
        if has("setpriv") {
            tied.words.splice(0..0, ["setpriv", "--pdeathsig", "TERM", "--"].map(OsString::from));
        }
        Running::of(tied.command().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()), self)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.words[0]);
        command.args(&self.words[1..]);
        for (name, value) in &self.environment {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        command
    }
}

impl fmt::Display for Cmd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in &self.environment {
            if let Some(value) = value {
                write!(f, "{}={} ", name.to_string_lossy(), quoted(value))?;
            }
        }
        let program = Path::new(&self.words[0]);
        // A tool of the machine by its name, a program of ours by its place.
        match program.file_name() {
            Some(name) if program.is_absolute() && !program.starts_with(workspace::root()) => f.write_str(&quoted(name))?,
            _ => f.write_str(&quoted(&self.words[0]))?,
        }
        for word in &self.words[1..] {
            write!(f, " {}", quoted(word))?;
        }
        Ok(())
    }
}

/// A word as a person would type it in the workspace's folder.
pub(crate) fn quoted(word: &OsStr) -> String {
    let text = word.to_string_lossy();
    let root = format!("{}/", workspace::root().display());
    let text = text.replace(&root, "");
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// A child process that is killed when this is dropped.
pub(crate) struct Running {
    pub(crate) child: Child,
    shown: String,
}

impl Running {
    fn of(command: &mut Command, shown: &Cmd) -> Result<Self> {
        let shown = shown.to_string();
        let child = command.spawn().with_context(|| format!("`{shown}` could not be started"))?;
        Ok(Self { child, shown })
    }

    /// Standard output and standard error, where they are piped.
    pub(crate) fn pipes(&mut self) -> Vec<Box<dyn Read + Send>> {
        let stdout = self.child.stdout.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>);
        let stderr = self.child.stderr.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>);
        stdout.into_iter().chain(stderr).collect()
    }

    /// Waits for the end, at most this long.
    pub(crate) fn wait(&mut self, limit: Option<Duration>) -> Result<ExitStatus> {
        let Some(limit) = limit else { return Ok(self.child.wait()?) };
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() >= end {
                bail!("`{}` did not end within {} seconds", self.shown, limit.as_secs());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is gone after the wait.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether the machine has this program.
pub(crate) fn has(program: &str) -> bool {
    let Some(path) = std::env::var_os("PATH") else { return false };
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}
