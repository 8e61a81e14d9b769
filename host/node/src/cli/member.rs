//! `kvasir member` and `move-leader`: who belongs to the cluster.
//!
//! **Invariant:** each changes one thing, and answers once the cluster has agreed on it.

use kvasir_api::etcdserverpb as pb;
use kvasir_api::etcdserverpb::{
    MemberAddRequest, MemberListRequest, MemberPromoteRequest, MemberRemoveRequest, MemberUpdateRequest, MoveLeaderRequest,
    ResponseHeader,
};
use kvasir_api::kvasir::cluster::v1::NodeStatusRequest;
use kvasir_transport::identity::NodeName;
use serde_json::{Value, json};

use super::connect::Connection;
use super::out::{self, Out};
use crate::config::peers::url_of;

/// `kvasir member`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Member {
    /// Prints the members
    List,
    /// Adds a member that will start with a certificate of your own; nodes with a join token need no such thing
    Add(Add),
    /// Removes a member: it is refused by the others from then on
    Remove(Id),
    /// Changes where a member is reached by the others
    Update(Update),
    /// Makes a learner a voter
    Promote(Id),
    /// Hands leadership to a member
    MoveLeader(Id),
}

/// `kvasir member add`.
#[derive(Debug, clap::Args)]
pub(crate) struct Add {
    /// Its name
    name: String,
    /// Where the others reach it, comma-separated
    #[arg(long, required = true, value_delimiter = ',', value_parser = peer_url, value_name = "URLS")]
    peer_urls: Vec<String>,
    /// It does not vote until it is promoted
    #[arg(long)]
    learner: bool,
}

/// A member's id.
#[derive(Debug, clap::Args)]
pub(crate) struct Id {
    /// The member's ID, as `member list` prints it
    #[arg(value_parser = super::hexadecimal, value_name = "ID")]
    id: u64,
}

/// `kvasir member update`.
#[derive(Debug, clap::Args)]
pub(crate) struct Update {
    /// The member's ID, as `member list` prints it
    #[arg(value_parser = super::hexadecimal, value_name = "ID")]
    id: u64,
    /// Where the others reach it, comma-separated
    #[arg(long, required = true, value_delimiter = ',', value_parser = peer_url, value_name = "URLS")]
    peer_urls: Vec<String>,
}

fn peer_url(text: &str) -> Result<String, String> {
    url_of(text.trim())
}

impl Member {
    pub(super) async fn run(self, connection: &Connection, out: &mut Out) -> anyhow::Result<()> {
        let mut cluster = match self {
            Member::MoveLeader(to) => return to.lead(connection, out).await,
            _ => connection.cluster().await?,
        };
        let (id, done, header, members) = match self {
            Member::List | Member::MoveLeader(_) => {
                let request = MemberListRequest { linearizable: true };
                let listed = connection.answer(cluster.member_list(request)).await?;
                return list(&listed, out);
            }
            Member::Add(add) => return add.run(connection, out).await,
            Member::Remove(Id { id }) => {
                let answer = connection.answer(cluster.member_remove(MemberRemoveRequest { id })).await?;
                (id, "removed from", answer.header, answer.members)
            }
            Member::Update(Update { id, peer_urls }) => {
                let request = MemberUpdateRequest { id, peer_ur_ls: peer_urls };
                let answer = connection.answer(cluster.member_update(request)).await?;
                (id, "updated in", answer.header, answer.members)
            }
            Member::Promote(Id { id }) => {
                let answer = connection.answer(cluster.member_promote(MemberPromoteRequest { id })).await?;
                (id, "promoted in", answer.header, answer.members)
            }
        };
        if out.json_wanted() {
            let members: Vec<_> = members.iter().map(member).collect();
            out.json(&json!({ "header": out::header(header.as_ref()), "members": members }))?;
        } else {
            out.line(format!("Member {id:x} {done} cluster {:x}", cluster_id(header.as_ref())))?;
        }
        Ok(())
    }
}

impl Add {
    async fn run(self, connection: &Connection, out: &mut Out) -> anyhow::Result<()> {
        let mut cluster = connection.cluster().await?;
        let request = MemberAddRequest { peer_ur_ls: self.peer_urls.clone(), is_learner: self.learner };
        let answer = connection.answer(cluster.member_add(request)).await?;
        let added = answer.member.unwrap_or_default();
        let name = NodeName { cluster: cluster_id(answer.header.as_ref()), node: added.id };
        if out.json_wanted() {
            let members: Vec<_> = answer.members.iter().map(member).collect();
            out.json(&json!({
                "header": out::header(answer.header.as_ref()),
                "member": member(&added),
                "members": members,
                "certificate": { "uri": name.uri(), "dns": name.dns() },
            }))?;
            return Ok(());
        }
        let of = |member: &pb::Member| {
            let name = if member.id == added.id { &self.name } else { &member.name };
            member.peer_ur_ls.iter().map(|url| format!("{name}={url}")).collect::<Vec<_>>().join(",")
        };
        let everybody: Vec<String> =
            answer.members.iter().filter(|member| member.id == added.id || !member.name.is_empty()).map(of).collect();
        for line in [
            format!("Member {:x} added to cluster {:x}", added.id, name.cluster),
            String::new(),
            "# Its certificate carries these alternative names; --peer-cert-file, --peer-key-file and --peer-trusted-ca-file name the files:".to_owned(),
            format!("# URI {}", name.uri()),
            format!("# DNS {}", name.dns()),
            format!("KVASIR_NAME={:?}", self.name),
            format!("KVASIR_INITIAL_CLUSTER={:?}", everybody.join(",")),
            format!("KVASIR_INITIAL_ADVERTISE_PEER_URLS={:?}", self.peer_urls.join(",")),
            "KVASIR_INITIAL_CLUSTER_STATE=\"existing\"".to_owned(),
        ] {
            out.line(line)?;
        }
        Ok(())
    }
}

impl Id {
    /// Hands leadership over: asks the leader, wherever it is.
    pub(super) async fn lead(self, connection: &Connection, out: &mut Out) -> anyhow::Result<()> {
        let status = connection.answer(connection.nodes().await?.status(NodeStatusRequest {})).await?;
        let urls = status.members.into_iter().find(|member| member.id == status.leader).map(|member| member.client_urls);
        let leads_here = status.node_id == status.leader;
        let mut maintenance = match urls.filter(|urls| !leads_here && !urls.is_empty()) {
            Some(urls) => connection.elsewhere(urls.join(",")).maintenance().await?,
            None => connection.maintenance().await?,
        };
        let answer = connection.answer(maintenance.move_leader(MoveLeaderRequest { target_id: self.id })).await?;
        if out.json_wanted() {
            out.json(&json!({ "header": out::header(answer.header.as_ref()) }))?;
        } else {
            out.line(format!("Leadership transferred from {:x} to {:x}", status.leader, self.id))?;
        }
        Ok(())
    }
}

fn cluster_id(header: Option<&ResponseHeader>) -> u64 {
    header.map_or(0, |header| header.cluster_id)
}

/// A member with etcdctl's field names.
pub(super) fn member(member: &pb::Member) -> Value {
    json!({
        "ID": member.id,
        "name": member.name,
        "peerURLs": member.peer_ur_ls,
        "clientURLs": member.client_ur_ls,
        "isLearner": member.is_learner,
    })
}

fn list(listed: &pb::MemberListResponse, out: &mut Out) -> anyhow::Result<()> {
    if out.json_wanted() {
        let members: Vec<_> = listed.members.iter().map(member).collect();
        out.json(&json!({ "header": out::header(listed.header.as_ref()), "members": members }))?;
        return Ok(());
    }
    for member in &listed.members {
        let state = if member.name.is_empty() { "unstarted" } else { "started" };
        let (peers, clients) = (member.peer_ur_ls.join(","), member.client_ur_ls.join(","));
        out.line(format!("{:x}, {state}, {}, {peers}, {clients}, {}", member.id, member.name, member.is_learner))?;
    }
    Ok(())
}
