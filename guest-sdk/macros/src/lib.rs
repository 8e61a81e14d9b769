//! The attributes `#[kvasir_guest::reactor]` and `#[kvasir_guest::task]`.
//!
//! Each keeps the function as it is and adds, for a type of the function's name: the implementation of `Reactor` or `Task` that
//! the native harness runs; on wasm, the component's export and the crate's `plugin.toml` as custom section `kvasir:manifest`.
//!
//! Invariant: the manifest is embedded once per crate, because the linker would join two sections of one name.

mod expand;
#[cfg(test)]
mod tests;

use proc_macro::TokenStream;

use expand::Author;

/// Makes a function the component's reactor.
///
/// - `#[reactor]` on `fn(&mut Cx, Event<T>) -> Outcome`: called for each event; `T` is read from JSON, or `Raw`.
/// - `#[reactor(batch)]` on `fn(&mut Cx, Batch<T>) -> Outcome`: called for each batch.
/// - `resync = path` names a `fn(&mut Cx, Resync<T>) -> Outcome` for pages of a resync; without it, their entries are replayed
///   as puts through the same function.
///
/// The crate needs a `plugin.toml` beside its `Cargo.toml`; compilation fails without it. One reactor and one task per component.
#[proc_macro_attribute]
pub fn reactor(args: TokenStream, item: TokenStream) -> TokenStream {
    let expanded = expand::reactor(&Author::of_this_crate(), args.into(), item.into());
    expanded.unwrap_or_else(syn::Error::into_compile_error).into()
}

/// Makes a function `fn(&mut TaskCx) -> Outcome` the component's task: it runs on the schedule of the manifest, on one node, under
/// a lock.
///
/// The crate needs a `plugin.toml` beside its `Cargo.toml`; compilation fails without it. One reactor and one task per component.
#[proc_macro_attribute]
pub fn task(args: TokenStream, item: TokenStream) -> TokenStream {
    let expanded = expand::task(&Author::of_this_crate(), args.into(), item.into());
    expanded.unwrap_or_else(syn::Error::into_compile_error).into()
}
