//! From fragments to the rendered value.
//!
//! Invariant: a pure function of the fragments; the same fragments give the same bytes.

use std::collections::BTreeMap;

use kvasir_guest::Key;
use serde::Serialize;
use serde_json::Value;

use crate::merge::{Node, kind};
use crate::outcome::{Reason, Refused};
use crate::schema::Schema;
use crate::shape::{self, Place, SCHEMA};

/// Keys of one application, the schema and misplaced ones included.
pub const FRAGMENTS_MAX: usize = 256;
/// Largest fragment.
pub const FRAGMENT_BYTES_MAX: usize = 256 * 1024;
/// All fragments of one application together.
pub const INPUT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Largest rendered value.
pub const OUTPUT_BYTES_MAX: usize = 512 * 1024;

/// A key under `/config/<app>` with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// The key.
    pub key: Key,
    /// Revision of its last put.
    pub mod_revision: u64,
    /// Its value.
    pub value: Vec<u8>,
}

/// What readers get.
#[derive(Serialize)]
struct Output {
    config: Value,
    sources: BTreeMap<String, u64>,
}

/// The rendered value as JSON, `None` if there is no fragment.
///
/// # Errors
/// Everything that is wrong with the fragments.
pub fn render(app: &str, fragments: &[Fragment]) -> Result<Option<Vec<u8>>, Refused> {
    let mut reasons = Vec::new();
    let mut parts: Vec<(&str, &Fragment)> = Vec::new();
    let mut schema: Option<&Fragment> = None;
    let places: Vec<Place> = fragments.iter().map(|fragment| shape::place(&fragment.key)).collect();
    for (fragment, place) in fragments.iter().zip(&places) {
        match place {
            Place::Fragment { app: of, name } if of == app && name == SCHEMA => schema = Some(fragment),
            Place::Fragment { app: of, name } if of == app => parts.push((name, fragment)),
            Place::Fragment { .. } => reasons.push(misplaced(fragment, "belongs to another application")),
            Place::Misplaced { reason, .. } | Place::Foreign { reason } => reasons.push(misplaced(fragment, reason)),
        }
    }
    parts.sort_by_key(|(name, _)| *name);

    let checks = schema.and_then(|fragment| {
        let value = parse(SCHEMA, &fragment.value).map_err(|reason| reasons.push(reason)).ok()?;
        Schema::parse(&value, &mut reasons)
    });
    let first = parts.first().map_or("", |(name, _)| *name);
    let mut merged = Node::Object { by: first.to_owned(), members: BTreeMap::new() };
    for (name, fragment) in &parts {
        match parse(name, &fragment.value) {
            Ok(value) => merged.merge(name, value, "", &mut reasons),
            Err(reason) => reasons.push(reason),
        }
    }
    // What did not merge would be told twice.
    if let (Some(checks), true, false) = (checks, reasons.is_empty(), parts.is_empty()) {
        checks.check(&merged, &mut reasons);
    }
    if !reasons.is_empty() {
        return Err(Refused { reasons, keeps_output: !parts.is_empty() });
    }
    if parts.is_empty() {
        return Ok(None);
    }
    let sources = fragments.iter().map(|fragment| (fragment.key.to_string(), fragment.mod_revision)).collect();
    let output = Output { config: merged.to_value(), sources };
    match serde_json::to_vec(&output) {
        Ok(bytes) if bytes.len() <= OUTPUT_BYTES_MAX => Ok(Some(bytes)),
        Ok(bytes) => Err(Refused::one(Reason::OutputTooLarge { bytes: bytes.len() })),
        // Not reached: everything in it was JSON a moment ago.
        Err(error) => Err(Refused::one(Reason::NotJson { fragment: "(merged)".to_owned(), reason: error.to_string() })),
    }
}

/// A fragment's JSON object.
fn parse(name: &str, value: &[u8]) -> Result<Value, Reason> {
    let fragment = name.to_owned();
    if value.len() > FRAGMENT_BYTES_MAX {
        return Err(Reason::FragmentTooLarge { fragment, bytes: value.len() });
    }
    // serde_json refuses more than 128 levels, so everything behind this may recurse.
    match serde_json::from_slice::<Value>(value) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(other) => {
            let found = kind(&other).to_owned();
            Err(Reason::Unexpected { fragment, path: String::new(), expected: "a JSON object".to_owned(), found })
        }
        Err(error) => Err(Reason::NotJson { fragment, reason: error.to_string() }),
    }
}

fn misplaced(fragment: &Fragment, reason: &str) -> Reason {
    Reason::Misplaced { key: fragment.key.to_string(), reason: reason.to_owned() }
}
