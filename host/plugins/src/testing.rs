//! Guests for this crate's tests, written as WebAssembly text and wrapped into components of the contract's worlds.

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// A core module that fits the worlds: memory, an allocator and the exports, with given bodies.
///
/// `$put` is `kv.put`, `$commit` is `kv.commit`, `$log` is `log.log`; they are there whether they are used or not. `$ok`, `$retry` and `$reject` are the
/// answers a body can return. Data from address 64 on: the key `/out/count` (10 bytes), the value `x` at 80.
const MODULE: &str = r#"
(module
  (import "kvasir:plugin/kv@0.1.0" "put" (func $put (param i32 i32 i32 i32 i32 i64 i32)))
  (import "kvasir:plugin/kv@0.1.0" "commit" (func $commit (param i32)))
  (import "kvasir:plugin/log@0.1.0" "log" (func $log (param i32 i32 i32 i32 i32)))
  @IMPORTS@
  (memory (export "memory") 2)
  (data (i32.const 64) "/out/count")
  (data (i32.const 80) "x")
  (data (i32.const 96) "because")
  (global $next (mut i32) (i32.const 4096))
  (func $alloc (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
    (local $at i32)
    (local.set $at (i32.and (i32.add (global.get $next) (i32.const 7)) (i32.const -8)))
    (global.set $next (i32.add (local.get $at) (local.get 3)))
    (loop $grow
      (if (i32.gt_u (global.get $next) (i32.mul (memory.size) (i32.const 65536)))
        (then (drop (memory.grow (i32.const 1))) (br $grow))))
    (local.get $at))
  (func $ok (result i32) (i32.store (i32.const 16) (i32.const 0)) (i32.const 16))
  (func $fault (param i32) (result i32)
    (i32.store (i32.const 16) (i32.const 1))
    (i32.store (i32.const 20) (local.get 0))
    (i32.store (i32.const 24) (i32.const 96))
    (i32.store (i32.const 28) (i32.const 7))
    (i32.const 16))
  (func $retry (result i32) (call $fault (i32.const 0)))
  (func $reject (result i32) (call $fault (i32.const 1)))
  (func $count (call $put (i32.const 64) (i32.const 10) (i32.const 80) (i32.const 1) (i32.const 0) (i64.const 0) (i32.const 32)))
  @FUNCTIONS@
  @EXPORTS@)
"#;

const REACTOR: &str = r#"
  (func (export "kvasir:plugin/reactor@0.1.0#on-events") (param i32 i32 i32 i32 i32) (result i32) @BODY@)
  (func (export "kvasir:plugin/reactor@0.1.0#on-resync") (param i32 i32 i64 i32 i32 i32 i32) (result i32) @RESYNC@)
"#;

const TASK: &str = r#"(func (export "kvasir:plugin/task@0.1.0#run") (result i32) @BODY@)"#;

/// A reactor whose `on-events` has this body.
pub(crate) fn reactor(body: &str) -> Vec<u8> {
    reactor_with("", body, "(call $ok)")
}

/// A reactor with further functions and a body for `on-resync`.
pub(crate) fn reactor_with(functions: &str, body: &str, resync: &str) -> Vec<u8> {
    let exports = REACTOR.replace("@BODY@", body).replace("@RESYNC@", resync);
    component("reactor-plugin", "", functions, &exports)
}

/// A reactor with further imports.
pub(crate) fn reactor_importing(imports: &str, body: &str) -> Vec<u8> {
    let exports = REACTOR.replace("@BODY@", body).replace("@RESYNC@", "(call $ok)");
    component("reactor-plugin", imports, "", &exports)
}

/// A task whose `run` has this body.
pub(crate) fn task(body: &str) -> Vec<u8> {
    task_importing("", body)
}

/// A task with further imports.
pub(crate) fn task_importing(imports: &str, body: &str) -> Vec<u8> {
    component("task-plugin", imports, "", &TASK.replace("@BODY@", body))
}

fn component(world: &str, imports: &str, functions: &str, exports: &str) -> Vec<u8> {
    let text = MODULE.replace("@IMPORTS@", imports).replace("@FUNCTIONS@", functions).replace("@EXPORTS@", exports);
    wrap(&text, include_str!("../../../wit/kvasir-plugin.wit"), world)
}

/// Wraps a core module in text form into a component of a world.
pub(crate) fn wrap(text: &str, wit: &str, world: &str) -> Vec<u8> {
    let mut module = wat::parse_str(text).unwrap();
    let mut resolve = Resolve::default();
    let package = resolve.push_str("test.wit", wit).unwrap();
    let world = resolve.select_world(&[package], Some(world)).unwrap();
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
    ComponentEncoder::default().validate(true).module(&module).unwrap().encode().unwrap()
}

/// Appends a custom section.
pub(crate) fn with_section(mut component: Vec<u8>, name: &str, data: &[u8]) -> Vec<u8> {
    fn leb(mut n: usize) -> Vec<u8> {
        let mut out = Vec::new();
        loop {
            let byte = (n & 0x7f) as u8;
            n >>= 7;
            if n == 0 {
                out.push(byte);
                return out;
            }
            out.push(byte | 0x80);
        }
    }
    let mut body = leb(name.len());
    body.extend_from_slice(name.as_bytes());
    body.extend_from_slice(data);
    component.push(0);
    component.extend(leb(body.len()));
    component.extend(body);
    component
}
