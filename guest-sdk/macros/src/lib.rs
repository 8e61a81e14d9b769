//! The attributes `#[kvasir_guest::reactor]` and `#[kvasir_guest::task]`.
//!
//! Each keeps the function as it is and adds, for a type of the function's name: the implementation of `Reactor` or `Task` that
//! the native harness runs; on wasm, the component's export and the crate's `plugin.toml` as custom section `kvasir:manifest`.
//!
//! Invariant: the manifest is embedded once per crate, because the linker would join two sections of one name.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use proc_macro::TokenStream;
use proc_macro2::{Span, TokenStream as Tokens};
use quote::quote;
use syn::parse::{Parse, ParseStream};
use syn::{Ident, ItemFn, Path, Token, parse_macro_input};

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
    let args = parse_macro_input!(args as ReactorArgs);
    let function = parse_macro_input!(item as ItemFn);
    expand_reactor(&args, &function).unwrap_or_else(syn::Error::into_compile_error).into()
}

/// Makes a function `fn(&mut TaskCx) -> Outcome` the component's task: it runs on the schedule of the manifest, on one node, under
/// a lock.
///
/// The crate needs a `plugin.toml` beside its `Cargo.toml`; compilation fails without it. One reactor and one task per component.
#[proc_macro_attribute]
pub fn task(args: TokenStream, item: TokenStream) -> TokenStream {
    let _ = parse_macro_input!(args as syn::parse::Nothing);
    let function = parse_macro_input!(item as ItemFn);
    expand_task(&function).unwrap_or_else(syn::Error::into_compile_error).into()
}

#[derive(Default)]
struct ReactorArgs {
    batch: bool,
    resync: Option<Path>,
}

impl Parse for ReactorArgs {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let mut args = ReactorArgs::default();
        while !input.is_empty() {
            let name: Ident = input.parse()?;
            match name.to_string().as_str() {
                "batch" => args.batch = true,
                "resync" => {
                    input.parse::<Token![=]>()?;
                    args.resync = Some(input.parse()?);
                }
                other => {
                    return Err(syn::Error::new(
                        name.span(),
                        format!("unknown argument `{other}`: `batch` or `resync = function`"),
                    ));
                }
            }
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        Ok(args)
    }
}

fn expand_reactor(args: &ReactorArgs, function: &ItemFn) -> syn::Result<Tokens> {
    expect_arguments(function, 2, "fn name(cx: &mut Cx, event: Event<T>) -> Outcome")?;
    let name = &function.sig.ident;
    let on_events = if args.batch {
        quote!(::kvasir_guest::__rt::whole(cx, batch, #name))
    } else {
        quote!(::kvasir_guest::__rt::each(cx, batch.events, #name))
    };
    let on_resync = match (&args.resync, args.batch) {
        (Some(handler), _) => quote!(::kvasir_guest::__rt::page(cx, page, #handler)),
        (None, true) => quote!(::kvasir_guest::__rt::replay(cx, page, #name)),
        (None, false) => quote!(::kvasir_guest::__rt::each(cx, page.into_events(), #name)),
    };
    let marker = marker(function);
    let manifest = manifest()?;
    let section = section();
    Ok(quote! {
        #function
        #marker
        impl ::kvasir_guest::Reactor for #name {
            const MANIFEST: &'static str = #manifest;
            fn on_events(cx: &mut ::kvasir_guest::Cx, batch: ::kvasir_guest::Batch) -> ::kvasir_guest::Outcome {
                #on_events
            }
            fn on_resync(cx: &mut ::kvasir_guest::Cx, page: ::kvasir_guest::Resync) -> ::kvasir_guest::Outcome {
                #on_resync
            }
        }
        // Off wasm nobody calls it but tests: this keeps it from looking dead.
        #[cfg(not(target_family = "wasm"))]
        const _: fn(&mut ::kvasir_guest::Cx, ::kvasir_guest::Batch) -> ::kvasir_guest::Outcome =
            <#name as ::kvasir_guest::Reactor>::on_events;
        #[cfg(target_family = "wasm")]
        #[allow(unsafe_code)]
        const _: () = {
            use ::kvasir_guest::host;
            use host::reactor_world::exports::kvasir::plugin::reactor as world;
            struct Export;
            impl world::Guest for Export {
                fn on_events(batch: world::Batch) -> ::core::result::Result<(), world::Fault> {
                    host::on_events::<#name>(batch)
                }
                fn on_resync(page: world::Resync) -> ::core::result::Result<(), world::Fault> {
                    host::on_resync::<#name>(page)
                }
            }
            host::reactor_world::export_reactor!(Export with_types_in host::reactor_world);
            #section
        };
    })
}

fn expand_task(function: &ItemFn) -> syn::Result<Tokens> {
    expect_arguments(function, 1, "fn name(cx: &mut TaskCx) -> Outcome")?;
    let name = &function.sig.ident;
    let marker = marker(function);
    let manifest = manifest()?;
    let section = section();
    Ok(quote! {
        #function
        #marker
        impl ::kvasir_guest::Task for #name {
            const MANIFEST: &'static str = #manifest;
            fn run(cx: &mut ::kvasir_guest::TaskCx) -> ::kvasir_guest::Outcome {
                #name(cx)
            }
        }
        // Off wasm nobody calls it but tests: this keeps it from looking dead.
        #[cfg(not(target_family = "wasm"))]
        const _: fn(&mut ::kvasir_guest::TaskCx) -> ::kvasir_guest::Outcome = <#name as ::kvasir_guest::Task>::run;
        #[cfg(target_family = "wasm")]
        #[allow(unsafe_code)]
        const _: () = {
            use ::kvasir_guest::host;
            use host::task_world::exports::kvasir::plugin::task as world;
            struct Export;
            impl world::Guest for Export {
                fn run() -> ::core::result::Result<(), world::Fault> {
                    host::run::<#name>()
                }
            }
            host::task_world::export_task!(Export with_types_in host::task_world);
            #section
        };
    })
}

/// A wrong shape is told in words rather than as a type error inside the expansion.
fn expect_arguments(function: &ItemFn, count: usize, shape: &str) -> syn::Result<()> {
    let signature = &function.sig;
    if signature.inputs.len() != count || signature.asyncness.is_some() || !signature.generics.params.is_empty() {
        return Err(syn::Error::new_spanned(signature, format!("expected `{shape}`")));
    }
    Ok(())
}

/// The type that the traits are implemented for. With braces, so that it shares its name with the function: one is a type, the
/// other a value.
fn marker(function: &ItemFn) -> Tokens {
    let (visibility, name) = (&function.vis, &function.sig.ident);
    quote! {
        #[doc(hidden)]
        #[allow(non_camel_case_types, dead_code)]
        #visibility struct #name {}
    }
}

/// `include_str!` of the manifest, once it is known to exist.
fn manifest() -> syn::Result<Tokens> {
    let folder = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).unwrap_or_default();
    let path = folder.join("plugin.toml");
    if !path.is_file() {
        let message =
            format!("{} is missing: a plugin says in it what it is, what starts it and what it may do", path.display());
        return Err(syn::Error::new(Span::call_site(), message));
    }
    Ok(quote!(::core::include_str!(::core::concat!(::core::env!("CARGO_MANIFEST_DIR"), "/plugin.toml"))))
}

/// The custom section, for the first attribute of a crate.
fn section() -> Tokens {
    // One process of the compiler expands one crate, so this is the crate's own memory. Only where one process expands many times
    // (an editor) do later expansions go without, and there nothing is linked.
    static EMBEDDED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let crate_id = ["CARGO_MANIFEST_DIR", "CARGO_CRATE_NAME"].map(|name| std::env::var(name).unwrap_or_default()).join("\0");
    if !EMBEDDED.lock().unwrap_or_else(PoisonError::into_inner).insert(crate_id) {
        return Tokens::new();
    }
    quote! {
        const LEN: usize = ::core::include_bytes!(::core::concat!(::core::env!("CARGO_MANIFEST_DIR"), "/plugin.toml")).len();
        #[used]
        #[unsafe(link_section = "kvasir:manifest")]
        static MANIFEST: [u8; LEN] = *::core::include_bytes!(::core::concat!(::core::env!("CARGO_MANIFEST_DIR"), "/plugin.toml"));
    }
}
