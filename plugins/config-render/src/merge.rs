//! The deep merge of fragments, remembering which fragment each part came from.
//!
//! Objects are merged member by member; scalars and arrays are replaced by what comes later. An object does not replace a scalar or
//! an array, nor the other way round: that is two fragments that mean different things by one name.
//!
//! Invariant: the merge is a fold in order of fragment name; a conflict leaves the earlier value in place and is told.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::outcome::Reason;

/// A merged value with its origins.
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    /// An object: the fragment that had it first, and its members.
    Object {
        /// Name of the fragment.
        by: String,
        /// By name.
        members: BTreeMap<String, Node>,
    },
    /// Anything else: the fragment that had it last.
    Leaf {
        /// Name of the fragment.
        by: String,
        /// A scalar or an array.
        value: Value,
    },
}

impl Node {
    /// A value that all comes from one fragment.
    pub fn new(by: &str, value: Value) -> Self {
        let by = by.to_owned();
        match value {
            Value::Object(map) => {
                let members = map.into_iter().map(|(name, value)| (name, Node::new(&by, value))).collect();
                Node::Object { by, members }
            }
            value => Node::Leaf { by, value },
        }
    }

    /// Merges a later fragment into this value. `path` is where we are, as a JSON pointer.
    pub fn merge(&mut self, fragment: &str, value: Value, path: &str, conflicts: &mut Vec<Reason>) {
        match (self, value) {
            (Node::Object { members, .. }, Value::Object(map)) => {
                for (name, value) in map {
                    match members.get_mut(&name) {
                        Some(member) => member.merge(fragment, value, &child(path, &name), conflicts),
                        None => {
                            members.insert(name, Node::new(fragment, value));
                        }
                    }
                }
            }
            (Node::Object { by, .. }, value) => {
                let expected = format!("an object, as in fragment `{by}`");
                conflicts.push(unexpected(fragment, path, expected, &value));
            }
            (Node::Leaf { by, value: before }, value @ Value::Object(_)) => {
                let expected = format!("{}, as in fragment `{by}`", kind(before));
                conflicts.push(unexpected(fragment, path, expected, &value));
            }
            (Node::Leaf { by, value: before }, value) => {
                fragment.clone_into(by);
                *before = value;
            }
        }
    }

    /// The value without its origins.
    pub fn to_value(&self) -> Value {
        match self {
            Node::Leaf { value, .. } => value.clone(),
            Node::Object { members, .. } => {
                Value::Object(members.iter().map(|(name, node)| (name.clone(), node.to_value())).collect::<Map<_, _>>())
            }
        }
    }

    /// The fragment that this part is from.
    pub fn by(&self) -> &str {
        match self {
            Node::Object { by, .. } | Node::Leaf { by, .. } => by,
        }
    }
}

fn unexpected(fragment: &str, path: &str, expected: String, found: &Value) -> Reason {
    Reason::Unexpected { fragment: fragment.to_owned(), path: path.to_owned(), expected, found: kind(found).to_owned() }
}

/// The JSON pointer of a member (RFC 6901).
pub fn child(path: &str, name: &str) -> String {
    format!("{path}/{}", name.replace('~', "~0").replace('/', "~1"))
}

/// A value's type, with its article.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a number",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
