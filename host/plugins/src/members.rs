//! What members tell each other of plugins: how each does on the node that runs it, whether its code is ready, what it has logged.
//!
//! Nothing of this is replicated: it is asked for when somebody looks, of all members at once, each with so much time. A member
//! that does not answer is shown as such.
//!
//! **Invariant:** an answer has its bound, whatever plugins there are, and so has the wait for it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kvasir_api::kvasir::plugin::v1 as api;
use kvasir_api::limits;
use prost::Message;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::board::Code;
use crate::logs::LogTail;
use crate::supervisor::Shared;

/// How long a member may take to answer.
const ANSWER_WAIT: Duration = Duration::from_secs(2);
/// Bytes of plugins in one answer; the asker asks for the rest.
const PAGE_BYTES_MAX: usize = 512 << 10;
/// How often members are asked for new lines of a log that is followed.
const FOLLOW_EVERY: Duration = Duration::from_millis(500);
/// Lines of other members waiting for whoever follows.
const FOLLOW_QUEUE_MAX: usize = 256;

/// What one member said.
pub(crate) struct Told {
    pub(crate) node: u64,
    pub(crate) name: String,
    /// By name; `None` when it did not answer.
    pub(crate) plugins: Option<BTreeMap<String, api::MemberPlugin>>,
}

impl Told {
    /// What it said of a generation of a plugin; `None` when it does not know of it yet, or did not answer.
    pub(crate) fn plugin(&self, name: &str, generation: u64) -> Option<&api::MemberPlugin> {
        self.plugins.as_ref()?.get(name).filter(|plugin| plugin.generation == generation)
    }
}

impl Shared {
    /// Answers another member's question; what is none gets an empty answer.
    pub(crate) fn answer(&self, question: &[u8]) -> Vec<u8> {
        use api::member_question::About;
        let mut answer = api::MemberAnswer::default();
        match api::MemberQuestion::decode(question).map(|question| question.about) {
            Ok(Some(About::Status(question))) => answer.status = Some(self.status_page(&question)),
            Ok(Some(About::Logs(question))) => {
                if self.store.plugin(&question.name).is_some() {
                    answer.logs = Some(self.board(&question.name).log.page(&question));
                }
            }
            Ok(None) | Err(_) => {}
        }
        answer.encode_to_vec()
    }

    fn status_page(&self, question: &api::MemberStatusQuestion) -> api::MemberStatus {
        let mut page = api::MemberStatus::default();
        let mut bytes = 0;
        for record in self.store.plugins() {
            let wanted = if question.name.is_empty() { record.name > question.after } else { record.name == question.name };
            if !wanted {
                continue;
            }
            let board = self.board(&record.name);
            let (code, reason) = match board.code(record.generation) {
                Code::Compiling => ("compiling", String::new()),
                Code::Ready => ("ready", String::new()),
                Code::Failed(why) => ("failed", why),
            };
            let triggers = record.triggers.iter().map(|id| {
                let numbers = board.trigger(id).numbers();
                api::MemberTrigger {
                    id: id.clone(),
                    state: numbers.state.to_owned(),
                    runs: numbers.runs,
                    faults: numbers.faults,
                    last_error: numbers.last_error,
                    last_run_us: numbers.last_run.as_micros() as u64,
                    position_main: numbers.position.main,
                    position_sub: numbers.position.sub,
                }
            });
            let plugin = api::MemberPlugin {
                generation: record.generation,
                code: code.to_owned(),
                reason,
                triggers: triggers.collect(),
                name: record.name,
            };
            bytes += plugin.encoded_len();
            if bytes > PAGE_BYTES_MAX && !page.plugins.is_empty() {
                page.more = true;
                break;
            }
            page.plugins.push(plugin);
        }
        page
    }

    /// How plugins do on this node: one of them, or with an empty name all.
    pub(crate) fn told_here(&self, name: &str) -> Told {
        let mut plugins = BTreeMap::new();
        let mut after = String::new();
        loop {
            let page = self.status_page(&api::MemberStatusQuestion { name: name.to_owned(), after: after.clone() });
            after = page.plugins.last().map(|plugin| plugin.name.clone()).unwrap_or_default();
            plugins.extend(page.plugins.into_iter().map(|plugin| (plugin.name.clone(), plugin)));
            if !page.more {
                break;
            }
        }
        let node = self.store.node_id();
        let name = self.store.members().into_iter().find(|(id, _)| *id == node).map(|(_, name)| name);
        Told { node, name: name.unwrap_or_default(), plugins: Some(plugins) }
    }

    /// How plugins do on every member, in order of id.
    pub(crate) async fn told(self: &Arc<Self>, name: &str) -> Vec<Told> {
        let here = self.store.node_id();
        let mut asked = JoinSet::new();
        for (node, node_name) in self.store.members().into_iter().filter(|(node, _)| *node != here) {
            let (shared, name) = (self.clone(), name.to_owned());
            asked.spawn(async move {
                let asking = tokio::time::timeout(ANSWER_WAIT, shared.told_by(node, &name)).await;
                Told { node, name: node_name, plugins: asking.ok().flatten() }
            });
        }
        let mut told = vec![self.told_here(name)];
        // Only when the node stops does one of these not end.
        while let Some(answer) = asked.join_next().await {
            told.extend(answer.ok());
        }
        told.sort_by_key(|told| told.node);
        told
    }

    async fn told_by(&self, node: u64, name: &str) -> Option<BTreeMap<String, api::MemberPlugin>> {
        let mut plugins = BTreeMap::new();
        let mut after = String::new();
        // As many pages as there can be plugins.
        for _ in 0..=limits::PLUGINS_MAX {
            let question = api::MemberStatusQuestion { name: name.to_owned(), after: after.clone() };
            let page = self.ask(node, api::member_question::About::Status(question)).await?.status?;
            after = page.plugins.last().map(|plugin| plugin.name.clone()).unwrap_or_default();
            plugins.extend(page.plugins.into_iter().map(|plugin| (plugin.name.clone(), plugin)));
            if !page.more {
                break;
            }
        }
        Some(plugins)
    }

    async fn ask(&self, node: u64, about: api::member_question::About) -> Option<api::MemberAnswer> {
        let question = api::MemberQuestion { about: Some(about) }.encode_to_vec();
        match self.store.ask(node, Bytes::from(question)).await {
            Ok(answer) => api::MemberAnswer::decode(answer).ok(),
            Err(error) => {
                tracing::debug!(node = format_args!("{node:016x}"), %error, "a member does not say how its plugins do");
                None
            }
        }
    }

    /// A plugin's log on every member: the last `tail` lines (0: all that are kept), by the members' clocks, and what comes after.
    pub(crate) async fn logs(self: &Arc<Self>, plugin: &str, tail: u32, follow: bool) -> LogTail {
        let mut kept = self.board(plugin).log.tail(tail as usize);
        let here = self.store.node_id();
        let members = self.store.members();
        if members.len() <= 1 {
            return kept;
        }
        let name = members.iter().find(|(node, _)| *node == here).map(|(_, name)| name.clone()).unwrap_or_default();
        kept.lines.iter_mut().for_each(|line| line.node.clone_from(&name));
        let mut asked = JoinSet::new();
        for (node, name) in members.into_iter().filter(|(node, _)| *node != here) {
            let (shared, plugin) = (self.clone(), plugin.to_owned());
            asked.spawn(async move {
                let mut place = Place { node, name, log: 0, after: 0 };
                let lines = shared.lines_after(&plugin, &mut place, tail).await;
                (place, lines)
            });
        }
        let mut places = Vec::new();
        while let Some(answer) = asked.join_next().await {
            let Ok((place, lines)) = answer else { continue };
            places.push(place);
            kept.lines.extend(lines);
        }
        kept.lines.sort_by_key(|line| line.wall_ms);
        if tail > 0 {
            kept.lines.drain(..kept.lines.len().saturating_sub(tail as usize));
        }
        if follow {
            let (lines, others) = mpsc::channel(FOLLOW_QUEUE_MAX);
            tokio::spawn(self.clone().follow_others(plugin.to_owned(), places, lines));
            kept.follow.join(name, others);
        }
        kept
    }

    /// New lines of a member; none when it does not answer in time.
    async fn lines_after(&self, plugin: &str, place: &mut Place, tail: u32) -> Vec<api::LogLine> {
        let question = api::MemberLogsQuestion { name: plugin.to_owned(), log: place.log, after: place.after, tail };
        let asking = self.ask(place.node, api::member_question::About::Logs(question));
        let answer = tokio::time::timeout(ANSWER_WAIT, asking).await;
        let Some(logs) = answer.ok().flatten().and_then(|answer| answer.logs) else { return Vec::new() };
        (place.log, place.after) = (logs.log, logs.upto);
        logs.lines.into_iter().map(|line| api::LogLine { node: place.name.clone(), ..line }).collect()
    }

    /// Asks the other members for new lines until nobody wants them or the plugin is gone.
    async fn follow_others(self: Arc<Self>, plugin: String, mut places: Vec<Place>, lines: mpsc::Sender<api::LogLine>) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(FOLLOW_EVERY) => {}
                () = lines.closed() => return,
                () = self.cancel.cancelled() => return,
            }
            if self.store.plugin(&plugin).is_none() {
                return;
            }
            let here = self.store.node_id();
            let members = self.store.members();
            places.retain(|place| members.iter().any(|(node, _)| *node == place.node));
            for (node, name) in members.into_iter().filter(|(node, _)| *node != here) {
                if !places.iter().any(|place| place.node == node) {
                    places.push(Place { node, name, log: 0, after: 0 });
                }
            }
            for place in &mut places {
                for line in self.lines_after(&plugin, place, 0).await {
                    if lines.send(line).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

/// How far a member's log was read.
struct Place {
    node: u64,
    name: String,
    log: u64,
    after: u64,
}
