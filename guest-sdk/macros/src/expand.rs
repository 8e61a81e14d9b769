//! From a function to the export of a component, for both attributes alike.
//!
//! Invariant: works on tokens alone, so that its results and its errors are tested without a compiler.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use proc_macro2::{Span, TokenStream as Tokens};
use quote::{format_ident, quote};
use syn::parse::{Nothing, Parse, ParseStream};
use syn::{FnArg, Ident, ItemFn, Path, Token};

/// The crate that is expanded.
pub(crate) struct Author {
    /// Its folder.
    pub(crate) folder: PathBuf,
    /// Its name; a library's tests are another crate of the same folder.
    pub(crate) name: String,
}

impl Author {
    /// As cargo tells it.
    pub(crate) fn of_this_crate() -> Self {
        Self {
            folder: std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).unwrap_or_default(),
            name: std::env::var("CARGO_CRATE_NAME").unwrap_or_default(),
        }
    }
}

/// What an attribute makes of a function: a trait of the SDK for the harness, an export of a world for the host.
struct Export {
    /// `Reactor` or `Task`.
    implements: &'static str,
    /// What the handler is given first: `Cx` or `TaskCx`.
    context: &'static str,
    /// The world's interface: `reactor` or `task`.
    interface: &'static str,
    methods: Vec<Method>,
}

/// A function of the trait, of the interface and of the SDK's `host`, which have it under one name.
struct Method {
    name: &'static str,
    /// Its argument, and the argument's type in the SDK and in the interface.
    input: Option<(&'static str, &'static str)>,
    /// Of the trait's function, where the handler's context is `cx`.
    body: Tokens,
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
                    let message = format!("unknown argument `{other}`: `batch` or `resync = function`");
                    return Err(syn::Error::new(name.span(), message));
                }
            }
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        Ok(args)
    }
}

/// `#[reactor]`.
///
/// # Errors
/// What is wrong with the arguments, the function or the crate, in words.
pub(crate) fn reactor(author: &Author, args: Tokens, item: Tokens) -> syn::Result<Tokens> {
    let args: ReactorArgs = syn::parse2(args)?;
    let function: ItemFn = syn::parse2(item)?;
    let shape = if args.batch {
        "fn name(cx: &mut Cx, batch: Batch<T>) -> Outcome"
    } else {
        "fn name(cx: &mut Cx, event: Event<T>) -> Outcome"
    };
    expect_arguments(&function, 2, shape)?;
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
    let export = Export {
        implements: "Reactor",
        context: "Cx",
        interface: "reactor",
        methods: vec![
            Method { name: "on_events", input: Some(("batch", "Batch")), body: on_events },
            Method { name: "on_resync", input: Some(("page", "Resync")), body: on_resync },
        ],
    };
    expand(author, &function, &export)
}

/// `#[task]`.
///
/// # Errors
/// What is wrong with the arguments, the function or the crate, in words.
pub(crate) fn task(author: &Author, args: Tokens, item: Tokens) -> syn::Result<Tokens> {
    syn::parse2::<Nothing>(args).map_err(|error| syn::Error::new(error.span(), "`#[task]` has no arguments"))?;
    let function: ItemFn = syn::parse2(item)?;
    expect_arguments(&function, 1, "fn name(cx: &mut TaskCx) -> Outcome")?;
    let name = &function.sig.ident;
    let export = Export {
        implements: "Task",
        context: "TaskCx",
        interface: "task",
        methods: vec![Method { name: "run", input: None, body: quote!(#name(cx)) }],
    };
    expand(author, &function, &export)
}

fn expand(author: &Author, function: &ItemFn, export: &Export) -> syn::Result<Tokens> {
    let (visibility, name) = (&function.vis, &function.sig.ident);
    let [implements, context, interface] = [export.implements, export.context, export.interface].map(ident);
    let (world, export_macro) = (format_ident!("{interface}_world"), format_ident!("export_{interface}"));
    let manifest = manifest(author)?;
    let section = section(author);
    let (mut implementation, mut used, mut exported) = (Tokens::new(), Tokens::new(), Tokens::new());
    for Method { name: method, input, body } in &export.methods {
        let method = ident(method);
        let argument = input.map(|(argument, _)| ident(argument));
        let kind = input.map(|(_, kind)| ident(kind)).into_iter().collect::<Vec<_>>();
        let names = argument.into_iter().collect::<Vec<_>>();
        implementation.extend(quote! {
            fn #method(cx: &mut ::kvasir_guest::#context #(, #names: ::kvasir_guest::#kind)*) -> ::kvasir_guest::Outcome {
                #body
            }
        });
        used.extend(quote! {
            const _: fn(&mut ::kvasir_guest::#context #(, ::kvasir_guest::#kind)*) -> ::kvasir_guest::Outcome =
                <#name as ::kvasir_guest::#implements>::#method;
        });
        exported.extend(quote! {
            fn #method(#(#names: world::#kind)*) -> ::core::result::Result<(), world::Fault> {
                host::#method::<#name>(#(#names)*)
            }
        });
    }
    Ok(quote! {
        #function
        // With braces, so that it shares its name with the function: one is a type, the other a value.
        #[doc(hidden)]
        #[allow(non_camel_case_types, dead_code)]
        #visibility struct #name {}
        impl ::kvasir_guest::#implements for #name {
            const MANIFEST: &'static str = #manifest;
            #implementation
        }
        // Off wasm nobody calls it but tests: this keeps it from looking dead.
        #[cfg(not(target_family = "wasm"))]
        const _: () = {
            #used
        };
        #[cfg(target_family = "wasm")]
        #[allow(unsafe_code)]
        const _: () = {
            use ::kvasir_guest::host;
            use host::#world::exports::kvasir::plugin::#interface as world;
            struct Export;
            impl world::Guest for Export {
                #exported
            }
            host::#world::#export_macro!(Export with_types_in host::#world);
            #section
        };
    })
}

fn ident(name: &str) -> Ident {
    Ident::new(name, Span::call_site())
}

/// A wrong shape is told in words rather than as a type error inside the expansion.
fn expect_arguments(function: &ItemFn, count: usize, shape: &str) -> syn::Result<()> {
    let signature = &function.sig;
    let method = matches!(signature.inputs.first(), Some(FnArg::Receiver(_)));
    let special = signature.asyncness.is_some() || !signature.generics.params.is_empty();
    if signature.inputs.len() != count || method || special {
        return Err(syn::Error::new_spanned(signature, format!("expected `{shape}`")));
    }
    Ok(())
}

/// `include_str!` of the manifest, once it is known to exist.
fn manifest(author: &Author) -> syn::Result<Tokens> {
    let path = author.folder.join("plugin.toml");
    if !path.is_file() {
        let message =
            format!("{} is missing: a plugin says in it what it is, what starts it and what it may do", path.display());
        return Err(syn::Error::new(Span::call_site(), message));
    }
    Ok(quote!(::core::include_str!(::core::concat!(::core::env!("CARGO_MANIFEST_DIR"), "/plugin.toml"))))
}

/// The custom section, for the first attribute of a crate.
fn section(author: &Author) -> Tokens {
    // One process of the compiler expands one crate, so this is the crate's own memory. Only where one process expands many times
    // (an editor) do later expansions go without, and there nothing is linked.
    static EMBEDDED: Mutex<BTreeSet<(PathBuf, String)>> = Mutex::new(BTreeSet::new());
    let this = (author.folder.clone(), author.name.clone());
    if !EMBEDDED.lock().unwrap_or_else(PoisonError::into_inner).insert(this) {
        return Tokens::new();
    }
    quote! {
        const LEN: usize = ::core::include_bytes!(::core::concat!(::core::env!("CARGO_MANIFEST_DIR"), "/plugin.toml")).len();
        #[used]
        #[unsafe(link_section = "kvasir:manifest")]
        static MANIFEST: [u8; LEN] = *::core::include_bytes!(::core::concat!(::core::env!("CARGO_MANIFEST_DIR"), "/plugin.toml"));
    }
}
