//! How much memory this process may use, and the quota that follows from it.
//!
//! **Invariant:** what the kernel's files say is parsed before it is believed; what cannot be read does not count.

use std::io::Read;
use std::path::{Component, Path, PathBuf};

use kvasir_api::limits::QUOTA_BYTES_DEFAULT;

/// Bytes of one of the kernel's files that are looked at.
const FILE_BYTES_MAX: u64 = 64 * 1024;
/// Where control groups are mounted.
const CGROUPS: &str = "/sys/fs/cgroup";

/// The default quota on this machine, in logical bytes.
pub(crate) fn quota_default() -> u64 {
    quota(ram_bytes(), cgroup_bytes())
}

/// The smaller of 2 GiB and a quarter of what there is: RAM, or what the control group leaves of it.
fn quota(ram_bytes: Option<u64>, cgroup_bytes: Option<u64>) -> u64 {
    let memory = ram_bytes.into_iter().chain(cgroup_bytes).min();
    memory.map_or(QUOTA_BYTES_DEFAULT, |bytes| QUOTA_BYTES_DEFAULT.min(bytes / 4)).max(1)
}

fn ram_bytes() -> Option<u64> {
    let info = rustix::system::sysinfo();
    // Wider on some targets than on others.
    #[allow(clippy::useless_conversion, reason = "the kernel's long is not 64 bits everywhere")]
    let units = u64::from(info.totalram);
    units.checked_mul(u64::from(info.mem_unit)).filter(|bytes| *bytes > 0)
}

/// The lowest limit of this process's control group and those above it, in version 2 or 1.
fn cgroup_bytes() -> Option<u64> {
    let groups = limit_files(&read("/proc/self/cgroup".as_ref())?);
    groups.iter().filter_map(|file| limit(&read(file)?)).min()
}

/// The files that may limit the process, from the text of `/proc/self/cgroup`.
fn limit_files(text: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in text.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(group)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let (mount, file) = match controllers {
            "" => (PathBuf::from(CGROUPS), "memory.max"),
            controllers if controllers.split(',').any(|name| name == "memory") => {
                (Path::new(CGROUPS).join("memory"), "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let group = Path::new(group.trim_start_matches('/'));
        // A group outside of what is mounted here is written with `..`.
        if group.components().all(|part| matches!(part, Component::Normal(_))) {
            files.extend(group.ancestors().map(|group| mount.join(group).join(file)));
        }
    }
    files
}

/// A limit as a control group has it; `max` and what is not a number are none.
fn limit(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|bytes| *bytes > 0)
}

fn read(path: &Path) -> Option<String> {
    let mut text = String::new();
    std::fs::File::open(path).ok()?.take(FILE_BYTES_MAX).read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn the_default_quota_is_two_gib_or_a_quarter_of_the_memory_there_is() {
        assert_eq!(quota(Some(64 * GIB), None), 2 * GIB);
        assert_eq!(quota(Some(4 * GIB), None), GIB);
        assert_eq!(quota(Some(64 * GIB), Some(2 * GIB)), GIB / 2);
        assert_eq!(quota(Some(2 * GIB), Some(64 * GIB)), GIB / 2);
        // No limit, as version 1 writes it.
        assert_eq!(quota(Some(4 * GIB), Some(9_223_372_036_854_771_712)), GIB);
        assert_eq!(quota(None, None), QUOTA_BYTES_DEFAULT);
        assert_eq!(quota(Some(1), None), 1);
    }

    #[test]
    fn limits_are_read_from_text_that_may_be_anything() {
        assert_eq!(limit("536870912\n"), Some(536_870_912));
        for text in ["max\n", "", "-1", "0", "12 GiB", "99999999999999999999999", "\0"] {
            assert_eq!(limit(text), None, "{text:?}");
        }
    }

    #[test]
    fn every_group_above_the_process_counts() {
        let files = |text| limit_files(text).iter().map(|path| path.display().to_string()).collect::<Vec<_>>();
        assert_eq!(
            files("0::/a/b\n"),
            ["/sys/fs/cgroup/a/b/memory.max", "/sys/fs/cgroup/a/memory.max", "/sys/fs/cgroup/memory.max"]
        );
        assert_eq!(
            files("12:cpu,memory:/c\n3:cpuset:/d\n"),
            ["/sys/fs/cgroup/memory/c/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        );
        assert_eq!(files("0::/../../etc\nnonsense\n::\n:"), ["/sys/fs/cgroup/memory.max"]);
    }

    #[test]
    fn this_machine_has_a_quota() {
        assert!((1..=QUOTA_BYTES_DEFAULT).contains(&quota_default()));
    }
}
