//! The cluster version: raised by the leader once every member knows more.
//!
//! **Invariant:** it is raised to what the records of all members say, learners as well, never to more; a member whose record says
//! nothing, because it has not started yet, is one that knows the first version alone.

use std::time::Duration;

use kvasir_api::command::ClusterVersion;
use kvasir_api::command::command::Body;
use kvasir_consensus::MemberInfo;
use kvasir_machine::FIRST_CLUSTER_VERSION;

use crate::engine::Engine;

/// How often the leader looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What all members know.
fn known_to_all(members: &[MemberInfo]) -> u32 {
    members.iter().map(|info| info.member.command_version.max(FIRST_CLUSTER_VERSION)).min().unwrap_or(FIRST_CLUSTER_VERSION)
}

/// The task that raises it.
pub(crate) async fn raise(engine: Engine) {
    loop {
        tokio::select! {
            () = engine.inner().stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let Some(term) = engine.leading_term() else { continue };
        // Its own record may not be corrected yet.
        let mine = engine.inner().options.command_version;
        let (version, agreed) = (known_to_all(&engine.members()).min(mine), engine.cluster_version());
        if version <= agreed {
            continue;
        }
        match engine.unless_stopped(engine.propose_in_term(term, Body::ClusterVersion(ClusterVersion { version }))).await {
            None => return,
            Some(Ok(_)) => tracing::info!("every member knows the commands of version {version}: they may be used from now on"),
            Some(Err(error)) => tracing::debug!(%error, "the cluster version is not raised yet"),
        }
    }
}

impl Engine {
    /// The version of commands that every member knows, as the members have agreed.
    pub fn cluster_version(&self) -> u32 {
        self.consensus().state().read().cluster_version()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvasir_consensus::Member;

    #[test]
    fn the_oldest_member_decides_and_one_that_says_nothing_is_the_oldest() {
        let members = |versions: &[u32]| -> Vec<MemberInfo> {
            let member = |version: &u32| Member { command_version: *version, ..Member::default() };
            versions.iter().map(|version| MemberInfo { id: 1, member: member(version), learner: false }).collect()
        };
        assert_eq!(known_to_all(&members(&[3, 2, 4])), 2);
        assert_eq!(known_to_all(&members(&[3, 0, 4])), FIRST_CLUSTER_VERSION);
        assert_eq!(known_to_all(&[]), FIRST_CLUSTER_VERSION);
    }
}
