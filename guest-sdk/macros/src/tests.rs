//! What the attributes make of a function, and what they say to one that does not fit.

use std::path::Path;

use proc_macro2::TokenStream as Tokens;
use quote::quote;

use crate::expand::{Author, reactor, task};

/// A crate of its own for each test; the SDK's folder has a `plugin.toml`.
fn author(name: &str) -> Author {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    Author { folder, name: name.to_owned() }
}

fn on_event() -> Tokens {
    quote!(
        pub(crate) fn on_event(cx: &mut Cx, event: Event<Raw>) -> Outcome {
            Ok(())
        }
    )
}

fn tidy() -> Tokens {
    quote!(
        fn tidy(cx: &mut TaskCx) -> Outcome {
            Ok(())
        }
    )
}

/// Without the spaces that token printing puts anywhere.
fn dense(tokens: &Tokens) -> String {
    tokens.to_string().split_whitespace().collect()
}

/// The expansion's items, which must parse.
fn items(expanded: syn::Result<Tokens>) -> String {
    let expanded = expanded.unwrap_or_else(|error| panic!("{error}"));
    syn::parse2::<syn::File>(expanded.clone()).unwrap_or_else(|error| panic!("{error}: {expanded}"));
    dense(&expanded)
}

fn message(expanded: syn::Result<Tokens>) -> String {
    match expanded {
        Ok(tokens) => panic!("expanded to {tokens}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_reactor_keeps_its_function_and_implements_and_exports_both_calls() {
    let expanded = items(reactor(&author("reactor"), Tokens::new(), on_event()));
    for part in [
        dense(&on_event()).as_str(),
        "pub(crate)structon_event{}",
        "impl::kvasir_guest::Reactorforon_event",
        "::kvasir_guest::__rt::each(cx,batch.events,on_event)",
        "::kvasir_guest::__rt::each(cx,page.into_events(),on_event)",
        "fnon_events(batch:world::Batch)->::core::result::Result<(),world::Fault>{host::on_events::<on_event>(batch)}",
        "fnon_resync(page:world::Resync)->::core::result::Result<(),world::Fault>{host::on_resync::<on_event>(page)}",
        "host::reactor_world::export_reactor!(Exportwith_types_inhost::reactor_world);",
    ] {
        assert!(expanded.contains(part), "{part} is not in {expanded}");
    }
}

#[test]
fn batch_and_resync_choose_the_handlers() {
    let author = author("arguments");
    let whole = items(reactor(&author, quote!(batch), on_event()));
    assert!(whole.contains("__rt::whole(cx,batch,on_event)") && whole.contains("__rt::replay(cx,page,on_event)"), "{whole}");
    let both = items(reactor(&author, quote!(batch, resync = crate::on_resync,), on_event()));
    assert!(both.contains("__rt::whole(cx,batch,on_event)") && both.contains("__rt::page(cx,page,crate::on_resync)"), "{both}");
}

#[test]
fn a_task_implements_and_exports_run() {
    let expanded = items(task(&author("task"), Tokens::new(), tidy()));
    for part in [
        "impl::kvasir_guest::Taskfortidy",
        "fnrun(cx:&mut::kvasir_guest::TaskCx)->::kvasir_guest::Outcome{tidy(cx)}",
        "fnrun()->::core::result::Result<(),world::Fault>{host::run::<tidy>()}",
        "host::task_world::export_task!(Exportwith_types_inhost::task_world);",
    ] {
        assert!(expanded.contains(part), "{part} is not in {expanded}");
    }
}

#[test]
fn the_manifest_is_embedded_once_for_each_crate() {
    let section = |expanded: &str| expanded.matches("link_section=\"kvasir:manifest\"").count();
    let both = author("both");
    let first = items(reactor(&both, Tokens::new(), on_event()));
    let second = items(task(&both, Tokens::new(), tidy()));
    let other = items(task(&author("other"), Tokens::new(), tidy()));
    assert_eq!([section(&first), section(&second), section(&other)], [1, 0, 1]);
}

#[test]
fn what_does_not_fit_is_told_in_words() {
    let author = author("errors");
    let reactor = |args: Tokens, item: Tokens| message(reactor(&author, args, item));
    let task = |args: Tokens, item: Tokens| message(task(&author, args, item));
    assert_eq!(reactor(quote!(batches), on_event()), "unknown argument `batches`: `batch` or `resync = function`");
    assert_eq!(reactor(quote!(resync), on_event()), "expected `=`");
    assert_eq!(task(quote!(every = "10s"), tidy()), "`#[task]` has no arguments");
    let one = "expected `fn name(cx: &mut Cx, event: Event<T>) -> Outcome`";
    let many = "expected `fn name(cx: &mut Cx, batch: Batch<T>) -> Outcome`";
    let run = "expected `fn name(cx: &mut TaskCx) -> Outcome`";
    assert_eq!(reactor(Tokens::new(), tidy()), one);
    assert_eq!(reactor(quote!(batch), tidy()), many);
    assert_eq!(task(Tokens::new(), on_event()), run);
    for item in [
        quote!(
            async fn f(cx: &mut Cx, event: Event) -> Outcome {}
        ),
        quote!(
            fn f<T>(cx: &mut Cx, event: Event<T>) -> Outcome {}
        ),
        quote!(
            fn f(&mut self, event: Event) -> Outcome {}
        ),
    ] {
        assert_eq!(reactor(Tokens::new(), item), one);
    }
    assert_eq!(
        task(
            Tokens::new(),
            quote!(
                fn run(self) -> Outcome {}
            )
        ),
        run
    );
    assert_eq!(
        reactor(
            Tokens::new(),
            quote!(
                struct NotAFunction;
            )
        ),
        "expected `fn`"
    );
}

#[test]
fn a_crate_without_a_manifest_is_told_which_file_is_missing() {
    let author = Author { folder: Path::new(env!("CARGO_MANIFEST_DIR")).to_owned(), name: "none".to_owned() };
    let message = message(task(&author, Tokens::new(), tidy()));
    let path = author.folder.join("plugin.toml");
    assert!(message.starts_with(&format!("{} is missing: a plugin says in it what it is", path.display())), "{message}");
}
