//! Where fragments belong: `/config/<app>/<name>`, and where the result goes.
//!
//! Invariant: every key under `/config/` has exactly one [`Place`].

use kvasir_guest::Key;

/// Where fragments live.
pub const CONFIG: &str = "/config/";
/// Where results go.
pub const RENDERED: &str = "/rendered/";
/// The fragment that is not merged but says what the result must look like.
pub const SCHEMA: &str = "_schema";
/// Longest name of an application or a fragment, in bytes.
pub const NAME_BYTES_MAX: usize = 128;

/// What a key under `/config/` is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A fragment, or the schema.
    Fragment {
        /// The application.
        app: String,
        /// The fragment's name.
        name: String,
    },
    /// Of an application, but not where a fragment can be: the application does not render while it is there.
    Misplaced {
        /// The application.
        app: String,
        /// What is wrong with the key.
        reason: String,
    },
    /// Of no application.
    Foreign {
        /// What is wrong with the key.
        reason: String,
    },
}

impl Place {
    /// The application, if there is one.
    pub fn app(self) -> Option<String> {
        match self {
            Place::Fragment { app, .. } | Place::Misplaced { app, .. } => Some(app),
            Place::Foreign { .. } => None,
        }
    }
}

/// What a key is.
pub fn place(key: &Key) -> Place {
    let Some(rest) = key.strip_prefix(CONFIG) else {
        return Place::Foreign { reason: format!("expected text of the form {CONFIG}<app>/<fragment>") };
    };
    let (app, name) = match rest.split_once('/') {
        Some((app, name)) => (app, Some(name)),
        None => (rest, None),
    };
    if let Err(reason) = check_name(app) {
        return Place::Foreign { reason: format!("the application's name {reason}") };
    }
    let app = app.to_owned();
    match name {
        None => Place::Misplaced { app, reason: format!("expected {CONFIG}<app>/<fragment>, found no fragment name") },
        Some(name) if name.contains('/') => {
            Place::Misplaced { app, reason: format!("expected {CONFIG}<app>/<fragment>, found more segments") }
        }
        Some(name) => match check_name(name) {
            Ok(()) if name.starts_with('_') && name != SCHEMA => Place::Misplaced {
                app,
                reason: format!("names that start with `_` are reserved, and only `{SCHEMA}` has a meaning"),
            },
            Ok(()) => Place::Fragment { app, name: name.to_owned() },
            Err(reason) => Place::Misplaced { app, reason: format!("the fragment's name {reason}") },
        },
    }
}

fn check_name(name: &str) -> Result<(), &'static str> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    match name {
        "" => Err("is empty"),
        _ if name.len() > NAME_BYTES_MAX => Err("is longer than 128 bytes"),
        _ if !name.bytes().all(allowed) => Err("has other characters than letters, digits, `.`, `_` and `-`"),
        _ => Ok(()),
    }
}

/// The application whose output a key under `/rendered/` is.
pub fn output_app(key: &Key) -> Option<String> {
    let rest = key.strip_prefix(RENDERED)?;
    let app = rest.strip_suffix("/error").unwrap_or(rest);
    check_name(app).ok().map(|()| app.to_owned())
}

/// The key that is like a fragment without a name.
pub fn app_key(app: &str) -> String {
    format!("{CONFIG}{app}")
}

/// The prefix of the application's fragments.
pub fn fragments_prefix(app: &str) -> String {
    format!("{CONFIG}{app}/")
}

/// Where the application's configuration goes.
pub fn output_key(app: &str) -> String {
    format!("{RENDERED}{app}")
}

/// Where the reason goes.
pub fn error_key(app: &str) -> String {
    format!("{RENDERED}{app}/error")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_its_place() {
        let fragment = |app: &str, name: &str| Place::Fragment { app: app.into(), name: name.into() };
        assert_eq!(place(&Key::from("/config/web/10-base")), fragment("web", "10-base"));
        assert_eq!(place(&Key::from("/config/web/_schema")), fragment("web", "_schema"));
        for misplaced in
            ["/config/web", "/config/web/", "/config/web/a/b", "/config/web/a b", "/config/web/_x", "/config/web/ö"]
        {
            let place = place(&Key::from(misplaced));
            assert!(matches!(&place, Place::Misplaced { app, .. } if app == "web"), "{misplaced}: {place:?}");
        }
        let long = format!("/config/{}/x", "a".repeat(129));
        for foreign in
            [&b"/config/"[..], b"/config//x", b"/config/a b/x", b"/config/\xff/x", b"/config/a/\xff", long.as_bytes()]
        {
            assert!(matches!(place(&Key::from(foreign)), Place::Foreign { .. }), "{}", foreign.escape_ascii());
        }
    }

    #[test]
    fn an_output_knows_its_application() {
        assert_eq!(output_app(&Key::from("/rendered/web")).as_deref(), Some("web"));
        assert_eq!(output_app(&Key::from("/rendered/web/error")).as_deref(), Some("web"));
        assert_eq!(output_app(&Key::from("/rendered/error")).as_deref(), Some("error"));
        assert_eq!(output_app(&Key::from("/rendered/error/error")).as_deref(), Some("error"));
        assert_eq!(output_app(&Key::from("/rendered/web/other")), None);
    }
}
