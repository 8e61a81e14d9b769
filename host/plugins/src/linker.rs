//! Binds everything a plugin may import: the contract's interfaces and the part of WASI that reaches nothing outside.
//!
//! **Invariant:** no file, no network, no environment and no process is reachable from here.

use wasmtime::Engine;
use wasmtime::component::{HasSelf, Linker};
use wasmtime_wasi::WasiView as _;
use wasmtime_wasi::cli::{WasiCli, WasiCliView as _};
use wasmtime_wasi::p2::bindings as wasi;
use wasmtime_wasi::random::WasiRandom;

use crate::bindings::kvasir::plugin;
use crate::run::Run;

/// Makes the linker that all programs share.
///
/// # Errors
/// Never in practice: two interfaces would have to have the same name.
pub(crate) fn linker(engine: &Engine) -> wasmtime::Result<Linker<Run>> {
    let mut linker = Linker::new(engine);
    let l = &mut linker;
    type Own = HasSelf<Run>;
    plugin::types::add_to_linker::<Run, Own>(l, |run| run)?;
    plugin::kv::add_to_linker::<Run, Own>(l, |run| run)?;
    plugin::watch::add_to_linker::<Run, Own>(l, |run| run)?;
    plugin::lease::add_to_linker::<Run, Own>(l, |run| run)?;
    plugin::lock::add_to_linker::<Run, Own>(l, |run| run)?;
    plugin::log::add_to_linker::<Run, Own>(l, |run| run)?;
    plugin::context::add_to_linker::<Run, Own>(l, |run| run)?;
    add_wasi(l)?;
    Ok(linker)
}

fn add_wasi(l: &mut Linker<Run>) -> wasmtime::Result<()> {
    wasmtime_wasi::p2::add_to_linker_proxy_interfaces_async(l)?;
    wasi::random::insecure::add_to_linker::<Run, WasiRandom>(l, |run| run.ctx().ctx.random())?;
    wasi::random::insecure_seed::add_to_linker::<Run, WasiRandom>(l, |run| run.ctx().ctx.random())?;
    wasi::cli::exit::add_to_linker::<Run, WasiCli>(l, Run::cli)?;
    wasi::cli::environment::add_to_linker::<Run, WasiCli>(l, Run::cli)?;
    wasi::cli::terminal_input::add_to_linker::<Run, WasiCli>(l, Run::cli)?;
    wasi::cli::terminal_output::add_to_linker::<Run, WasiCli>(l, Run::cli)?;
    wasi::cli::terminal_stdin::add_to_linker::<Run, WasiCli>(l, Run::cli)?;
    wasi::cli::terminal_stdout::add_to_linker::<Run, WasiCli>(l, Run::cli)?;
    wasi::cli::terminal_stderr::add_to_linker::<Run, WasiCli>(l, Run::cli)?;
    Ok(())
}
