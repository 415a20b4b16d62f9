//! What a plane and its replicas have in common: its id, the key of its session tokens and that of its nonces.

use std::fmt;

use aws_lc_rs::hmac;
use data_encoding::HEXLOWER;
use pem::Pem;
use rcgen::KeyPair;

use super::state::{StateError, StateFolder};
use super::token::parse_key;
use crate::identity::crypto_provider;

const FILE: &str = "plane.pem";
const KEY: &str = "PRIVATE KEY";
const NONCE_KEY: &str = "SKIFF NONCE KEY";
const UID: &str = "SKIFF PLANE UID";
const NONCE_KEY_BYTES: usize = 32;
const MAX_UID: usize = 128;

/// The id and the keys of a plane. Replicas have the same.
pub struct PlaneSecrets {
    uid: String,
    signing: KeyPair,
    nonce: [u8; NONCE_KEY_BYTES],
}

impl PlaneSecrets {
    /// New ones; the id is a random UUID unless `uid` is given.
    ///
    /// # Errors
    /// When there is no randomness, or the id is not 1 to 128 visible ASCII characters.
    pub fn generate(uid: Option<&str>) -> Result<Self, String> {
        let signing = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(|error| error.to_string())?;
        let uid = uid.map_or_else(random_uid, |uid| Ok(uid.to_owned()))?;
        Ok(Self { uid: checked(uid)?, signing, nonce: random()? })
    }

    /// Reads what [`Self::to_pem`] wrote.
    ///
    /// # Errors
    /// With what is missing.
    pub fn from_pem(text: &str) -> Result<Self, String> {
        let sections = pem::parse_many(text).map_err(|error| error.to_string())?;
        let section = |tag: &str| {
            sections.iter().find(|section| section.tag() == tag).map(Pem::contents).ok_or_else(|| format!("no section {tag}"))
        };
        let nonce = section(NONCE_KEY)?.try_into().map_err(|_| format!("{NONCE_KEY}: expected {NONCE_KEY_BYTES} bytes"))?;
        let uid = String::from_utf8(section(UID)?.to_owned()).map_err(|_| format!("{UID}: not text"))?;
        let signing = parse_key(&pem::encode(&Pem::new(KEY, section(KEY)?)))?;
        Ok(Self { uid: checked(uid)?, signing, nonce })
    }

    /// All of it as one text, to be kept secret.
    pub fn to_pem(&self) -> String {
        let sections =
            [Pem::new(KEY, self.signing.serialized_der()), Pem::new(NONCE_KEY, self.nonce), Pem::new(UID, self.uid.as_bytes())];
        pem::encode_many(&sections)
    }

    /// Those of a folder, made at the first time. A given `uid` counts before the one that was kept.
    ///
    /// # Errors
    /// When the file is corrupt, readable by others, or cannot be written.
    pub fn load_or_create(state: &StateFolder, uid: Option<&str>) -> Result<Self, StateError> {
        if let Some(text) = state.read(FILE)? {
            let kept = Self::from_pem(&text).map_err(|reason| state.corrupt(FILE, reason))?;
            let uid = uid.map_or_else(|| Ok(kept.uid.clone()), |uid| checked(uid.to_owned())).map_err(StateError::Crypto)?;
            return Ok(Self { uid, ..kept });
        }
        let made = Self::generate(uid).map_err(StateError::Crypto)?;
        state.write(FILE, &made.to_pem())?;
        Ok(made)
    }

    /// The plane's id: audience of credentials and of session tokens.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    pub(super) fn signing_key(&self) -> &KeyPair {
        &self.signing
    }

    pub(super) fn nonce_key(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &self.nonce)
    }
}

// By hand, so that the keys can never reach a log.
impl fmt::Debug for PlaneSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlaneSecrets").field("uid", &self.uid).finish_non_exhaustive()
    }
}

fn checked(uid: String) -> Result<String, String> {
    let good = (1..=MAX_UID).contains(&uid.len()) && uid.bytes().all(|byte| byte.is_ascii_graphic());
    if good { Ok(uid) } else { Err(format!("plane uid {uid:?}: expected 1 to {MAX_UID} visible ASCII characters")) }
}

pub(super) fn random<const N: usize>() -> Result<[u8; N], String> {
    let mut bytes = [0; N];
    crypto_provider().secure_random.fill(&mut bytes).map_err(|_| "no randomness".to_owned())?;
    Ok(bytes)
}

/// A UUID of version 4.
pub(super) fn random_uid() -> Result<String, String> {
    let mut bytes = random::<16>()?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let text = HEXLOWER.encode(&bytes);
    Ok(format!("{}-{}-{}-{}-{}", &text[..8], &text[8..12], &text[12..16], &text[16..20], &text[20..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_kept_and_shared() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::open(folder.path()).unwrap();
        let made = PlaneSecrets::load_or_create(&state, None).unwrap();
        assert_eq!((made.uid().len(), made.uid().as_bytes()[14]), (36, b'4'));
        let again = PlaneSecrets::load_or_create(&state, None).unwrap();
        assert_eq!((again.uid(), again.to_pem()), (made.uid(), made.to_pem()));
        let named = PlaneSecrets::load_or_create(&state, Some("plane-1")).unwrap();
        assert_eq!((named.uid(), named.nonce), ("plane-1", made.nonce));
        assert!(PlaneSecrets::load_or_create(&state, Some("a b")).is_err());
        assert_eq!(PlaneSecrets::from_pem(&made.to_pem()).unwrap().uid(), made.uid());
        assert!(PlaneSecrets::from_pem("").unwrap_err().contains("no section"));
        assert!(!format!("{made:?}").contains("PRIVATE"));
    }
}
