//! `config-render`: applications write fragments, readers get one validated value.
//!
//! Fragments are JSON objects at `/config/<app>/<name>`. Whenever one changes, all fragments of its application are read from one
//! snapshot, merged in order of name, checked against `/config/<app>/_schema` if there is one, and written to `/rendered/<app>`
//! with the revisions they came from. If they do not fit, `/rendered/<app>/error` says why and `/rendered/<app>` stays as it was.
//! `README.md` has the rules.
//!
//! Invariant: what is written depends on the fragments as they are now, never on which event arrived; so a redelivered event, a
//! batch that is split and a resync change nothing that is not already right.

pub mod merge;
pub mod outcome;
pub mod render;
pub mod schema;
pub mod shape;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use kvasir_guest::Error;
use kvasir_guest::prelude::*;

use crate::outcome::{Reason, Refused};
use crate::render::{FRAGMENTS_MAX, Fragment, INPUT_BYTES_MAX};
use crate::shape::{CONFIG, Place, RENDERED};

/// Renders every application that the batch touches, once.
#[kvasir_guest::reactor(batch, resync = on_resync)]
fn on_fragments(cx: &mut Cx, batch: Batch<Raw>) -> Outcome {
    let mut apps = BTreeSet::new();
    for event in &batch.events {
        match shape::place(&event.key) {
            Place::Fragment { app, .. } | Place::Misplaced { app, .. } => {
                apps.insert(app);
            }
            // Nothing can be rendered for it, and nothing was: a delete only takes the trouble away.
            Place::Foreign { reason } if event.value().is_some() => bail_reject!("{}: {reason}", event.key),
            Place::Foreign { .. } => {}
        }
    }
    apps.iter().try_for_each(|app| render_app(cx, app))
}

/// Renders the page's applications again, and removes what is rendered for applications that have no fragment left.
fn on_resync(cx: &mut Cx, page: Resync<Raw>) -> Outcome {
    let mut apps: BTreeSet<String> = page.entries.iter().filter_map(|entry| shape::place(&entry.key).app()).collect();
    // Stale output lies between the applications that exist. Each page sees to the stretch from its own first key up to the first
    // key of the next page, compared as `<app>/`, which is how fragments are ordered.
    let from = if page.first { None } else { page.entries.first().map(|entry| sort_key(&entry.key)) };
    let to = if page.last { None } else { next_key(cx, &page)?.map(|key| sort_key(&key)) };
    for entry in cx.scan(Selection::prefix(RENDERED)).keys_only() {
        let Some(app) = shape::output_app(&entry?.key) else { continue };
        let place = format!("{app}/").into_bytes();
        if from.as_ref().is_none_or(|from| *from <= place) && to.as_ref().is_none_or(|to| place < *to) {
            apps.insert(app);
        }
    }
    apps.iter().try_for_each(|app| render_app(cx, app))
}

/// What orders fragments: the key behind `/config/`.
fn sort_key(key: &Key) -> Vec<u8> {
    key.as_bytes().strip_prefix(CONFIG.as_bytes()).unwrap_or_default().to_vec()
}

/// A key that is not before the first one of the next page. The page is of revision `at` and the snapshot is newer: a key that was
/// created since is not on the next page, and one of the next page that is gone by now only moves the answer further.
fn next_key(cx: &Cx, page: &Resync<Raw>) -> Result<Option<Key>, Error> {
    let Some(last) = page.entries.last() else { return Ok(None) };
    for entry in cx.scan(Selection::prefix(CONFIG)).keys_only().after(&last.key) {
        let entry = entry?;
        if entry.create_revision <= page.at {
            return Ok(Some(entry.key));
        }
    }
    Ok(None)
}

/// Makes `/rendered/<app>` and `/rendered/<app>/error` what the fragments say. Writes nothing that is there already.
fn render_app(cx: &mut Cx, app: &str) -> Outcome {
    let (output, error) = (shape::output_key(app), shape::error_key(app));
    let rendered = read(cx, app)?.and_then(|fragments| render::render(app, &fragments));
    match rendered {
        Ok(Some(value)) => {
            log::debug!("{app}: rendered, {} bytes", value.len());
            settle(cx, &output, Some(&value))?;
            settle(cx, &error, None)
        }
        Ok(None) => {
            settle(cx, &output, None)?;
            settle(cx, &error, None)
        }
        Err(refused) => {
            let text = refused.to_string();
            log::warn!("{app}: {text}");
            if !refused.keeps_output {
                settle(cx, &output, None)?;
            }
            settle(cx, &error, Some(text.as_bytes()))
        }
    }
}

/// Everything under `/config/<app>`, in order of key; too much of it is a reason not to render.
fn read(cx: &Cx, app: &str) -> Result<Result<Vec<Fragment>, Refused>, Fault> {
    let (mut fragments, mut bytes) = (Vec::new(), 0);
    let misplaced = cx.get(shape::app_key(app))?;
    let scan = cx.scan(Selection::prefix(shape::fragments_prefix(app)));
    for entry in misplaced.into_iter().map(Ok).chain(scan) {
        let entry = entry?;
        if fragments.len() == FRAGMENTS_MAX {
            return Ok(Err(Refused::one(Reason::TooManyFragments)));
        }
        bytes += entry.value.len();
        if bytes > INPUT_BYTES_MAX {
            return Ok(Err(Refused::one(Reason::InputTooLarge)));
        }
        fragments.push(Fragment { key: entry.key, mod_revision: entry.mod_revision, value: entry.value.0 });
    }
    Ok(Ok(fragments))
}

/// Stages what makes the key hold the value, if it does not.
fn settle(cx: &mut Cx, key: &str, value: Option<&[u8]>) -> Outcome {
    let now = cx.get(key)?;
    let staged = match value {
        Some(value) if now.as_ref().is_none_or(|entry| *entry.value != *value) => cx.put(key, value),
        None if now.is_some() => cx.delete(key),
        _ => Ok(()),
    };
    match staged {
        // Many large applications in one batch: never as one commit, but each alone. A rejected batch is split at once.
        Err(Error::Limit(reason)) => bail_reject!("{key}: {reason}"),
        other => Ok(other?),
    }
}
