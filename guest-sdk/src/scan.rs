//! A scan that fetches its pages as it goes.
//!
//! Invariant: at most one page is in memory; a failed page ends the scan after its error.

use std::collections::VecDeque;
use std::rc::Rc;

use crate::backend::Backend;
use crate::{Entry, Error, Key, Raw, Selection};

/// Iterator over the selected keys in order; see [`Cx::scan`](crate::Cx::scan).
pub struct Scan {
    backend: Rc<dyn Backend>,
    what: Selection,
    page_limit: u32,
    keys_only: bool,
    after: Option<Key>,
    page: VecDeque<Entry<Raw>>,
    /// No page is left to fetch.
    drained: bool,
}

impl Scan {
    pub(crate) fn new(backend: Rc<dyn Backend>, what: Selection) -> Self {
        Scan { backend, what, page_limit: 0, keys_only: false, after: None, page: VecDeque::new(), drained: false }
    }

    /// Leaves the values empty.
    #[must_use]
    pub fn keys_only(mut self) -> Self {
        self.keys_only = true;
        self
    }

    /// Starts behind this key.
    #[must_use]
    pub fn after(mut self, key: impl AsRef<[u8]>) -> Self {
        self.after = Some(Key::from(key.as_ref()));
        self
    }

    /// Entries fetched by one host call; 0 (the default) is the host's page size.
    #[must_use]
    pub fn page_size(mut self, entries: u32) -> Self {
        self.page_limit = entries;
        self
    }

    /// Fetches one page: the next entries in order of key, empty at the end. For those who work page by page.
    ///
    /// # Errors
    /// [`Error::Denied`] without a read grant for the range; [`Error::Limit`] past the host-call limit.
    pub fn next_page(&mut self) -> Result<Vec<Entry<Raw>>, Error> {
        if self.page.is_empty() {
            self.fetch()?;
        }
        Ok(self.page.drain(..).collect())
    }

    fn fetch(&mut self) -> Result<(), Error> {
        while self.page.is_empty() && !self.drained {
            let after = self.after.as_ref().map(Key::as_bytes);
            let fetched =
                self.backend.scan(&self.what, after, self.page_limit, self.keys_only).inspect_err(|_| self.drained = true)?;
            match fetched.entries.last() {
                Some(last) => {
                    self.after = Some(last.key.clone());
                    self.drained = !fetched.more;
                }
                // A page without entries cannot move the cursor: whatever it says, this is the end.
                None => self.drained = true,
            }
            self.page = fetched.entries.into();
        }
        Ok(())
    }
}

impl Iterator for Scan {
    type Item = Result<Entry<Raw>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.page.is_empty()
            && let Err(error) = self.fetch()
        {
            return Some(Err(error));
        }
        self.page.pop_front().map(Ok)
    }
}
