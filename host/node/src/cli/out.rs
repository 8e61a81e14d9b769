//! Standard output of the client verbs: buffered, flushed at ends of results, quiet when its reader has gone.
//!
//! **Invariant:** the only place of this crate that writes results to standard output.

use std::io::{self, BufWriter, Stdout, Write};

use base64::Engine as _;
use kvasir_api::etcdserverpb::ResponseHeader;
use kvasir_api::mvccpb::KeyValue;
use serde_json::{Value, json};

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// As a person reads them; etcdctl's simple output.
    Simple,
    /// One JSON object for each response, keys and values in base64; etcdctl's JSON.
    Json,
}

/// Where results go.
pub(crate) struct Out<W: Write = BufWriter<Stdout>> {
    format: Format,
    sink: W,
}

impl Out {
    /// Writes to standard output.
    pub(crate) fn stdout(format: Format) -> Out {
        Out { format, sink: BufWriter::new(io::stdout()) }
    }
}

impl<W: Write> Out<W> {
    #[cfg(test)]
    pub(crate) fn to(format: Format, sink: W) -> Out<W> {
        Out { format, sink }
    }

    /// True when results are to be JSON.
    pub(crate) fn json_wanted(&self) -> bool {
        self.format == Format::Json
    }

    /// One line of text.
    pub(crate) fn line(&mut self, text: impl AsRef<[u8]>) -> io::Result<()> {
        self.sink.write_all(text.as_ref())?;
        self.sink.write_all(b"\n")
    }

    /// One JSON object on a line of its own.
    pub(crate) fn json(&mut self, value: &Value) -> io::Result<()> {
        self.line(value.to_string())
    }

    /// A key and its value as etcdctl prints them: each on a line, as they are.
    pub(crate) fn key_value(&mut self, kv: &KeyValue, value_only: bool) -> io::Result<()> {
        if !value_only {
            self.line(&kv.key)?;
        }
        self.line(&kv.value)
    }

    /// Hands what was written to the reader.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

/// Bytes as JSON has them in etcd's API.
pub(crate) fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// A header with etcdctl's field names.
pub(crate) fn header(header: Option<&ResponseHeader>) -> Value {
    let header = header.cloned().unwrap_or_default();
    json!({
        "cluster_id": header.cluster_id,
        "member_id": header.member_id,
        "revision": header.revision,
        "raft_term": header.raft_term,
    })
}

/// A key-value with etcdctl's field names, empty fields left out.
pub(crate) fn kv(kv: &KeyValue) -> Value {
    let mut object = json!({ "key": base64(&kv.key) });
    let numbers = [("create_revision", kv.create_revision), ("mod_revision", kv.mod_revision), ("version", kv.version)];
    for (name, number) in numbers.into_iter().chain([("lease", kv.lease)]).filter(|(_, number)| *number != 0) {
        object[name] = json!(number);
    }
    if !kv.value.is_empty() {
        object["value"] = json!(base64(&kv.value));
    }
    object
}

/// A table of columns as wide as their widest cell; the last is not padded.
pub(crate) fn table(rows: &[Vec<String>]) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    rows.iter()
        .map(|row| {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_and_its_value_are_printed_byte_for_byte() {
        let mut written = Vec::new();
        let pair = KeyValue { key: vec![b'k', 0xff].into(), value: "v".into(), ..KeyValue::default() };
        let mut out = Out::to(Format::Simple, &mut written);
        out.key_value(&pair, false).expect("a vector takes it");
        out.key_value(&pair, true).expect("a vector takes it");
        assert_eq!(written, b"k\xff\nv\nv\n");
    }

    #[test]
    fn json_has_etcdctls_names_and_leaves_empty_fields_out() {
        let pair = KeyValue { key: "a".into(), value: "b".into(), mod_revision: 3, ..KeyValue::default() };
        assert_eq!(kv(&pair), json!({ "key": "YQ==", "value": "Yg==", "mod_revision": 3 }));
    }

    #[test]
    fn columns_line_up() {
        let rows = [vec!["NAME".to_owned(), "X".to_owned()], vec!["a".to_owned(), "yy".to_owned()]];
        assert_eq!(table(&rows), ["NAME  X", "a     yy"]);
    }
}
