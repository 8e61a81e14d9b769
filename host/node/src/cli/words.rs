//! A line taken apart as etcdctl takes it apart: words between blanks, `'...'` as it is, `"..."` with Go's escapes.
//!
//! **Invariant:** pure; any line gives words or a reason, never a panic.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

/// The line's words.
///
/// # Errors
/// A quote that is not closed, or an escape that is not known.
pub(super) fn words(line: &str) -> Result<Vec<OsString>, String> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() {
        let word;
        if rest.starts_with(['"', '`']) {
            (word, rest) = unquote(rest)?;
        } else if let Some(quoted) = rest.strip_prefix('\'') {
            let (inside, after) = quoted.split_once('\'').ok_or("has a quote that is not closed")?;
            (word, rest) = (inside.as_bytes().to_vec(), after);
        } else {
            let (plain, after) = rest.split_at(rest.find(char::is_whitespace).unwrap_or(rest.len()));
            (word, rest) = (plain.as_bytes().to_vec(), after);
        }
        words.push(OsString::from_vec(word));
        rest = rest.trim_start();
    }
    Ok(words)
}

/// What stands in Go's quotes at the beginning of the text, and the text behind it.
///
/// # Errors
/// No quote, one that is not closed, or an escape that is not known.
pub(super) fn unquote(text: &str) -> Result<(Vec<u8>, &str), String> {
    if let Some(raw) = text.strip_prefix('`') {
        let (inside, rest) = raw.split_once('`').ok_or("has a quote that is not closed")?;
        return Ok((inside.as_bytes().to_vec(), rest));
    }
    let mut rest = text.strip_prefix('"').ok_or("has no quotes where they are needed")?;
    let mut bytes = Vec::new();
    loop {
        let at = rest.find(['"', '\\']).ok_or("has a quote that is not closed")?;
        let (plain, special) = rest.split_at(at);
        bytes.extend_from_slice(plain.as_bytes());
        if let Some(behind) = special.strip_prefix('"') {
            return Ok((bytes, behind));
        }
        rest = escape(&special[1..], &mut bytes).ok_or("has an escape that is not known")?;
    }
}

/// Takes what follows a backslash; returns the text behind it.
fn escape<'t>(text: &'t str, bytes: &mut Vec<u8>) -> Option<&'t str> {
    let kind = text.chars().next()?;
    let rest = &text[kind.len_utf8()..];
    let number = |from: &'t str, digits: usize, radix: u32| -> Option<(u32, &'t str)> {
        let (digits, rest) = from.split_at_checked(digits)?;
        // `from_str_radix` would take a sign.
        digits.chars().all(|digit| digit.is_digit(radix)).then_some(())?;
        Some((u32::from_str_radix(digits, radix).ok()?, rest))
    };
    let simple = match kind {
        'a' => 0x07,
        'b' => 0x08,
        'f' => 0x0c,
        'n' => b'\n',
        'r' => b'\r',
        't' => b'\t',
        'v' => 0x0b,
        '\\' | '"' | '\'' => u8::try_from(kind).ok()?,
        'x' => {
            let (byte, rest) = number(rest, 2, 16)?;
            bytes.push(u8::try_from(byte).ok()?);
            return Some(rest);
        }
        '0'..='7' => {
            let (byte, rest) = number(text, 3, 8)?;
            bytes.push(u8::try_from(byte).ok()?);
            return Some(rest);
        }
        'u' | 'U' => {
            let (point, rest) = number(rest, if kind == 'u' { 4 } else { 8 }, 16)?;
            bytes.extend_from_slice(char::from_u32(point)?.encode_utf8(&mut [0; 4]).as_bytes());
            return Some(rest);
        }
        _ => return None,
    };
    bytes.push(simple);
    Some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(line: &str) -> Result<Vec<Vec<u8>>, String> {
        words(line).map(|words| words.into_iter().map(OsString::into_vec).collect())
    }

    #[test]
    fn words_and_quotes_are_etcdctls() {
        let expected: Vec<Vec<u8>> = vec![b"put".to_vec(), b"a b".to_vec(), b"c\\n".to_vec(), b"--x=1".to_vec(), b"".to_vec()];
        assert_eq!(split(r#" put "a b"  'c\n' --x=1 "" "#), Ok(expected));
        assert_eq!(split(r#""\x00\xff\101\u00e9\U0001F600\n\"""#), Ok(vec![b"\x00\xffA\xc3\xa9\xf0\x9f\x98\x80\n\"".to_vec()]));
        assert_eq!(split("`a\\b`"), Ok(vec![b"a\\b".to_vec()]));
        assert_eq!(split(""), Ok(vec![]));
    }

    #[test]
    fn what_is_not_closed_or_not_known_is_refused() {
        for line in [r#""a"#, "'a", "`a", r#""\q""#, r#""\x0""#, r#""\400""#, r#""\ud800""#, r#""\"#, r#""\u+123""#, r#""\xé""#]
        {
            assert!(split(line).is_err(), "{line}");
        }
    }
}
