//! How the demo speaks: chapters, sentences, and what programs said, each told apart at a glance.
//!
//! **Invariant:** prints, and does nothing else.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::shell;

/// Begins a numbered chapter.
pub(super) fn chapter(title: &str) {
    static NTH: AtomicUsize = AtomicUsize::new(1);
    println!("\n== {}. {title}", NTH.fetch_add(1, Ordering::Relaxed));
}

/// One sentence about what happens next.
pub(super) fn say(text: &str) {
    println!("- {text}");
}

/// What a program said.
pub(super) fn quote(text: &str) {
    for line in text.lines() {
        println!("    {line}");
    }
}

/// What a running watch said.
pub(super) fn overhear(line: &str) {
    println!("    watch | {line}");
}

/// A word of a command as a person would type it.
pub(super) fn word(word: &str) -> String {
    shell::quoted(word.as_ref())
}
