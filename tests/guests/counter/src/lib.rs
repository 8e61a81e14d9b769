//! A plugin for tests that counts: what `/count/total` says afterwards is how often an event had an effect.
//!
//! For each event under `/in/` it adds one to `/count/total` and to `/count/key/<rest of the key>`, and writes the event's revision
//! to `/count/last-revision`; all are decimal text. A resync cannot count, so it writes `/count/resync` instead.
//!
//! Invariant: nothing is kept between runs; the counts live in the store only.

use kvasir_guest::prelude::*;

/// The prefix that is counted.
pub const IN: &str = "/in/";
/// Events counted, in all.
pub const TOTAL: &str = "/count/total";
/// Events counted, for one key.
pub const BY_KEY: &str = "/count/key/";
/// The revision of the last event counted.
pub const LAST_REVISION: &str = "/count/last-revision";
/// The revision of the last resync: from here on the counts are not those of every event.
pub const RESYNC: &str = "/count/resync";

#[kvasir_guest::reactor(resync = on_resync)]
fn on_event(cx: &mut Cx, event: Event<Raw>) -> Outcome {
    let Some(suffix) = event.key.as_bytes().strip_prefix(IN.as_bytes()) else {
        bail_reject!("the key is not under {IN}");
    };
    increment(cx, TOTAL.as_bytes())?;
    increment(cx, &[BY_KEY.as_bytes(), suffix].concat())?;
    cx.put(LAST_REVISION, event.revision.to_string())?;
    Ok(())
}

fn on_resync(cx: &mut Cx, page: Resync<Raw>) -> Outcome {
    if page.first {
        cx.put(RESYNC, page.at.to_string())?;
    }
    Ok(())
}

/// Reads a count and stages it plus one.
fn increment(cx: &mut Cx, key: &[u8]) -> Outcome {
    let count = match cx.get(key)? {
        Some(entry) => match entry.value.as_str().and_then(|text| text.parse::<u64>().ok()) {
            Some(count) => count,
            None => bail_reject!("{} does not hold a count", entry.key),
        },
        None => 0,
    };
    cx.put(key, (count + 1).to_string())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use kvasir_guest::testing::Harness;

    use super::*;

    #[test]
    fn every_event_is_counted_once() {
        let mut h = Harness::reactor::<on_event>();
        for n in 0..200 {
            h.put(format!("{IN}{}", n % 3), "x");
            if n % 7 == 0 {
                h.crash_before_commit();
                h.run();
            }
        }
        h.delete(format!("{IN}0"));
        let revision = h.revision();
        h.run();
        assert_eq!(h.get_text(TOTAL).as_deref(), Some("201"));
        assert_eq!(h.get_text(format!("{BY_KEY}0")).as_deref(), Some("68"));
        assert_eq!(h.get_text(LAST_REVISION), Some(revision.to_string()));
        assert_eq!(h.get_text(RESYNC), None);
    }

    #[test]
    fn a_resync_is_visible() {
        let mut h = Harness::reactor::<on_event>();
        h.put("/in/a", "x");
        let at = h.revision();
        h.compact();
        h.run();
        assert_eq!((h.get_text(TOTAL), h.get_text(RESYNC)), (None, Some(at.to_string())));
    }
}
