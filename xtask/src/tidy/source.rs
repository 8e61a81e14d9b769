//! Rust source as the rules see it: code without comments and texts, and which lines are only compiled for tests.
//!
//! **Invariant:** the code keeps the text's lines: line N of one is line N of the other.

use std::collections::BTreeSet;
use std::path::PathBuf;

/// One Rust file.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) text: String,
    /// The text with comments and the insides of literals blanked.
    pub(super) code: String,
    /// For each line whether it stands below `#[cfg(test)]`.
    pub(super) is_test: Vec<bool>,
}

impl Source {
    pub(super) fn parse(path: PathBuf, text: String) -> Self {
        let code = code_of(&text);
        let is_test = test_lines(&code);
        Self { path, text, code, is_test }
    }

    /// The lines of product code: number from 1, code, and the text it came from.
    pub(super) fn product_lines(&self) -> impl Iterator<Item = (usize, &str, &str)> {
        let lines = self.code.lines().zip(self.text.lines()).zip(&self.is_test).enumerate();
        lines.filter(|(_, (_, is_test))| !**is_test).map(|(nth, ((code, text), _))| (nth + 1, code, text))
    }
}

/// The files that `#[cfg(test)] mod name;` brings in, with all below them.
pub(super) fn test_files(sources: &[Source]) -> BTreeSet<PathBuf> {
    let mut roots = BTreeSet::new();
    for source in sources {
        let folder = match source.path.file_stem().and_then(|stem| stem.to_str()) {
            Some("lib" | "main" | "mod") | None => source.path.with_file_name(""),
            Some(_) => source.path.with_extension(""),
        };
        let lines: Vec<&str> = source.code.lines().map(str::trim).collect();
        for pair in lines.windows(2).filter(|pair| pair[0] == "#[cfg(test)]") {
            let module = pair[1].trim_start_matches("pub(crate) ").trim_start_matches("pub ").strip_prefix("mod ");
            if let Some(name) = module.and_then(|rest| rest.strip_suffix(';')) {
                roots.insert(folder.join(name));
            }
        }
    }
    let below = |path: &PathBuf| roots.iter().any(|root| path.with_extension("") == *root || path.starts_with(root));
    sources.iter().map(|source| source.path.clone()).filter(below).collect()
}

/// Marks the lines of items under `#[cfg(test)]`: from the attribute to the end of the item's block or its semicolon.
fn test_lines(code: &str) -> Vec<bool> {
    let mut marks = Vec::new();
    // Inside an item for tests: braces open, and whether its block has begun.
    let mut inside: Option<(i64, bool)> = None;
    for line in code.lines() {
        if inside.is_none() && line.trim_start().starts_with("#[cfg(test)]") {
            inside = Some((0, false));
        }
        marks.push(inside.is_some());
        if let Some((depth, begun)) = &mut inside {
            let mut ended = false;
            for c in line.chars() {
                match c {
                    '{' => (*depth, *begun) = (*depth + 1, true),
                    '}' => *depth -= 1,
                    ';' if *depth == 0 => ended = true,
                    _ => {}
                }
            }
            if ended || (*begun && *depth <= 0) {
                inside = None;
            }
        }
    }
    marks
}

/// Blanks comments and what stands inside string and character literals; keeps line ends and everything else.
fn code_of(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = match chars[at] {
            '/' if chars.get(at + 1) == Some(&'/') => line_end(&chars, at),
            '/' if chars.get(at + 1) == Some(&'*') => block_comment_end(&chars, at),
            '"' => string_end(&chars, at),
            'r' | 'b'
                if !follows_a_name(&chars, at)
                    && let Some(end) = raw_string_end(&chars, at) =>
            {
                end
            }
            '\'' => char_end(&chars, at),
            c => {
                code.push(c);
                at += 1;
                continue;
            }
        };
        code.extend(chars[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
        at = end;
    }
    code
}

fn follows_a_name(chars: &[char], at: usize) -> bool {
    at.checked_sub(1).is_some_and(|before| chars[before].is_alphanumeric() || chars[before] == '_')
}

fn line_end(chars: &[char], at: usize) -> usize {
    chars[at..].iter().position(|c| *c == '\n').map_or(chars.len(), |length| at + length)
}

fn block_comment_end(chars: &[char], at: usize) -> usize {
    let mut depth = 0_usize;
    let mut here = at;
    while here < chars.len() {
        match (chars[here], chars.get(here + 1)) {
            ('/', Some('*')) => (depth, here) = (depth + 1, here + 2),
            ('*', Some('/')) => {
                (depth, here) = (depth - 1, here + 2);
                if depth == 0 {
                    return here;
                }
            }
            _ => here += 1,
        }
    }
    chars.len()
}

fn string_end(chars: &[char], at: usize) -> usize {
    let mut here = at + 1;
    while here < chars.len() {
        match chars[here] {
            '\\' => here += 2,
            '"' => return here + 1,
            _ => here += 1,
        }
    }
    chars.len()
}

/// `r"..."`, `r#"..."#`, `br"..."`: the end, or `None` when this is no raw string.
fn raw_string_end(chars: &[char], at: usize) -> Option<usize> {
    let mut here = at + usize::from(chars[at] == 'b');
    if chars.get(here) != Some(&'r') {
        return None;
    }
    here += 1;
    let hashes = chars[here..].iter().take_while(|c| **c == '#').count();
    here += hashes;
    if chars.get(here) != Some(&'"') {
        return None;
    }
    let closing =
        |end: usize| chars[end] == '"' && chars[end + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes;
    let end = (here + 1..chars.len()).find(|end| closing(*end));
    Some(end.map_or(chars.len(), |end| end + 1 + hashes))
}

/// The end of a character literal; a lifetime's quote is one character long.
fn char_end(chars: &[char], at: usize) -> usize {
    match (chars.get(at + 1), chars.get(at + 2)) {
        (Some('\\'), _) => chars[at + 3..].iter().position(|c| *c == '\'').map_or(chars.len(), |length| at + 4 + length),
        (Some(_), Some('\'')) => at + 3,
        _ => at + 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_texts_are_no_code() {
        let text = "let a = \"x.unwrap()\"; // panic!(\n/* f64 /* nested */ */ let b = 'c'; fn f<'a>(x: &'a str) {}\n\
                    let c = r#\"a \"quoted\" f32\"#; let d = b\"\\\"\"; let e = '\\'';\nafter";
        let code = code_of(text);
        assert!(!code.contains("unwrap") && !code.contains("panic") && !code.contains("f64") && !code.contains("f32"));
        assert!(code.contains("let b") && code.contains("fn f<") && code.contains("let e") && code.contains("after"));
        assert_eq!(code.lines().count(), text.lines().count());
    }

    #[test]
    fn what_is_for_tests_is_known_to_the_line() {
        let text = "fn product() {}\n#[cfg(test)]\nmod tests {\n    fn f() { a.unwrap(); }\n}\nfn more() {}\n#[cfg(test)]\nuse x;\nfn last() {}\n";
        let source = Source::parse("a.rs".into(), text.to_owned());
        assert_eq!(source.is_test, [false, true, true, true, true, false, true, true, false]);
    }

    #[test]
    fn modules_for_tests_in_files_of_their_own_are_found() {
        let file = |path: &str, text: &str| Source::parse(path.into(), text.to_owned());
        let sources = [
            file("src/lib.rs", "#[cfg(test)]\nmod model;\nmod log;\n"),
            file("src/model.rs", ""),
            file("src/model/part.rs", ""),
            file("src/log.rs", "#[cfg(test)]\nmod tests;\n"),
            file("src/log/tests.rs", ""),
        ];
        let found: Vec<_> = test_files(&sources).into_iter().collect();
        assert_eq!(found, [PathBuf::from("src/log/tests.rs"), "src/model/part.rs".into(), "src/model.rs".into()]);
    }
}
