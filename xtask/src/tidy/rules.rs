//! The rules for single files.
//!
//! **Invariant:** each looks at one file and says what is wrong where; none guesses at meaning.

use std::path::Path;

use super::Problem;
use super::source::Source;
use crate::workspace;

/// What may end a thread in product code, and so wants a reason beside it.
const MAY_PANIC: [&str; 6] = [".unwrap()", ".expect(", "panic!(", "unreachable!(", "todo!(", "unimplemented!("];

/// What would make the machine answer differently on two nodes, or wait.
const IMPURE: [&str; 16] = [
    "std::time",
    "std::fs",
    "std::net",
    "std::thread",
    "std::env",
    "SystemTime",
    "Instant",
    "tokio",
    "async",
    "rand",
    "getrandom",
    "HashMap",
    "HashSet",
    "RandomState",
    "f32",
    "f64",
];

/// Beginnings of folders that exist on one machine only. In halves, so that this file does not name them.
const FOREIGN: [[&str; 2]; 5] = [["/wo", "rk/"], ["/ro", "ot/"], ["/ho", "me/"], ["/Us", "ers/"], ["/tmp/", "plan"]];

/// A file begins by saying what it is.
pub(super) fn header(source: &Source, problems: &mut Vec<Problem>) {
    let first = source.text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    if !first.starts_with("//!") {
        let what = "does not begin with a `//!` that says what it is".to_owned();
        problems.push(Problem { path: source.path.clone(), line: 1, what });
    }
}

/// What may panic in product code has a comment on its line or right above that says why it cannot.
pub(super) fn product(source: &Source, problems: &mut Vec<Problem>) {
    if !is_product(&source.path) {
        return;
    }
    let texts: Vec<&str> = source.text.lines().collect();
    for (line, code, text) in source.product_lines() {
        let Some(found) = MAY_PANIC.iter().find(|found| occurs(code, found)) else { continue };
        if !(text.contains("//") || statement_has_comment(&texts, line)) {
            let what = format!("`{}` without a reason beside it", found.trim_end_matches('('));
            problems.push(Problem { path: source.path.clone(), line, what });
        }
    }
}

/// Whether a comment stands above the statement that goes on in this line (counted from 1).
fn statement_has_comment(texts: &[&str], line: usize) -> bool {
    for text in texts[..line - 1].iter().rev() {
        let text = text.trim();
        if text.starts_with("//") {
            return !text.starts_with("///");
        }
        if text.is_empty() || text.ends_with([';', '{', '}']) {
            return false;
        }
    }
    false
}

/// The machine has no clock, no I/O, no randomness, no floats, no unordered maps, no waiting.
pub(super) fn machine(source: &Source, problems: &mut Vec<Problem>) {
    if !source.path.starts_with(workspace::root().join("host/machine/src")) {
        return;
    }
    for (line, code, _) in source.product_lines() {
        for found in IMPURE.iter().filter(|found| occurs(code, found)) {
            let what = format!("`{found}` in the machine, which must be pure");
            problems.push(Problem { path: source.path.clone(), line, what });
        }
    }
}

/// No file names a folder of the machine it was written on.
pub(super) fn foreign_paths(path: &Path, text: &str, problems: &mut Vec<Problem>) {
    for (nth, line) in text.lines().enumerate() {
        for halves in FOREIGN {
            let folder = halves.concat();
            let found = line.match_indices(&folder).any(|(at, _)| {
                // `docs/home/` is no folder of a machine: a path of one begins with its slash.
                !line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-}>/".contains(c))
            });
            if found {
                let what = format!("names `{folder}`, a folder of one machine");
                problems.push(Problem { path: path.to_owned(), line: nth + 1, what });
            }
        }
    }
}

/// A page of `docs/` that is pointed at is there.
pub(super) fn pages(path: &Path, text: &str, problems: &mut Vec<Problem>) {
    for (nth, line) in text.lines().enumerate() {
        for (at, found) in line.match_indices("docs/") {
            let name: String =
                line[at + found.len()..].chars().take_while(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c)).collect();
            let Some(page) = name.find(".md").map(|end| &name[..end + 3]) else { continue };
            if !workspace::root().join("docs").join(page).is_file() {
                let what = format!("points at docs/{page}, which is not there");
                problems.push(Problem { path: path.to_owned(), line: nth + 1, what });
            }
        }
    }
}

/// Whether this file becomes part of the node or of a guest.
fn is_product(path: &Path) -> bool {
    let Ok(inside) = path.strip_prefix(workspace::root()) else { return false };
    let mut parts = inside.components().map(|part| part.as_os_str().to_string_lossy());
    let house = parts.next().unwrap_or_default().into_owned();
    let rest: Vec<String> = parts.map(|part| part.into_owned()).collect();
    matches!(house.as_str(), "host" | "manifest" | "guest-sdk" | "plugins")
        && rest.iter().any(|part| part == "src")
        // The harness in which plugin authors test fails tests by panicking.
        && !rest.iter().any(|part| part == "testing" || part == "testing.rs")
}

/// Whether the code has this as words of its own.
fn occurs(code: &str, found: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(found).any(|(at, _)| {
        let goes_on_before = found.starts_with(is_word) && code[..at].ends_with(is_word);
        let goes_on_after = found.ends_with(is_word) && code[at + found.len()..].starts_with(is_word);
        !goes_on_before && !goes_on_after
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems_of(rule: fn(&Source, &mut Vec<Problem>), path: &str, text: &str) -> Vec<usize> {
        let source = Source::parse(workspace::root().join(path), text.to_owned());
        let mut problems = Vec::new();
        rule(&source, &mut problems);
        problems.iter().map(|problem| problem.line).collect()
    }

    #[test]
    fn an_unwrap_wants_a_reason_in_the_product_only() {
        let text = "//! x\nfn f() {\n    a.unwrap();\n    b.unwrap(); // never empty\n    // checked above\n    c\n        .expect(\"x\");\n}\n\
                    #[cfg(test)]\nmod tests {\n    fn g() { d.unwrap(); }\n}\n";
        assert_eq!(problems_of(product, "host/engine/src/x.rs", text), [3]);
        assert_eq!(problems_of(product, "tests/src/x.rs", text), [0; 0]);
        assert_eq!(problems_of(product, "guest-sdk/src/testing/x.rs", text), [0; 0]);
    }

    #[test]
    fn the_machine_may_not_look_at_a_clock() {
        let text = "//! x\nuse std::time::Instant; // no\nlet operand = 1;\nlet x: f64;\n";
        assert_eq!(problems_of(machine, "host/machine/src/x.rs", text), [2, 2, 4]);
        assert_eq!(problems_of(machine, "host/engine/src/x.rs", text), [0; 0]);
    }

    #[test]
    fn a_file_says_first_what_it_is() {
        assert_eq!(problems_of(header, "host/x.rs", "// x\n"), [1]);
        assert_eq!(problems_of(header, "host/x.rs", "\n//! x\n"), [0; 0]);
    }

    #[test]
    fn a_page_that_is_not_there_is_missed() {
        let mut problems = Vec::new();
        pages(Path::new("a.rs"), &format!("see docs/{}.md.\nsee docs/ and docs/x.png\n", "no-such-page"), &mut problems);
        assert_eq!(problems.iter().map(|problem| problem.line).collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn a_folder_of_one_machine_is_found_and_a_part_of_a_path_is_not() {
        let mut problems = Vec::new();
        let text = format!("see {0}x/y\nsee docs{0}x\n", FOREIGN[2].concat());
        foreign_paths(Path::new("a.md"), &text, &mut problems);
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].line, 1);
    }
}
