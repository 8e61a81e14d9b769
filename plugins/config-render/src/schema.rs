//! The schema subset: what `/config/<app>/_schema` may say about the merged configuration.
//!
//! JSON Schema's `type`, `enum`, `const`, `properties`, `required`, `additionalProperties`, `items`, `minimum`, `maximum`,
//! `minLength`, `maxLength`, `minItems`, `maxItems`, with their meaning there; `title`, `description`, `default`, `examples`,
//! `$schema`, `$id` and `$comment` are allowed and mean nothing. Anything else is refused: a rule that is not checked must not look
//! as if it were.
//!
//! Invariant: a schema that parsed checks everything it says.

use std::collections::BTreeMap;

use serde_json::{Map, Number, Value};

use crate::merge::{Node, child, kind};
use crate::outcome::Reason;
use crate::shape::SCHEMA;

/// A type that a value can be required to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Null,
    Boolean,
    Integer,
    Number,
    String,
    Array,
    Object,
}

/// What members that `properties` does not name must be.
#[derive(Clone, Debug)]
enum Additional {
    Refused,
    Checked(Box<Schema>),
}

/// A parsed schema.
#[derive(Clone, Debug, Default)]
pub struct Schema {
    types: Option<Vec<Type>>,
    allowed: Option<Vec<Value>>,
    properties: BTreeMap<String, Schema>,
    required: Vec<String>,
    additional: Option<Additional>,
    items: Option<Box<Schema>>,
    minimum: Option<Number>,
    maximum: Option<Number>,
    length_min: Option<u64>,
    length_max: Option<u64>,
    items_min: Option<u64>,
    items_max: Option<u64>,
}

impl Schema {
    /// Reads a schema. `None`, and the reasons, if it is not one.
    pub fn parse(value: &Value, reasons: &mut Vec<Reason>) -> Option<Schema> {
        let before = reasons.len();
        let schema = Reader { reasons }.schema(value, "");
        (reasons.len() == before).then_some(schema)
    }

    /// Tells where a merged configuration is not what the schema says.
    pub fn check(&self, merged: &Node, reasons: &mut Vec<Reason>) {
        self.check_node(merged, "", reasons);
    }

    fn check_node(&self, node: &Node, path: &str, reasons: &mut Vec<Reason>) {
        let value = match node {
            Node::Leaf { by, value } => return self.check_value(value, by, path, reasons),
            // Only `enum` looks inside.
            Node::Object { .. } if self.allowed.is_none() => Value::Object(Map::new()),
            Node::Object { .. } => node.to_value(),
        };
        self.check_self(&value, node.by(), path, reasons);
        let Node::Object { members, .. } = node else { return };
        for name in self.required.iter().filter(|name| !members.contains_key(*name)) {
            reasons.push(Reason::Missing { path: child(path, name) });
        }
        for (name, member) in members {
            let path = child(path, name);
            match (self.properties.get(name), &self.additional) {
                (Some(schema), _) => schema.check_node(member, &path, reasons),
                (None, Some(Additional::Checked(schema))) => schema.check_node(member, &path, reasons),
                (None, Some(Additional::Refused)) => {
                    reasons.push(unexpected(member.by(), &path, "no such member, by `_schema`", &member.to_value()));
                }
                (None, None) => {}
            }
        }
    }

    /// Checks a value that all comes from one fragment.
    fn check_value(&self, value: &Value, by: &str, path: &str, reasons: &mut Vec<Reason>) {
        match value {
            Value::Object(_) => self.check_node(&Node::new(by, value.clone()), path, reasons),
            _ => self.check_self(value, by, path, reasons),
        }
        if let (Some(schema), Value::Array(items)) = (&self.items, value) {
            for (index, item) in items.iter().enumerate() {
                schema.check_value(item, by, &child(path, &index.to_string()), reasons);
            }
        }
    }

    /// Everything but members and items.
    fn check_self(&self, value: &Value, by: &str, path: &str, reasons: &mut Vec<Reason>) {
        if let Some(types) = &self.types
            && !types.iter().any(|wanted| wanted.matches(value))
        {
            let expected: Vec<&str> = types.iter().map(|wanted| wanted.name()).collect();
            // The other rules are about values of the right type.
            return reasons.push(unexpected(by, path, &expected.join(" or "), value));
        }
        let mut fail = |expected: String, found: String| {
            let (fragment, path) = (by.to_owned(), path.to_owned());
            reasons.push(Reason::Unexpected { fragment, path, expected, found });
        };
        if let Some(allowed) = &self.allowed
            && !allowed.iter().any(|one| equal(one, value))
        {
            let list: Vec<String> = allowed.iter().map(Value::to_string).collect();
            fail(format!("one of {}", list.join(", ")), value.to_string());
        }
        if let Value::Number(number) = value {
            match (&self.minimum, &self.maximum) {
                (Some(minimum), _) if less(number, minimum) => fail(format!("at least {minimum}"), number.to_string()),
                (_, Some(maximum)) if less(maximum, number) => fail(format!("at most {maximum}"), number.to_string()),
                _ => {}
            }
        }
        let (size, unit, least, most) = match value {
            Value::String(text) => (text.chars().count() as u64, "characters", self.length_min, self.length_max),
            Value::Array(items) => (items.len() as u64, "items", self.items_min, self.items_max),
            _ => return,
        };
        match (least, most) {
            (Some(least), _) if size < least => fail(format!("at least {least} {unit}"), size.to_string()),
            (_, Some(most)) if size > most => fail(format!("at most {most} {unit}"), size.to_string()),
            _ => {}
        }
    }
}

/// Reads schemas, collecting what is wrong with them.
struct Reader<'a> {
    reasons: &'a mut Vec<Reason>,
}

impl Reader<'_> {
    fn schema(&mut self, value: &Value, path: &str) -> Schema {
        let mut schema = Schema::default();
        let Value::Object(map) = value else {
            self.wrong(path, "a schema object", kind(value));
            return schema;
        };
        for (name, value) in map {
            let path = &child(path, name);
            match name.as_str() {
                "type" => schema.types = self.types(value, path),
                "enum" => schema.allowed = self.array(value, path).map(<[Value]>::to_vec),
                "const" => schema.allowed = Some(vec![value.clone()]),
                "required" => schema.required = self.names(value, path),
                "properties" => match value {
                    Value::Object(map) => {
                        schema.properties =
                            map.iter().map(|(name, value)| (name.clone(), self.schema(value, &child(path, name)))).collect();
                    }
                    other => self.wrong(path, "an object of schemas", kind(other)),
                },
                "additionalProperties" => {
                    schema.additional = match value {
                        Value::Bool(true) => None,
                        Value::Bool(false) => Some(Additional::Refused),
                        schema => Some(Additional::Checked(Box::new(self.schema(schema, path)))),
                    }
                }
                "items" => schema.items = Some(Box::new(self.schema(value, path))),
                "minimum" => schema.minimum = self.number(value, path),
                "maximum" => schema.maximum = self.number(value, path),
                "minLength" => schema.length_min = self.size(value, path),
                "maxLength" => schema.length_max = self.size(value, path),
                "minItems" => schema.items_min = self.size(value, path),
                "maxItems" => schema.items_max = self.size(value, path),
                "title" | "description" | "default" | "examples" | "$schema" | "$id" | "$comment" => {}
                _ => self.wrong(path, "a keyword that is supported", &format!("`{name}`")),
            }
        }
        schema
    }

    fn types(&mut self, value: &Value, path: &str) -> Option<Vec<Type>> {
        let names = match value {
            Value::Array(names) => names.as_slice(),
            one => std::slice::from_ref(one),
        };
        let types: Vec<Type> = names.iter().filter_map(|name| self.type_named(name, path)).collect();
        (!types.is_empty()).then_some(types)
    }

    fn type_named(&mut self, value: &Value, path: &str) -> Option<Type> {
        let found = match value.as_str() {
            Some("null") => Type::Null,
            Some("boolean") => Type::Boolean,
            Some("integer") => Type::Integer,
            Some("number") => Type::Number,
            Some("string") => Type::String,
            Some("array") => Type::Array,
            Some("object") => Type::Object,
            _ => {
                self.wrong(path, "the name of a JSON type", &value.to_string());
                return None;
            }
        };
        Some(found)
    }

    fn array<'v>(&mut self, value: &'v Value, path: &str) -> Option<&'v [Value]> {
        match value {
            Value::Array(values) => Some(values),
            other => {
                self.wrong(path, "an array", kind(other));
                None
            }
        }
    }

    fn names(&mut self, value: &Value, path: &str) -> Vec<String> {
        let mut names = Vec::new();
        for name in self.array(value, path).unwrap_or_default() {
            match name {
                Value::String(name) => names.push(name.clone()),
                other => self.wrong(path, "names of members", kind(other)),
            }
        }
        names
    }

    fn number(&mut self, value: &Value, path: &str) -> Option<Number> {
        match value {
            Value::Number(number) => Some(number.clone()),
            other => {
                self.wrong(path, "a number", kind(other));
                None
            }
        }
    }

    fn size(&mut self, value: &Value, path: &str) -> Option<u64> {
        let size = value.as_u64();
        if size.is_none() {
            self.wrong(path, "a whole number that is not negative", &value.to_string());
        }
        size
    }

    fn wrong(&mut self, path: &str, expected: &str, found: &str) {
        let (path, expected, found) = (path.to_owned(), expected.to_owned(), found.to_owned());
        self.reasons.push(Reason::Unexpected { fragment: SCHEMA.to_owned(), path, expected, found });
    }
}

impl Type {
    fn matches(self, value: &Value) -> bool {
        match self {
            Type::Null => value.is_null(),
            Type::Boolean => value.is_boolean(),
            // As in JSON Schema, 1.0 is an integer.
            Type::Integer => value.as_f64().is_some_and(|number| number.fract() == 0.0),
            Type::Number => value.is_number(),
            Type::String => value.is_string(),
            Type::Array => value.is_array(),
            Type::Object => value.is_object(),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Type::Null => "null",
            Type::Boolean => "a boolean",
            Type::Integer => "an integer",
            Type::Number => "a number",
            Type::String => "a string",
            Type::Array => "an array",
            Type::Object => "an object",
        }
    }
}

fn unexpected(by: &str, path: &str, expected: &str, found: &Value) -> Reason {
    let found = kind(found).to_owned();
    Reason::Unexpected { fragment: by.to_owned(), path: path.to_owned(), expected: expected.to_owned(), found }
}

/// Equality as JSON Schema has it: numbers by value.
fn equal(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => !less(one, other) && !less(other, one),
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| equal(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len() && one.iter().all(|(name, value)| other.get(name).is_some_and(|other| equal(value, other)))
        }
        _ => one == other,
    }
}

/// Exact for integers; as floating point otherwise.
fn less(one: &Number, other: &Number) -> bool {
    match (integer(one), integer(other)) {
        (Some(one), Some(other)) => one < other,
        _ => one.as_f64().zip(other.as_f64()).is_some_and(|(one, other)| one < other),
    }
}

fn integer(number: &Number) -> Option<i128> {
    number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from))
}
