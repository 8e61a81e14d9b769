//! `kvasir txn`: a transaction read from standard input, in etcdctl's words: compares, then requests for success, then requests for
//! failure, each list ended by a blank line or by the end of the input.
//!
//! **Invariant:** sends one request, and only when every line was understood.

use std::io::{BufRead, Read};

use clap::Parser;
use kvasir_api::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use kvasir_api::etcdserverpb::request_op::Request;
use kvasir_api::etcdserverpb::response_op::Response;
use kvasir_api::etcdserverpb::{Compare, RequestOp, ResponseOp, TxnRequest};
use serde_json::{Value, json};

use super::connect::Connection;
use super::get::{self, Get};
use super::out::{self, Out};
use super::put::{self, Del, Put};
use super::words::{unquote, words};
use super::{Usage, lease_id};

/// `kvasir txn`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Standard input has three lists of lines, each ended by a blank line:\n  \
compares     mod(\"KEY\") > \"0\"; targets: ver, create, mod, val, lease; operators: = != < >\n  \
success      put, get or del with their flags, as on the command line\n  \
failure      the same, for when a compare does not hold")]
pub(crate) struct Txn {
    /// Say which list is to be typed next
    #[arg(short, long)]
    interactive: bool,
}

/// A request's line.
#[derive(Debug, clap::Parser)]
#[command(no_binary_name = true, disable_help_flag = true, disable_help_subcommand = true)]
enum Line {
    Put(Put),
    Get(Get),
    Del(Del),
}

impl Txn {
    pub(super) async fn run(self, connection: &Connection, out: &mut Out) -> anyhow::Result<()> {
        // One byte past the server's own limit is enough for it to refuse the request.
        let limit = kvasir_api::limits::GRPC_RECV_BYTES_MAX as u64 + 1;
        let mut input = std::io::stdin().lock().take(limit);
        let mut prompt = |list: &str| -> std::io::Result<()> {
            if self.interactive {
                out.line(list)?;
                out.flush()?;
            }
            Ok(())
        };
        prompt("compares:")?;
        let compare = list(&mut input, compare)?;
        prompt("success requests (get, put, del):")?;
        let success = list(&mut input, request)?;
        prompt("failure requests (get, put, del):")?;
        let failure = list(&mut input, request)?;
        let mut kv = connection.kv().await?;
        let response = connection.answer(kv.txn(TxnRequest { compare, success, failure })).await?;
        if out.json_wanted() {
            let mut object = json!({ "header": out::header(response.header.as_ref()) });
            if response.succeeded {
                object["succeeded"] = json!(true);
            }
            if !response.responses.is_empty() {
                object["responses"] = response.responses.iter().map(as_json).collect();
            }
            return Ok(out.json(&object)?);
        }
        out.line(if response.succeeded { "SUCCESS" } else { "FAILURE" })?;
        for op in &response.responses {
            out.line("")?;
            match &op.response {
                Some(Response::ResponsePut(response)) => put::print_put(response, out)?,
                Some(Response::ResponseRange(response)) => get::print(response, false, out)?,
                Some(Response::ResponseDeleteRange(response)) => put::print_del(response, out)?,
                Some(Response::ResponseTxn(_)) | None => {}
            }
        }
        Ok(())
    }
}

fn as_json(op: &ResponseOp) -> Value {
    let response = match &op.response {
        Some(Response::ResponsePut(response)) => json!({ "response_put": put::put_json(response) }),
        Some(Response::ResponseRange(response)) => json!({ "response_range": get::json(response) }),
        Some(Response::ResponseDeleteRange(response)) => json!({ "response_delete_range": put::del_json(response) }),
        Some(Response::ResponseTxn(_)) | None => json!({}),
    };
    json!({ "Response": response })
}

/// The lines up to the next blank one, each parsed.
fn list<T>(input: &mut impl BufRead, parse: impl Fn(&str) -> Result<T, String>) -> anyhow::Result<Vec<T>> {
    let mut list = Vec::new();
    loop {
        let mut line = String::new();
        let read = input.read_line(&mut line)?;
        let line = line.trim();
        if read == 0 || line.is_empty() {
            return Ok(list);
        }
        list.push(parse(line).map_err(|reason| Usage(format!("{line:?}: {reason}")))?);
    }
}

/// `target("key") operator "value"`.
fn compare(line: &str) -> Result<Compare, String> {
    let form = || "is no comparison; give one such as mod(\"KEY\") > \"0\"".to_owned();
    let (target, rest) = line.split_once('(').ok_or_else(form)?;
    let (key, rest) = unquote(rest.trim_start()).map_err(|_| form())?;
    let rest = rest.trim_start().strip_prefix(')').ok_or_else(form)?.trim_start();
    let (result, rest) = [
        ("!=", CompareResult::NotEqual),
        ("=", CompareResult::Equal),
        ("<", CompareResult::Less),
        (">", CompareResult::Greater),
    ]
    .into_iter()
    .find_map(|(operator, result)| Some((result, rest.strip_prefix(operator)?)))
    .ok_or_else(|| "has no operator; give one of = != < >".to_owned())?;
    let (value, rest) = unquote(rest.trim_start()).map_err(|_| form())?;
    if !rest.trim().is_empty() {
        return Err(form());
    }
    let text = || std::str::from_utf8(&value).map_err(|_| "compares with what is no number".to_owned());
    let number = || text()?.parse::<i64>().map_err(|_| "compares with what is no number; give one in quotes".to_owned());
    let (target, union) = match target.trim() {
        "ver" | "version" => (CompareTarget::Version, TargetUnion::Version(number()?)),
        "c" | "create" => (CompareTarget::Create, TargetUnion::CreateRevision(number()?)),
        "m" | "mod" => (CompareTarget::Mod, TargetUnion::ModRevision(number()?)),
        "val" | "value" => (CompareTarget::Value, TargetUnion::Value(value.clone().into())),
        "lease" => (CompareTarget::Lease, TargetUnion::Lease(lease_id(text()?)?)),
        _ => return Err("has no target that can be compared; give ver, create, mod, val or lease".to_owned()),
    };
    Ok(Compare {
        result: result.into(),
        target: target.into(),
        key: key.into(),
        target_union: Some(union),
        range_end: bytes::Bytes::new(),
    })
}

/// `put`, `get` or `del`, as on the command line.
fn request(line: &str) -> Result<RequestOp, String> {
    let words = words(line)?;
    let line = Line::try_parse_from(words).map_err(|error| {
        let text = error.to_string();
        let first = text.lines().next().unwrap_or_default();
        first.strip_prefix("error: ").unwrap_or(first).to_owned()
    })?;
    let request = match line {
        Line::Put(put) => Request::RequestPut(put.of_line()?),
        Line::Get(get) => Request::RequestRange(get.request()),
        Line::Del(del) => Request::RequestDeleteRange(del.request()),
    };
    Ok(RequestOp { request: Some(request) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparisons_read_as_etcdctl_reads_them() {
        let parsed = |line| compare(line).unwrap_or_else(|reason| panic!("{line}: {reason}"));
        let modified = parsed("mod(\"key1\") > \"0\"");
        assert_eq!((modified.target(), modified.result()), (CompareTarget::Mod, CompareResult::Greater));
        assert_eq!((modified.key.as_ref(), modified.target_union), (&b"key1"[..], Some(TargetUnion::ModRevision(0))));
        let value = parsed(r#"val("a \"b\"\x00") != "v)(""#);
        assert_eq!((value.key.as_ref(), value.target_union), (&b"a \"b\"\0"[..], Some(TargetUnion::Value("v)(".into()))));
        assert_eq!(parsed("c(\"a\")=\"7\"").target_union, Some(TargetUnion::CreateRevision(7)));
        assert_eq!(parsed("ver ( `a` ) < \"3\"").target_union, Some(TargetUnion::Version(3)));
        assert_eq!(parsed("lease(\"a\") = \"694d\"").target_union, Some(TargetUnion::Lease(0x694d)));
        for wrong in [
            "",
            "mod",
            "mod(a) > \"0\"",
            "mod(\"a\") > 0",
            "mod(\"a\") ~ \"0\"",
            "mod(\"a\") > \"x\"",
            "size(\"a\") = \"0\"",
            "mod(\"a\") > \"0\" x",
        ] {
            assert!(compare(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn requests_take_the_verbs_flags() {
        let parsed = |line| request(line).unwrap_or_else(|reason| panic!("{line}: {reason}")).request.expect("a request");
        let Request::RequestPut(put) = parsed("put key1 \"two words\" --prev-kv") else { panic!("a put") };
        assert_eq!((put.key.as_ref(), put.value.as_ref(), put.prev_kv), (&b"key1"[..], &b"two words"[..], true));
        let Request::RequestRange(get) = parsed("get --prefix 'a b' --limit=3") else { panic!("a get") };
        assert_eq!((get.key.as_ref(), get.range_end.as_ref(), get.limit), (&b"a b"[..], &b"a c"[..], 3));
        let Request::RequestDeleteRange(del) = parsed("del a c") else { panic!("a delete") };
        assert_eq!((del.key.as_ref(), del.range_end.as_ref()), (&b"a"[..], &b"c"[..]));
        for wrong in ["put a", "put", "watch a", "get", "get a --no-such-flag", "put a \"b", "put \"\" b"] {
            let reason = request(wrong).expect_err(wrong);
            assert!(!reason.is_empty() && !reason.contains('\n'), "{wrong}: {reason}");
        }
    }

    #[test]
    fn a_list_ends_with_a_blank_line_or_with_the_input() {
        let mut input = &b"put a 1\nput b 2\n\n  \nget a"[..];
        let lens: Vec<usize> = (0..4).map(|_| list(&mut input, request).expect("parsed").len()).collect();
        assert_eq!(lens, [2, 0, 1, 0]);
    }
}
