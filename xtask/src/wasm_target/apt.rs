//! Packages of other Debian suites, fetched and unpacked without installing them.
//!
//! apt runs with state, cache and sources of its own, on the mirror and keyring that the machine's own sources name.
//!
//! **Invariant:** the machine's apt sources, lists and installed packages stay as they are.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::shell::Cmd;

/// A mirror as the machine's own sources name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mirror {
    uri: String,
    signed_by: Option<String>,
    /// The machine's release: `bookworm`.
    pub(super) codename: String,
}

impl Mirror {
    /// The mirror that this machine gets its release from.
    pub(super) fn of_this_machine() -> Result<Self> {
        let release = std::fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
        let codename = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
        let codename = codename.context("/etc/os-release names no VERSION_CODENAME")?.trim_matches('"');
        for file in source_files() {
            let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let found = if file.extension().is_some_and(|it| it == "sources") {
                from_deb822(&text, codename)
            } else {
                from_lines(&text, codename)
            };
            if let Some(mirror) = found {
                println!("  the mirror in {} serves {codename}", file.display());
                return Ok(mirror);
            }
        }
        bail!("no apt source of this machine serves the main component of {codename}");
    }
}

fn source_files() -> Vec<PathBuf> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    files.extend(
        super::names(Path::new("/etc/apt/sources.list.d")).iter().map(|name| Path::new("/etc/apt/sources.list.d").join(name)),
    );
    files.retain(|file| file.is_file() && file.extension().is_some_and(|it| it == "list" || it == "sources"));
    files.sort();
    files
}

/// The stanza of a `.sources` file that serves this suite.
fn from_deb822(text: &str, suite: &str) -> Option<Mirror> {
    let kept: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
    kept.split(|line| line.trim().is_empty()).find_map(|stanza| {
        let field = |name: &str| {
            stanza.iter().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.trim().eq_ignore_ascii_case(name).then(|| value.trim())
            })
        };
        let has = |name: &str, word: &str| field(name).unwrap_or_default().split_whitespace().any(|it| it == word);
        let disabled = field("Enabled").is_some_and(|value| value.eq_ignore_ascii_case("no"));
        let serves = has("Types", "deb") && has("Suites", suite) && has("Components", "main") && !disabled;
        serves.then_some(())?;
        Some(Mirror {
            uri: field("URIs")?.split_whitespace().next()?.to_owned(),
            // A key written into the file itself would go on over lines; a path does not.
            signed_by: field("Signed-By").filter(|value| value.starts_with('/')).map(str::to_owned),
            codename: suite.to_owned(),
        })
    })
}

/// The line of a `.list` file that serves this suite.
fn from_lines(text: &str, suite: &str) -> Option<Mirror> {
    text.lines().find_map(|line| {
        let rest = line.trim().strip_prefix("deb ")?.trim();
        let (options, rest) = match rest.strip_prefix('[') {
            Some(rest) => rest.split_once(']')?,
            None => ("", rest),
        };
        let mut words = rest.split_whitespace();
        let (uri, its_suite) = (words.next()?, words.next()?);
        (its_suite == suite && words.any(|word| word == "main")).then_some(())?;
        let signed_by = options.split_whitespace().find_map(|it| it.strip_prefix("signed-by="));
        Some(Mirror { uri: uri.to_owned(), signed_by: signed_by.map(str::to_owned), codename: suite.to_owned() })
    })
}

/// apt on one suite of the mirror, in a folder of its own.
pub(super) struct Suite {
    pub(super) name: String,
    folder: PathBuf,
}

impl Suite {
    /// Fetches the suite's package lists; `None`, said out loud, when the mirror does not have it.
    pub(super) fn fetch(mirror: &Mirror, name: &str, folder: &Path) -> Result<Option<Self>> {
        let suite = Self { name: name.to_owned(), folder: folder.join(name) };
        for part in ["state/lists/partial", "cache/archives/partial", "parts"] {
            std::fs::create_dir_all(suite.folder.join(part))?;
        }
        std::fs::write(suite.folder.join("state/status"), "")?;
        let mut stanza = format!("Types: deb\nURIs: {}\nSuites: {name}\nComponents: main\n", mirror.uri);
        if let Some(keyring) = &mirror.signed_by {
            let _ = writeln!(stanza, "Signed-By: {keyring}");
        }
        std::fs::write(suite.folder.join("parts/suite.sources"), stanza)?;
        let update = suite.tool("apt-get").arg("update").output()?;
        if update.status.success() {
            return Ok(Some(suite));
        }
        let why = update.stderr.lines().find(|line| line.starts_with("E:")).unwrap_or("apt-get update failed").to_owned();
        println!("  suite {name}: not to be had ({why})");
        Ok(None)
    }

    /// The versions of a package that the suite has.
    pub(super) fn versions(&self, package: &str) -> Result<Vec<String>> {
        // `rust-src | 1.95.0+dfsg1-2~bpo13+1 | <where from>`
        let said = self.tool("apt-cache").args(["madison", package]).read()?;
        let mut versions: Vec<String> =
            said.lines().filter_map(|line| Some(line.split('|').nth(1)?.trim().to_owned())).collect();
        versions.dedup();
        Ok(versions)
    }

    /// Downloads a package and unpacks it into a folder.
    pub(super) fn unpack(&self, package: &str, version: &str, into: &Path) -> Result<()> {
        let downloads = self.folder.join("downloads").join(package);
        std::fs::create_dir_all(&downloads)?;
        let download = self.tool("apt-get").args(["download", &format!("{package}={version}")]).folder(&downloads);
        println!("  downloading {package} {version} of suite {}", self.name);
        download.read()?;
        let archive = super::names(&downloads).into_iter().find(|name| name.ends_with(".deb"));
        let archive = archive.with_context(|| format!("apt-get downloaded no archive of {package}"))?;
        println!("  unpacking {archive}");
        Cmd::new("dpkg").arg("-x").arg(downloads.join(archive)).arg(into).read()?;
        Ok(())
    }

    fn tool(&self, program: &str) -> Cmd {
        let place = |option: &str, part: &str| format!("{option}={}", self.folder.join(part).display());
        let options = [
            place("Dir::State", "state"),
            place("Dir::State::status", "state/status"),
            place("Dir::Cache", "cache"),
            place("Dir::Etc::sourcelist", "none.list"),
            place("Dir::Etc::sourceparts", "parts"),
            place("Dir::Etc::preferences", "none"),
            place("Dir::Etc::preferencesparts", "none.d"),
            "Acquire::Languages=none".to_owned(),
            "APT::Get::AllowUnauthenticated=false".to_owned(),
            // The folder is ours, not the sandbox user's.
            "APT::Sandbox::User=root".to_owned(),
        ];
        Cmd::new(program).env("LC_ALL", "C").args(options.iter().flat_map(|option| ["-o", option.as_str()]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_found_in_a_stanza_and_in_a_line() {
        let stanzas = "# ours\nTypes: deb\nURIs: http://other.test\nSuites: nodistro\nComponents: main\n\n\
                       Types: deb\n# a comment\nURIs: http://mirror.test/debian\nSuites: bookworm bookworm-updates\n\
                       Components: main\nSigned-By: /keys/debian.gpg\n";
        let mirror = Mirror {
            uri: "http://mirror.test/debian".to_owned(),
            signed_by: Some("/keys/debian.gpg".to_owned()),
            codename: "bookworm".to_owned(),
        };
        assert_eq!(from_deb822(stanzas, "bookworm"), Some(mirror.clone()));
        assert_eq!(from_deb822(stanzas, "trixie"), None);
        let lines = "# deb http://no.test bookworm main\ndeb http://other.test bookworm-security main\n\
                     deb [arch=amd64 signed-by=/keys/debian.gpg] http://mirror.test/debian bookworm main contrib\n";
        assert_eq!(from_lines(lines, "bookworm"), Some(mirror));
        assert_eq!(from_lines("deb http://mirror.test/debian bookworm contrib\n", "bookworm"), None);
    }
}
