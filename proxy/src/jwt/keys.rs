//! JSON Web Key Sets (RFC 7517), compiled: every key is parsed once for every algorithm that it may be used with.
//!
//! What a key may be used with follows from the key alone (type, curve, `alg`), never from the token: no public key is ever
//! taken for a shared secret.

use aws_lc_rs::hmac;
use aws_lc_rs::rsa::PublicKeyComponents;
use aws_lc_rs::signature::{ED25519, ParsedPublicKey};
use serde_json::{Map, Value};

use super::algorithm::{Algorithm, CURVES, HMAC, RSA};
use super::json;
use super::status::Status;
use super::token::{Token, base64url};

/// Keys of a set that are kept; one with more is refused, as a token without `kid` is tried with each of them.
const MAX_KEYS: usize = 256;
/// Bytes of a shortest RSA modulus: NIST disallows shorter ones (SP 800-131A).
const MIN_MODULUS: usize = 256;
const ED25519_KEY: usize = 32;
const ED25519_SIGNATURE: usize = 64;

/// A compiled key set.
#[derive(Debug)]
pub(super) struct KeySet(Vec<Key>);

#[derive(Debug)]
struct Key {
    id: Option<Box<str>>,
    /// The only algorithm, where the key names one.
    algorithm: Option<Algorithm>,
    verifiers: Vec<(Algorithm, Verifier)>,
}

#[derive(Debug)]
enum Verifier {
    Public(ParsedPublicKey),
    Secret(Box<hmac::Key>),
}

impl Verifier {
    fn verifies(&self, signed: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Public(key) => key.verify_sig(signed, signature).is_ok(),
            // Compares in constant time.
            Self::Secret(key) => hmac::verify(key, signed, signature).is_ok(),
        }
    }
}

impl KeySet {
    /// Compiles a set. Keys of kinds that are not known here are left out, as the RFC asks.
    ///
    /// # Errors
    /// Envoy's words for the first thing that is wrong, when no key is left.
    pub(super) fn parse(text: &[u8]) -> Result<Self, &'static str> {
        let set = json::object(text).ok_or("Jwks is an invalid JSON")?;
        let list = match set.get("keys") {
            None => return Err("Jwks does not have [keys] field"),
            Some(Value::Array(list)) => list,
            Some(_) => return Err("[keys] in Jwks is not an array"),
        };
        if list.len() > MAX_KEYS {
            return Err("Jwks has more than 256 keys");
        }
        let mut keys = Vec::new();
        let mut wrong = None;
        for entry in list {
            match entry.as_object().ok_or("[keys] in Jwks is not an array").and_then(Key::parse) {
                Ok(key) => keys.push(key),
                Err(reason) => wrong = wrong.or(Some(reason)),
            }
        }
        if keys.is_empty() { Err(wrong.unwrap_or(Status::NoValidKeys.text())) } else { Ok(Self(keys)) }
    }

    /// Verifies the signature of a token with the keys of its `kid`, all of them when it has none.
    pub(super) fn verify(&self, token: &Token) -> Result<(), Status> {
        let (signed, signature) = token.signed();
        let mut found = false;
        for key in &self.0 {
            let other_id = matches!((token.key_id(), key.id.as_deref()), (Some(asked), Some(id)) if asked != id);
            if other_id || key.algorithm.is_some_and(|algorithm| algorithm != token.algorithm) {
                continue;
            }
            found = true;
            let Some((_, verifier)) = key.verifiers.iter().find(|(algorithm, _)| *algorithm == token.algorithm) else { continue };
            if token.algorithm == Algorithm::EdDSA && signature.len() != ED25519_SIGNATURE {
                return Err(Status::Ed25519Length);
            }
            if verifier.verifies(signed, signature) {
                return Ok(());
            }
        }
        Err(if found { Status::VerificationFails } else { Status::NoMatchingKey })
    }
}

impl Key {
    fn parse(jwk: &Map<String, Value>) -> Result<Self, &'static str> {
        let kind = match jwk.get("kty") {
            None => return Err("[kty] is missing in [keys]"),
            Some(kind) => kind.as_str().ok_or("[kty] is bad in [keys]")?,
        };
        let name = jwk.get("alg").and_then(Value::as_str).unwrap_or_default();
        let verifiers = match kind {
            "RSA" => rsa(jwk, name)?,
            "EC" => ec(jwk, name)?,
            "oct" => oct(jwk, name)?,
            "OKP" => okp(jwk, name)?,
            _ => return Err("[kty] is not supported in [keys]"),
        };
        let id = jwk.get("kid").and_then(Value::as_str).filter(|id| !id.is_empty()).map(Into::into);
        // The name fits the kind by now; one that is not known fits no token.
        let algorithm = if name.is_empty() { None } else { Some(Algorithm::named(name).ok_or("[alg] is not supported")?) };
        Ok(Self { id, algorithm, verifiers })
    }
}

/// A base64url member; `missing` and `wrong` are Envoy's words for it.
fn bytes(jwk: &Map<String, Value>, name: &str, missing: &'static str, wrong: &'static str) -> Result<Vec<u8>, &'static str> {
    let text = jwk.get(name).ok_or(missing)?.as_str().ok_or(wrong)?;
    base64url(text).ok_or(match name {
        "x" | "y" => "Jwks EC [x] or [y] field is an invalid Base64.",
        "k" => "Jwks Oct key is an invalid Base64",
        _ => "Jwks RSA [n] or [e] field is missing or has a parse error",
    })
}

/// A number without leading zeros.
fn number(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    &bytes[zeros..]
}

fn rsa(jwk: &Map<String, Value>, name: &str) -> Result<Vec<(Algorithm, Verifier)>, &'static str> {
    const INVALID: &str = "Jwks RSA [n] or [e] field is missing or has a parse error";
    if !name.is_empty() && !name.starts_with("RS") && !name.starts_with("PS") {
        return Err("[alg] is not started with [RS] or [PS] for an RSA key");
    }
    let n = bytes(jwk, "n", "[n] field is missing for a RSA key", "[n] field is not string for a RSA key")?;
    let e = bytes(jwk, "e", "[e] field is missing for a RSA key", "[e] field is not string for a RSA key")?;
    let (n, e) = (number(&n), number(&e));
    if n.len() < MIN_MODULUS {
        return Err("RSA keys of less than 2048 bits are not accepted");
    }
    if e != [3] && e != [1, 0, 1] {
        return Err(INVALID);
    }
    let components = PublicKeyComponents { n, e };
    let asked = Algorithm::named(name);
    RSA.into_iter()
        .filter(|(algorithm, _)| asked.is_none_or(|asked| asked == *algorithm))
        .map(|(algorithm, parameters)| {
            let key = components.to_parsed_public_key(parameters).map_err(|_| INVALID)?;
            Ok((algorithm, Verifier::Public(key)))
        })
        .collect()
}

fn ec(jwk: &Map<String, Value>, name: &str) -> Result<Vec<(Algorithm, Verifier)>, &'static str> {
    const INVALID: &str = "Jwks EC [x] and [y] fields have a parse error.";
    if !name.is_empty() && !name.starts_with("ES") {
        return Err("[alg] is not started with [ES] for an EC key");
    }
    let curve = match jwk.get("crv") {
        None => "",
        Some(curve) => curve.as_str().ok_or("[crv] field is not string for an EC key")?,
    };
    let algorithm = Algorithm::named(name);
    let curve = match (curve, name) {
        ("", "") => CURVES.first(),
        ("", _) => CURVES.iter().find(|known| Some(known.algorithm) == algorithm),
        (curve, "") => CURVES.iter().find(|known| known.name == curve),
        (curve, _) => {
            let fits = CURVES.iter().find(|known| known.name == curve && Some(known.algorithm) == algorithm);
            Some(fits.ok_or("[crv] field specified is not compatible with [alg] for an EC key")?)
        }
    };
    let curve = curve.ok_or("[crv] or [alg] field is not supported for an EC key")?;
    let x = bytes(jwk, "x", "[x] field is missing for an EC key", "[x] field is not string for an EC key")?;
    let y = bytes(jwk, "y", "[y] field is missing for an EC key", "[y] field is not string for an EC key")?;
    let mut point = vec![4];
    for coordinate in [number(&x), number(&y)] {
        let padding = curve.size.checked_sub(coordinate.len()).ok_or(INVALID)?;
        point.resize(point.len() + padding, 0);
        point.extend_from_slice(coordinate);
    }
    let key = ParsedPublicKey::new(curve.verifier, &point).map_err(|_| INVALID)?;
    Ok(vec![(curve.algorithm, Verifier::Public(key))])
}

fn oct(jwk: &Map<String, Value>, name: &str) -> Result<Vec<(Algorithm, Verifier)>, &'static str> {
    let asked = Algorithm::named(name);
    if !name.is_empty() && HMAC.iter().all(|(algorithm, _)| Some(*algorithm) != asked) {
        return Err("[alg] does not start with [HS] for an HMAC key");
    }
    let k = bytes(jwk, "k", "[k] field is missing for an HMAC key", "[k] field is not string for an HMAC key")?;
    if k.is_empty() {
        return Err("Jwks Oct key is an invalid Base64");
    }
    let fits = HMAC.into_iter().filter(|(algorithm, _)| asked.is_none_or(|asked| asked == *algorithm));
    Ok(fits.map(|(algorithm, hash)| (algorithm, Verifier::Secret(Box::new(hmac::Key::new(hash, &k))))).collect())
}

fn okp(jwk: &Map<String, Value>, name: &str) -> Result<Vec<(Algorithm, Verifier)>, &'static str> {
    if !name.is_empty() && name != "EdDSA" {
        return Err("[alg] is not [EdDSA] for an OKP key");
    }
    match jwk.get("crv") {
        None => return Err("[crv] field is missing for an OKP key"),
        Some(Value::String(curve)) if curve == "Ed25519" => {}
        Some(Value::String(_)) => return Err("[crv] field is not supported for an OKP key"),
        Some(_) => return Err("[crv] field is not string for an OKP key"),
    }
    let x = jwk.get("x").ok_or("[x] field is missing for an OKP key")?;
    let x = x.as_str().ok_or("[x] field is not string for an OKP key")?;
    let x = base64url(x).ok_or("Jwks OKP [x] field is an invalid Base64.")?;
    if x.len() != ED25519_KEY {
        return Err("Jwks OKP [x] field is wrong length.");
    }
    let key = ParsedPublicKey::new(&ED25519, &x).map_err(|_| "Jwks OKP [x] field is wrong length.")?;
    Ok(vec![(Algorithm::EdDSA, Verifier::Public(key))])
}
