//! Messages that resemble each other, kept in little space.
//!
//! Of two clusters of istiod's little more than the names differs. Each message is packed against a dictionary of the first
//! ones of its kind, which leaves less than two hundred bytes of a cluster's twelve hundred. What is packed can be read again:
//! [`Packed`] is the source of resources that nobody uses yet.

use std::sync::Arc;

use lz4_flex::block::{compress_with_dict, decompress_with_dict};
use skiff_proxy::config::Source;

use crate::translate::envoy::Packable;

/// Of the messages that a dictionary is made of, together.
const MAX_DICTIONARY: usize = 16 * 1024;
/// A message that is packed to less than one part in this many is like those of the dictionary.
const ALIKE: usize = 4;

/// Packs the messages of a kind.
#[derive(Debug, Default)]
pub(super) struct Packer {
    dictionary: Arc<Vec<u8>>,
}

impl Packer {
    pub(super) fn pack(&mut self, bytes: &[u8]) -> Arc<Packed> {
        let mut packed = compress_with_dict(bytes, &self.dictionary);
        let is_new = packed.len() > bytes.len() / ALIKE;
        if is_new && self.dictionary.len() + bytes.len() <= MAX_DICTIONARY {
            // Those that were packed before keep the shorter one.
            self.dictionary = Arc::new([self.dictionary.as_slice(), bytes].concat());
            packed = compress_with_dict(bytes, &self.dictionary);
        }
        Arc::new(Packed { dictionary: Arc::clone(&self.dictionary), length: bytes.len(), bytes: packed.into() })
    }
}

/// A message, packed.
#[derive(Debug)]
pub(super) struct Packed {
    dictionary: Arc<Vec<u8>>,
    length: usize,
    bytes: Box<[u8]>,
}

impl Packed {
    /// The message as it was.
    pub(super) fn unpack(&self) -> Vec<u8> {
        // It was packed here, so it can be unpacked.
        decompress_with_dict(&self.bytes, self.length, &self.dictionary).unwrap_or_default()
    }

    /// Bytes that it takes, the dictionary aside.
    #[cfg(test)]
    pub(super) fn size(&self) -> usize {
        size_of::<Self>() + self.bytes.len()
    }
}

impl<T: Packable + Send + Sync> Source<T> for Packed {
    fn make(&self) -> Arc<T> {
        Arc::new(T::again(&self.unpack()))
    }
}
