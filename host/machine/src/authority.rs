//! The authorities whose certificates members trust, while they are being replaced and after: every member learns them from here.
//!
//! Certificates alone; no key is ever here. The machine does not look into them.
//!
//! **Invariant:** the epoch grows with every change, and one of the authorities signs.

use bytes::Bytes;
use kvasir_api::command::AuthoritySet;
use kvasir_api::{Error, limits};

use crate::codec::{FormatError, Reader, Writer};
use crate::table::{FORMAT, META_AUTHORITIES};
use crate::{Effects, Reply, State, Table};

/// The authorities of a cluster that has replaced its first one, or is about to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorities {
    /// How often they were changed.
    pub epoch: u64,
    /// Certificates (DER) of those that are trusted.
    pub roots: Vec<Bytes>,
    /// The one of them that signs.
    pub signing: usize,
}

impl Authorities {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new(FORMAT, self.roots.iter().map(Bytes::len).sum::<usize>() + 32);
        out.varint(self.epoch);
        out.varint(self.signing as u64);
        out.varint(self.roots.len() as u64);
        self.roots.iter().for_each(|root| out.bytes(root));
        out.finish()
    }

    pub(crate) fn decode(value: &Bytes) -> Result<Self, FormatError> {
        let mut input = Reader::new("authorities", FORMAT, value)?;
        let (epoch, signing, count) = (input.varint()?, input.varint()?, input.varint()?);
        if count > limits::AUTHORITIES_MAX as u64 || signing >= count || epoch == 0 || epoch > i64::MAX as u64 {
            return Err(input.invalid("its numbers contradict each other"));
        }
        let roots: Vec<Bytes> = (0..count).map(|_| input.bytes()).collect::<Result<_, _>>()?;
        if !roots.iter().all(is_sized) {
            return Err(input.invalid("a certificate is too large, or empty"));
        }
        input.end()?;
        Ok(Self { epoch, roots, signing: signing as usize })
    }
}

fn is_sized(root: &Bytes) -> bool {
    (1..=limits::AUTHORITY_BYTES_MAX).contains(&root.len())
}

impl State {
    /// The authorities, once they were ever changed; before, each member knows the first by its own files.
    pub fn authorities(&self) -> Option<&Authorities> {
        self.authorities.as_ref()
    }

    pub(crate) fn apply_authority_set(&mut self, request: &AuthoritySet, effects: &mut Effects) -> Result<Reply, Error> {
        let epoch = self.authorities.as_ref().map_or(0, |authorities| authorities.epoch);
        if request.expect_epoch != epoch {
            let expected = request.expect_epoch;
            return Err(Error::Precondition(format!("the authorities are at epoch {epoch}, not {expected}: look again")));
        }
        let sized = (1..=limits::AUTHORITIES_MAX).contains(&request.roots.len()) && request.roots.iter().all(is_sized);
        if !sized || request.signing as usize >= request.roots.len() {
            let most = limits::AUTHORITIES_MAX;
            return Err(Error::Invalid(format!("a cluster trusts 1 to {most} authorities, and one of them signs")));
        }
        let roots = request.roots.iter().map(|root| Bytes::copy_from_slice(root)).collect();
        let authorities = Authorities { epoch: epoch + 1, roots, signing: request.signing as usize };
        effects.set(Table::Meta, META_AUTHORITIES, authorities.encode());
        self.authorities = Some(authorities);
        Ok(Reply::AuthoritySet { revision: self.revision(), epoch: epoch + 1 })
    }
}
