//! `kvasir plugin`: install, look at and remove the code that runs in the node.
//!
//! **Invariant:** what a plugin may do is printed in words whenever it is installed or would be.

mod dlq;

use std::io::{ErrorKind, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use bytes::Bytes;
use kvasir_api::kvasir::plugin::v1::install_request::{Header, Part};
use kvasir_api::kvasir::plugin::v1::{
    InspectRequest, InstallRequest, InstallResponse, ListRequest, LogLine, LogsRequest, NodeStatus, PauseRequest, PluginStatus,
    RemoveRequest, ResumeRequest, TriggerStatus,
};
use kvasir_api::limits::{BLOB_CHUNK_BYTES, COMPONENT_BYTES_MAX, MANIFEST_BYTES_MAX};
use serde_json::{Value, json};

use super::Usage;
use super::connect::Connection;
use super::maintain::size;
use super::out::{self, Out};
use crate::clock;

/// `kvasir plugin`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Plugin {
    /// Installs a component, or a new version of one with --upgrade
    Install(Install),
    /// Prints the plugins, their triggers and how they do
    #[command(visible_alias = "list")]
    Ls,
    /// Prints one plugin in full: permissions, manifest, triggers
    Inspect {
        /// The plugin's name
        name: String,
    },
    /// Prints what a plugin has logged
    Logs {
        /// The plugin's name
        name: String,
        /// Go on as lines come
        #[arg(short, long)]
        follow: bool,
        /// Only the last so many lines; 0 means all that are kept
        #[arg(long, default_value_t = 0, value_name = "COUNT")]
        tail: u32,
    },
    /// Removes a plugin; what it wrote stays
    #[command(visible_alias = "remove")]
    Rm {
        /// The plugin's name
        name: String,
    },
    /// Stops a plugin's triggers; their cursors stay
    Pause {
        /// The plugin's name
        name: String,
    },
    /// Lets a paused, quarantined or halted plugin go on from where it was
    Resume {
        /// The plugin's name
        name: String,
        /// Only this trigger, which is halted
        #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
        trigger: String,
    },
    /// Dead letters: events that a plugin could not handle
    #[command(subcommand)]
    Dlq(dlq::Dlq),
}

/// `kvasir plugin install`.
#[derive(Debug, clap::Args)]
pub(crate) struct Install {
    /// The component, a .wasm file
    component: PathBuf,
    /// The manifest, a TOML file; without it, the one embedded in the component
    #[arg(long, value_name = "PATH")]
    manifest: Option<PathBuf>,
    /// Grant a permission: kv:read=/config/, kv:write=/rendered/, lock=/jobs/ or lease
    #[arg(long = "grant", value_name = "GRANT")]
    grants: Vec<String>,
    /// Grant everything that the manifest asks for
    #[arg(long)]
    accept_requested: bool,
    /// Say what would be installed and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Replace the installed version
    #[arg(long)]
    upgrade: bool,
    /// Set a value of the manifest's config table: NAME=VALUE
    #[arg(long = "config", value_name = "NAME=VALUE", value_parser = name_and_value)]
    config: Vec<(String, String)>,
}

fn name_and_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("not NAME=VALUE".to_owned()),
    }
}

impl Plugin {
    pub(super) async fn run(self, connection: &Connection, out: &mut Out) -> anyhow::Result<()> {
        match self {
            Plugin::Install(install) => install.run(connection, out).await,
            Plugin::Ls => list(connection, out).await,
            Plugin::Inspect { name } => inspect(name, connection, out).await,
            Plugin::Logs { name, follow, tail } => logs(LogsRequest { name, follow, tail }, connection, out).await,
            Plugin::Rm { name } => {
                let mut plugins = connection.plugins().await?;
                connection.answer(plugins.remove(RemoveRequest { name: name.clone() })).await?;
                done(&name, "removed", out)
            }
            Plugin::Pause { name } => {
                let mut plugins = connection.plugins().await?;
                connection.answer(plugins.pause(PauseRequest { name: name.clone() })).await?;
                done(&name, "paused", out)
            }
            Plugin::Resume { name, trigger } => {
                let mut plugins = connection.plugins().await?;
                connection.answer(plugins.resume(ResumeRequest { name: name.clone(), trigger })).await?;
                done(&name, "resumed", out)
            }
            Plugin::Dlq(command) => command.run(connection, out).await,
        }
    }
}

fn done(name: &str, what: &str, out: &mut Out) -> anyhow::Result<()> {
    if out.json_wanted() {
        out.json(&json!({ "name": name, "done": what }))?;
    } else {
        out.line(format!("plugin {name} {what}"))?;
    }
    Ok(())
}

impl Install {
    async fn run(self, connection: &Connection, out: &mut Out) -> anyhow::Result<()> {
        let component = read_whole(&self.component, COMPONENT_BYTES_MAX)?;
        let manifest_toml = match &self.manifest {
            None => String::new(),
            Some(path) => String::from_utf8(read_whole(path, MANIFEST_BYTES_MAX as u64)?)
                .with_context(|| format!("{} is not text; give a TOML file", path.display()))?,
        };
        let header = Header {
            manifest_toml,
            grants: self.grants,
            accept_requested: self.accept_requested,
            dry_run: self.dry_run,
            upgrade: self.upgrade,
            config: self.config.into_iter().collect(),
            total_bytes: component.len() as u64,
        };
        let mut plugins = connection.plugins().await?;
        let uploading = plugins.install(upload(header, component.into(), !out.json_wanted()));
        // No bound of ours: a large component takes its time to arrive and to be checked. The node bounds the upload; it compiles
        // after the answer.
        let response = uploading.await?.into_inner();
        if out.json_wanted() {
            out.json(&json!({
                "name": response.name,
                "version": response.version,
                "generation": response.generation,
                "digest": response.digest,
                "permissions": response.permissions,
                "dry_run": self.dry_run,
            }))?;
            return Ok(());
        }
        for line in installed(&response, self.dry_run) {
            out.line(line)?;
        }
        Ok(())
    }
}

fn installed(response: &InstallResponse, dry_run: bool) -> Vec<String> {
    let (name, version) = (&response.name, &response.version);
    let mut lines = vec![if dry_run {
        format!("would install {name} {version} ({})", short(&response.digest))
    } else {
        format!("installed {name} {version}, generation {} ({})", response.generation, short(&response.digest))
    }];
    if response.permissions.is_empty() {
        lines.push(format!("{name} may touch nothing: it was granted no permission"));
    } else {
        lines.push(format!("{name} may:"));
        lines.extend(response.permissions.iter().map(|permission| format!("  - {permission}")));
    }
    lines
}

fn read_whole(path: &Path, bytes_max: u64) -> anyhow::Result<Vec<u8>> {
    let shown = path.display();
    let file = std::fs::File::open(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => anyhow::anyhow!("there is no file {shown}"),
        _ => anyhow::anyhow!("cannot read {shown}: {error}"),
    })?;
    let mut bytes = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut bytes).with_context(|| format!("cannot read {shown}"))?;
    if bytes.len() as u64 > bytes_max {
        bail!("{shown} is too large: at most {bytes_max} bytes are taken");
    }
    if bytes.is_empty() {
        return Err(Usage(format!("{shown} is empty; give the file that the build has made")).into());
    }
    Ok(bytes)
}

/// The header, then the component piece by piece; progress goes to standard error where a person sees it.
fn upload(header: Header, component: Bytes, show: bool) -> impl tokio_stream::Stream<Item = InstallRequest> + Send + 'static {
    let total = component.len();
    let show = show && total > 4 * BLOB_CHUNK_BYTES && std::io::stderr().is_terminal();
    let pieces = (0..total).step_by(BLOB_CHUNK_BYTES).map(move |start| {
        let end = total.min(start + BLOB_CHUNK_BYTES);
        if show {
            let rest = if end == total { ", checking\n" } else { "" };
            let _ = write!(std::io::stderr(), "\rsent {} of {}{rest}", size(end as i64), size(total as i64));
        }
        InstallRequest { part: Some(Part::Data(component.slice(start..end))) }
    });
    tokio_stream::iter(std::iter::once(InstallRequest { part: Some(Part::Header(header)) }).chain(pieces))
}

async fn list(connection: &Connection, out: &mut Out) -> anyhow::Result<()> {
    let mut plugins = connection.plugins().await?;
    let response = connection.answer(plugins.list(ListRequest {})).await?;
    if out.json_wanted() {
        let list: Vec<_> = response.plugins.iter().map(plugin_json).collect();
        out.json(&json!({ "plugins": list }))?;
        return Ok(());
    }
    if response.plugins.is_empty() {
        out.line("no plugins are installed; `kvasir plugin install FILE.wasm` adds one")?;
        return Ok(());
    }
    for line in overview(&response.plugins) {
        out.line(line)?;
    }
    Ok(())
}

/// One line for each plugin, then one for each trigger, errors in full below.
fn overview(plugins: &[PluginStatus]) -> Vec<String> {
    let heading =
        ["NAME", "VERSION", "GEN", "STATE", "READY", "TRIGGER", "DOES", "IS", "ON", "CURSOR", "LAG", "RUNS", "FAULTS", "DEAD"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    let mut notes = Vec::new();
    for plugin in plugins {
        let mut own = vec![
            plugin.name.clone(),
            plugin.version.clone(),
            plugin.generation.to_string(),
            plugin.state.clone(),
            ready(plugin),
        ];
        if plugin.triggers.is_empty() {
            rows.push(own.clone());
        }
        for trigger in &plugin.triggers {
            rows.push(own.iter().cloned().chain(trigger_cells(trigger)).collect());
            // The plugin's own columns stand on its first line only.
            own.iter_mut().for_each(String::clear);
            if !trigger.reason.is_empty() {
                notes.push(format!("{}/{}: halted: {}", plugin.name, trigger.id, one_line(&trigger.reason)));
            }
            if !trigger.last_error.is_empty() {
                notes.push(format!("{}/{}: last error: {}", plugin.name, trigger.id, one_line(&trigger.last_error)));
            }
        }
        notes.extend(plugin.nodes.iter().filter(|node| !matches!(node.state.as_str(), "ready" | "stopped")).map(|node| {
            let reason = if node.reason.is_empty() { String::new() } else { format!(": {}", one_line(&node.reason)) };
            format!("{}: not ready on {}: {}{reason}", plugin.name, member(node.node, &node.name), node.state)
        }));
        if !plugin.reason.is_empty() {
            notes.push(format!("{}: {}: {}", plugin.name, plugin.state, one_line(&plugin.reason)));
        }
    }
    let mut lines = out::table(&rows);
    lines.extend(notes);
    lines
}

/// On how many members the code can run, of how many.
fn ready(plugin: &PluginStatus) -> String {
    format!("{}/{}", plugin.nodes.iter().filter(|node| node.state == "ready").count(), plugin.nodes.len())
}

/// A member as people call it.
fn member(id: u64, name: &str) -> String {
    match (id, name) {
        (0, _) => "-".to_owned(),
        (id, "") => format!("{id:x}"),
        (_, name) => name.to_owned(),
    }
}

fn trigger_cells(trigger: &TriggerStatus) -> [String; 9] {
    let cursor = match (trigger.kind.as_str(), trigger.cursor_sub) {
        ("schedule", _) => "-".to_owned(),
        (_, 0) => trigger.cursor_main.to_string(),
        (_, sub) => format!("{}.{sub}", trigger.cursor_main),
    };
    let lag = if trigger.kind == "schedule" { "-".to_owned() } else { trigger.lag_revisions.to_string() };
    [
        trigger.id.clone(),
        if trigger.detail.is_empty() { trigger.kind.clone() } else { trigger.detail.clone() },
        trigger.state.clone(),
        member(trigger.node, &trigger.node_name),
        cursor,
        lag,
        trigger.runs.to_string(),
        trigger.faults.to_string(),
        trigger.dead_letters.to_string(),
    ]
}

async fn inspect(name: String, connection: &Connection, out: &mut Out) -> anyhow::Result<()> {
    let mut plugins = connection.plugins().await?;
    let response = connection.answer(plugins.inspect(InspectRequest { name })).await?;
    let status = response.status.unwrap_or_default();
    if out.json_wanted() {
        let mut object = plugin_json(&status);
        object["manifest_toml"] = json!(response.manifest_toml);
        object["permissions"] = json!(response.permissions);
        object["imports"] = json!(response.imports);
        object["exports"] = json!(response.exports);
        object["component_bytes"] = json!(response.component_bytes);
        out.json(&object)?;
        return Ok(());
    }
    let reason = if status.reason.is_empty() { String::new() } else { format!(": {}", one_line(&status.reason)) };
    out.line(format!("{} {}, generation {}, {}{reason}", status.name, status.version, status.generation, status.state))?;
    out.line(format!("component  {} bytes, sha256 {}", response.component_bytes, status.digest))?;
    for node in &status.nodes {
        let reason = if node.reason.is_empty() { String::new() } else { format!(": {}", one_line(&node.reason)) };
        out.line(format!("on         {}: {}{reason}", member(node.node, &node.name), node.state))?;
    }
    out.line(format!("imports    {}", or_nothing(&response.imports)))?;
    out.line(format!("exports    {}", or_nothing(&response.exports)))?;
    out.line("")?;
    let may = if response.permissions.is_empty() { "may touch nothing" } else { "may:" };
    out.line(format!("{} {may}", status.name))?;
    for permission in &response.permissions {
        out.line(format!("  - {permission}"))?;
    }
    for trigger in &status.triggers {
        out.line("")?;
        for line in trigger_lines(trigger) {
            out.line(line)?;
        }
    }
    out.line("")?;
    out.line("manifest:")?;
    for line in response.manifest_toml.lines() {
        out.line(format!("  {line}"))?;
    }
    Ok(())
}

fn trigger_lines(trigger: &TriggerStatus) -> Vec<String> {
    let mut lines = vec![format!("trigger {} ({}): {}", trigger.id, trigger.detail, trigger.state)];
    if trigger.kind != "schedule" {
        let (main, sub, lag) = (trigger.cursor_main, trigger.cursor_sub, trigger.lag_revisions);
        lines.push(format!("  cursor     {main}.{sub}, {lag} revisions behind"));
    }
    let on = match trigger.node {
        0 => "no node yet".to_owned(),
        node => format!("{} (node {node:x})", member(node, &trigger.node_name)),
    };
    lines.push(format!("  runs on    {on}, owner epoch {}", trigger.owner_epoch));
    if trigger.last_run_wall_ms > 0 {
        lines.push(format!("  last run   {}", clock::utc(trigger.last_run_wall_ms)));
    }
    if !trigger.reason.is_empty() {
        lines.push(format!("  halted     {}", one_line(&trigger.reason)));
    }
    let (runs, faults, dead) = (trigger.runs, trigger.faults, trigger.dead_letters);
    lines.push(format!("  runs       {runs}, faults {faults}, dead letters {dead}, last run {} us", trigger.last_run_us));
    if !trigger.last_error.is_empty() {
        lines.push(format!("  last error {}", one_line(&trigger.last_error)));
    }
    lines
}

async fn logs(request: LogsRequest, connection: &Connection, out: &mut Out) -> anyhow::Result<()> {
    let mut plugins = connection.plugins().await?;
    let mut lines = connection.answer(plugins.logs(request)).await?;
    while let Some(line) = lines.message().await? {
        if out.json_wanted() {
            out.json(&json!({
                "wall_ms": line.wall_ms,
                "level": line.level,
                "target": line.target,
                "message": line.message,
                "trigger": line.trigger,
                "generation": line.generation,
                "attempt": line.attempt,
                "node": line.node,
            }))?;
        } else {
            out.line(log_line(&line))?;
        }
        out.flush()?;
    }
    Ok(())
}

fn log_line(line: &LogLine) -> String {
    let attempt = if line.attempt > 1 { format!(" attempt {}", line.attempt) } else { String::new() };
    let target = if line.target.is_empty() { String::new() } else { format!("{}: ", line.target) };
    let (at, level) = (clock::utc(line.wall_ms), line.level.to_ascii_uppercase());
    let node = if line.node.is_empty() { String::new() } else { format!("{} ", one_line(&line.node)) };
    format!("{at} {level:<5} {node}[{}{attempt}] {target}{}", line.trigger, one_line(&line.message))
}

fn plugin_json(plugin: &PluginStatus) -> Value {
    let trigger = |trigger: &TriggerStatus| {
        json!({
            "id": trigger.id,
            "kind": trigger.kind,
            "detail": trigger.detail,
            "state": trigger.state,
            "cursor_main": trigger.cursor_main,
            "cursor_sub": trigger.cursor_sub,
            "lag_revisions": trigger.lag_revisions,
            "node": trigger.node,
            "owner_epoch": trigger.owner_epoch,
            "runs": trigger.runs,
            "faults": trigger.faults,
            "dead_letters": trigger.dead_letters,
            "last_error": trigger.last_error,
            "last_run_us": trigger.last_run_us,
            "node_name": trigger.node_name,
            "reason": trigger.reason,
            "last_run_wall_ms": trigger.last_run_wall_ms,
        })
    };
    let node = |node: &NodeStatus| json!({ "node": node.node, "name": node.name, "state": node.state, "reason": node.reason });
    json!({
        "name": plugin.name,
        "version": plugin.version,
        "generation": plugin.generation,
        "digest": plugin.digest,
        "state": plugin.state,
        "reason": plugin.reason,
        "triggers": plugin.triggers.iter().map(trigger).collect::<Vec<_>>(),
        "nodes": plugin.nodes.iter().map(node).collect::<Vec<_>>(),
    })
}

/// The first digits of a digest: enough to tell two apart.
fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

/// Text from a guest on one line, control characters spelled out, so that it cannot move a terminal's cursor.
fn one_line(text: &str) -> String {
    text.trim_end().chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

fn or_nothing(names: &[String]) -> String {
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plugin() -> PluginStatus {
        let trigger = |id: &str, kind: &str| TriggerStatus {
            id: id.into(),
            kind: kind.into(),
            state: "idle".into(),
            cursor_main: 7,
            ..TriggerStatus::default()
        };
        PluginStatus {
            name: "render".into(),
            version: "0.1.0".into(),
            generation: 2,
            state: "ready".into(),
            triggers: vec![
                trigger("fragments", "watch"),
                TriggerStatus { last_error: "bad\n\x1b[31m".into(), ..trigger("sweep", "schedule") },
            ],
            ..PluginStatus::default()
        }
    }

    #[test]
    fn the_overview_has_a_line_for_each_trigger_and_errors_below() {
        let lines = overview(&[plugin()]);
        assert_eq!(lines.len(), 4);
        assert!(lines[0].starts_with("NAME") && lines[1].starts_with("render  0.1.0"), "{lines:?}");
        assert!(lines[2].starts_with(' ') && lines[2].contains("sweep"), "{lines:?}");
        assert_eq!(lines[3], "render/sweep: last error: bad\\n\\u{1b}[31m");
    }

    #[test]
    fn an_installation_says_what_the_plugin_may_do() {
        let response = InstallResponse {
            name: "a".into(),
            version: "1".into(),
            permissions: vec!["read /x".into()],
            ..Default::default()
        };
        assert_eq!(installed(&response, true), ["would install a 1 ()", "a may:", "  - read /x"]);
        assert!(installed(&InstallResponse::default(), false)[1].contains("may touch nothing"));
    }

    #[test]
    fn a_log_line_shows_when_where_and_what() {
        let line =
            LogLine { level: "warn".into(), message: "hello".into(), trigger: "t".into(), attempt: 2, ..LogLine::default() };
        assert_eq!(log_line(&line), "1970-01-01T00:00:00.000Z WARN  [t attempt 2] hello");
    }

    #[test]
    fn an_upload_starts_with_its_header_and_carries_every_byte() {
        let component = Bytes::from(vec![7; BLOB_CHUNK_BYTES + 1]);
        let stream = upload(Header { total_bytes: 9, ..Header::default() }, component, false);
        let parts: Vec<_> =
            futures_util::FutureExt::now_or_never(tokio_stream::StreamExt::collect::<Vec<_>>(stream)).expect("all is there");
        assert!(matches!(parts[0].part, Some(Part::Header(_))));
        let sizes: Vec<_> =
            parts[1..].iter().map(|p| if let Some(Part::Data(data)) = &p.part { data.len() } else { 0 }).collect();
        assert_eq!(sizes, [BLOB_CHUNK_BYTES, 1]);
    }
}
