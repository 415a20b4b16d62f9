//! Verified tokens, remembered: a signature is verified once for a token that comes again and again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::keys::KeySet;
use super::token::Token;
use crate::config::JwtCache;

/// A bounded memory in two generations: when the young one is full it becomes the old one, whose content is forgotten then,
/// but for what has been asked for since.
#[derive(Debug)]
pub(super) struct TokenCache {
    config: JwtCache,
    generations: Mutex<Generations>,
}

#[derive(Debug, Default)]
struct Generations {
    young: Generation,
    old: Generation,
}

type Generation = HashMap<Box<[u8]>, Verified, foldhash::fast::RandomState>;

/// A token and the keys that verified it: with other keys it must be verified again.
#[derive(Clone, Debug)]
struct Verified {
    token: Arc<Token>,
    keys: Arc<KeySet>,
}

impl TokenCache {
    pub(super) fn new(config: JwtCache) -> Self {
        Self { config, generations: Mutex::default() }
    }

    /// The token of this text, when these keys have verified it.
    pub(super) fn get(&self, text: &[u8], keys: &Arc<KeySet>) -> Option<Arc<Token>> {
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = generations.young.get(text) {
            return Arc::ptr_eq(&found.keys, keys).then(|| found.token.clone());
        }
        let (text, found) = generations.old.remove_entry(text)?;
        let token = Arc::ptr_eq(&found.keys, keys).then(|| found.token.clone())?;
        self.put(&mut generations, text, found);
        Some(token)
    }

    /// Remembers a verified token.
    pub(super) fn insert(&self, text: &[u8], token: Arc<Token>, keys: Arc<KeySet>) {
        if text.len() <= self.config.max_token_size as usize {
            let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
            self.put(&mut generations, text.into(), Verified { token, keys });
        }
    }

    fn put(&self, generations: &mut Generations, text: Box<[u8]>, verified: Verified) {
        if generations.young.len() >= (self.config.size as usize / 2).max(1) {
            generations.old = std::mem::take(&mut generations.young);
        }
        generations.young.insert(text, verified);
    }
}
