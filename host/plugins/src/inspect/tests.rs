//! Hostile and mistaken bytes: each is refused with a sentence of its own.

use super::*;
use crate::testing::{reactor, task, with_section, wrap};

fn refused(bytes: &[u8]) -> String {
    let error = inspect(bytes).unwrap_err();
    assert!(!error.contains('\n'), "one line: {error}");
    error
}

#[test]
fn a_reactor_and_a_task_are_told_apart() {
    let found = inspect(&reactor("(call $ok)")).unwrap();
    assert!(found.reactor && !found.task);
    assert!(found.imports.contains(&"kvasir:plugin/kv@0.1.0".to_owned()), "{:?}", found.imports);
    let found = inspect(&task("(call $ok)")).unwrap();
    assert!(!found.reactor && found.task);
}

#[test]
fn what_is_not_a_component_is_named() {
    assert!(refused(b"").contains("not WebAssembly"));
    assert!(refused(b"\0as").contains("not WebAssembly"));
    assert!(refused(b"#!/bin/sh\necho hello\n").contains("not WebAssembly"));
    assert!(refused(b"\x7fELF\x02\x01\x01\0\0\0\0\0").contains("not WebAssembly"));
    assert!(refused(b"\0asm\x01\0\0\0").contains("core WebAssembly module"));
    assert!(refused(b"\0asm\x0d\0").contains("truncated"));
    assert!(refused(b"\0asm\x0c\0\x01\0").contains("unknown version"));
}

#[test]
fn an_empty_component_has_no_export_that_could_run() {
    let error = refused(b"\0asm\x0d\0\x01\0");
    assert!(error.contains("exports neither") && error.contains("it exports nothing"), "{error}");
}

#[test]
fn a_component_cut_anywhere_is_refused_unless_only_custom_sections_are_gone() {
    let whole = reactor("(call $ok)");
    let found = inspect(&whole).unwrap();
    for end in 0..whole.len() {
        let error = match inspect(&whole[..end]) {
            Ok(cut) => {
                assert_eq!(cut, found, "{end}");
                continue;
            }
            Err(error) => error,
        };
        let known = ["truncated", "not WebAssembly", "not valid", "exports neither", "cannot be read"];
        assert!(known.iter().any(|words| error.contains(words)), "{end}: {error}");
    }
    assert!(refused(&whole[..whole.len() / 2]).contains("truncated"));
}

#[test]
fn a_component_with_a_byte_changed_never_panics() {
    let whole = reactor("(call $ok)");
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0xff;
        let _ = inspect(&bytes);
    }
}

#[test]
fn a_component_past_the_bound_is_refused_before_it_is_read() {
    let bytes = vec![0; limits::COMPONENT_BYTES_MAX as usize + 1];
    assert!(refused(&bytes).contains("more than the"));
}

#[test]
fn imports_that_reach_outside_are_named() {
    let module = r#"(module
        (import "wasi:http/outgoing-handler@0.2.0" "handle" (func))
        (func (export "kvasir:plugin/other@0.1.0#run")))"#;
    let wit = "package t:t;
        package wasi:http@0.2.0 { interface outgoing-handler { handle: func(); } }
        package kvasir:plugin@0.1.0 { interface other { run: func(); } }
        world w { import wasi:http/outgoing-handler@0.2.0; export kvasir:plugin/other@0.1.0; }";
    let error = refused(&wrap(module, wit, "w"));
    assert!(error.contains("`wasi:http/outgoing-handler@0.2.0`") && error.contains("no network"), "{error}");
}

#[test]
fn another_version_of_the_contract_and_another_world_are_named() {
    let module = r#"(module (func (export "kvasir:plugin/task@0.9.0#run")))"#;
    let wit = "package t:t;
        package kvasir:plugin@0.9.0 { interface task { run: func(); } }
        world w { export kvasir:plugin/task@0.9.0; }";
    assert!(refused(&wrap(module, wit, "w")).contains("built against kvasir:plugin@0.9.0"));
    let module = r#"(module (func (export "run")))"#;
    let error = refused(&wrap(module, "package t:t; world w { export run: func(); }", "w"));
    assert!(error.contains("exports neither") && error.contains("`run`"), "{error}");
}

#[test]
fn versions_stand_for_each_other_as_the_linker_has_it() {
    for (asked, served, fits) in [
        ("0.1.0", "0.1.0", true),
        ("0.1.7", "0.1.0", true),
        ("0.2.0", "0.1.0", false),
        ("1.1.0", "1.0.0", true),
        ("2.0.0", "1.0.0", false),
        ("0.0.1", "0.0.2", false),
        ("0.1.0-rc.1", "0.1.0", false),
        ("", "0.1.0", false),
    ] {
        assert_eq!(compatible(asked, served), fits, "{asked} for {served}");
    }
}

#[test]
fn a_patch_release_of_the_contract_is_accepted_and_links() {
    let later = include_str!("../../../../wit/kvasir-plugin.wit").replace("kvasir:plugin@0.1.0;", "kvasir:plugin@0.1.3;");
    let module = r#"(module
        (import "kvasir:plugin/kv@0.1.3" "snapshot-revision" (func (result i64)))
        (memory (export "memory") 1)
        (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (unreachable))
        (func (export "kvasir:plugin/task@0.1.3#run") (result i32) (unreachable)))"#;
    let component = wrap(module, &later, "task-plugin");
    let found = inspect(&component).unwrap();
    assert!(found.task && !found.reactor);
    let engine = crate::wasm::engine().unwrap();
    let linker = crate::linker::linker(&engine).unwrap();
    let code = wasmtime::component::Component::new(&engine, &component).unwrap();
    crate::program::Program::link(&linker, &code, found.reactor, found.task).unwrap();
}

#[test]
fn wasi_that_is_not_linked_is_refused_by_name() {
    for import in ["wasi:clocks/timezone@0.2.0", "wasi:io/poll@0.2.0-rc.1", "wasi:io/poll@0.3.0"] {
        assert!(check_imports(&[import.to_owned()]).unwrap_err().contains(&format!("`{import}`")), "{import}");
    }
    check_imports(&["wasi:io/poll@0.2.9".to_owned()]).unwrap();
}

#[test]
fn an_embedded_manifest_is_found_outside_and_inside() {
    let toml = b"[plugin]\nname = \"p\"\n";
    let outside = with_section(reactor("(call $ok)"), MANIFEST_SECTION, toml);
    assert_eq!(inspect(&outside).unwrap().manifest.as_deref(), Some(std::str::from_utf8(toml).unwrap()));
    let huge = with_section(reactor("(call $ok)"), MANIFEST_SECTION, &vec![b'#'; limits::MANIFEST_BYTES_MAX + 1]);
    assert_eq!(inspect(&huge).unwrap().manifest, None);
    let other = with_section(reactor("(call $ok)"), MANIFEST_SECTION, &[0xff, 0xfe]);
    assert_eq!(inspect(&other).unwrap().manifest, None);
}
