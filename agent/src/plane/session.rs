//! Session tokens: what a workload shows once the plane has let it in (Tetrate's Workload Onboarding Token).

use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rcgen::PublicKeyData;
use serde::{Deserialize, Serialize};

use super::objects::ObjectKey;
use super::policy::Subject;
use super::secrets::PlaneSecrets;
use crate::identity::{Clock, Token};
use crate::onboarding::identity::WorkloadIdentity;

const MAX_TOKEN_BYTES: usize = 16 * 1024;

/// Issues and verifies session tokens (ES256 only).
pub(super) struct SessionTokens {
    encoding: EncodingKey,
    decoding: DecodingKey,
    uid: String,
    lifetime: Duration,
    clock: Clock,
}

/// What a session token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Session {
    /// The workload's WorkloadAutoRegistration and WorkloadEntry.
    pub(super) name: ObjectKey,
    /// The group it may join.
    pub(super) group: ObjectKey,
    /// Who it is.
    pub(super) subject: Subject,
    /// Its addresses, where AWS was asked for them.
    pub(super) addresses: Option<Vec<IpAddr>>,
    /// When the token ends.
    pub(super) expires_at: SystemTime,
}

/// Why a session token is not accepted. Never holds the token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SessionError {
    #[error("session token refused: {0}")]
    Invalid(String),
    #[error("session token expired {0:?} ago")]
    Expired(Duration),
}

#[derive(Serialize, Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    azp: String,
    sub: String,
    iat: u64,
    exp: u64,
    claims: Custom,
}

#[derive(Serialize, Deserialize)]
struct Custom {
    workload: Workload,
    workload_group: Group,
}

#[derive(Serialize, Deserialize)]
struct Workload {
    identity: WorkloadIdentity,
    placement_verified: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    addresses: Option<Vec<IpAddr>>,
}

#[derive(Serialize, Deserialize)]
struct Group {
    namespace: String,
    name: String,
}

impl SessionTokens {
    pub(super) fn new(secrets: &PlaneSecrets, lifetime: Duration, clock: Clock) -> Self {
        let key = secrets.signing_key();
        Self {
            encoding: EncodingKey::from_ec_der(key.serialized_der()),
            decoding: DecodingKey::from_ec_der(key.der_bytes()),
            uid: secrets.uid().to_owned(),
            lifetime,
            clock,
        }
    }

    /// When a token that is issued now ends.
    pub(super) fn expiry(&self) -> SystemTime {
        self.clock.now() + self.lifetime
    }

    /// A token that says `session`, to the second.
    pub(super) fn issue(&self, session: &Session) -> Result<Token, String> {
        let Session { name, group, subject, addresses, expires_at } = session;
        let claims = Claims {
            iss: self.uid.clone(),
            aud: self.uid.clone(),
            azp: self.uid.clone(),
            sub: name.to_string(),
            iat: self.clock.since_epoch().as_secs(),
            exp: expires_at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            claims: Custom {
                workload: Workload {
                    identity: subject.identity.clone(),
                    placement_verified: subject.placement_verified,
                    addresses: addresses.clone(),
                },
                workload_group: Group { namespace: group.namespace.clone(), name: group.name.clone() },
            },
        };
        let token = jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &self.encoding);
        token.map(|token| Token::new(&token)).map_err(|_| "the session token could not be signed".to_owned())
    }

    /// What the token says, if it is one of this plane's and its time is now.
    pub(super) fn verify(&self, token: &str) -> Result<Session, SessionError> {
        let invalid = |reason: &str| SessionError::Invalid(reason.to_owned());
        if token.len() > MAX_TOKEN_BYTES {
            return Err(invalid("too long"));
        }
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_required_spec_claims(&["exp", "aud", "iss", "sub"]);
        validation.set_audience(&[&self.uid]);
        validation.set_issuer(&[&self.uid]);
        // Judged below by our clock, where jsonwebtoken would take the system's.
        validation.validate_exp = false;
        let Claims { azp, sub, exp, claims: Custom { workload, workload_group }, .. } =
            jsonwebtoken::decode(token, &self.decoding, &validation)
                .map_err(|error| SessionError::Invalid(error.to_string()))?
                .claims;
        if azp != self.uid {
            return Err(invalid("azp is another plane"));
        }
        let now = self.clock.since_epoch().as_secs();
        if now >= exp {
            return Err(SessionError::Expired(Duration::from_secs(now - exp)));
        }
        let name: ObjectKey = sub.parse().map_err(|_| invalid("sub is not <namespace>/<name>"))?;
        if name.namespace != workload_group.namespace {
            return Err(invalid("sub and workload_group are in different namespaces"));
        }
        Ok(Session {
            name,
            group: ObjectKey::new(workload_group.namespace, workload_group.name),
            subject: Subject { identity: workload.identity, placement_verified: workload.placement_verified },
            addresses: workload.addresses,
            expires_at: UNIX_EPOCH + Duration::from_secs(exp),
        })
    }
}

// By hand, so that the key can never reach a log.
impl fmt::Debug for SessionTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionTokens").field("uid", &self.uid).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use serde_json::{Value, json};

    use super::*;
    use crate::onboarding::identity::JwtIdentity;

    fn session() -> Session {
        let identity = WorkloadIdentity::Jwt(JwtIdentity {
            issuer: "https://a.example".to_owned(),
            subject: "vm-1".to_owned(),
            attributes: BTreeMap::new(),
        });
        Session {
            name: ObjectKey::new("bookinfo", "ratings-jwt-a-vm-1"),
            group: ObjectKey::new("bookinfo", "ratings"),
            subject: Subject { identity, placement_verified: true },
            addresses: Some(vec!["10.0.0.1".parse().unwrap()]),
            expires_at: UNIX_EPOCH + Duration::from_secs(1_800_003_600),
        }
    }

    fn tokens(secrets: &PlaneSecrets, now: &Arc<AtomicU64>) -> SessionTokens {
        let now = now.clone();
        let clock = Clock::new(move || UNIX_EPOCH + Duration::from_secs(now.load(Ordering::Relaxed)));
        SessionTokens::new(secrets, Duration::from_secs(3600), clock)
    }

    fn payload(token: &Token) -> Value {
        let part = token.expose().split('.').nth(1).unwrap();
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
    }

    #[test]
    fn a_token_says_what_tetrates_says_and_ends() {
        let now = Arc::new(AtomicU64::new(1_800_000_000));
        let secrets = PlaneSecrets::generate(Some("plane-1")).unwrap();
        let ours = tokens(&secrets, &now);
        let token = ours.issue(&session()).unwrap();
        let claims = payload(&token);
        assert_eq!(
            (&claims["aud"], &claims["azp"], &claims["sub"]),
            (&json!("plane-1"), &json!("plane-1"), &json!("bookinfo/ratings-jwt-a-vm-1"))
        );
        assert_eq!(claims["claims"]["workload_group"], json!({"namespace": "bookinfo", "name": "ratings"}));
        assert_eq!(claims["claims"]["workload"]["identity"]["jwt"]["subject"], "vm-1");
        // A replica has the same secrets.
        assert_eq!(tokens(&PlaneSecrets::from_pem(&secrets.to_pem()).unwrap(), &now).verify(token.expose()), Ok(session()));
        now.fetch_add(3599, Ordering::Relaxed);
        assert_eq!(ours.verify(token.expose()), Ok(session()));
        now.fetch_add(1, Ordering::Relaxed);
        assert_eq!(ours.verify(token.expose()), Err(SessionError::Expired(Duration::ZERO)));
    }

    #[test]
    fn tokens_of_others_and_changed_ones_are_refused() {
        let now = Arc::new(AtomicU64::new(1_800_000_000));
        let secrets = PlaneSecrets::generate(Some("plane-1")).unwrap();
        let ours = tokens(&secrets, &now);
        let good = ours.issue(&session()).unwrap();
        let parts: Vec<_> = good.expose().split('.').collect();
        let mut claims = payload(&good);
        claims["sub"] = json!("bookinfo/ratings-jwt-a-vm-2");
        let changed = URL_SAFE_NO_PAD.encode(claims.to_string());
        let unsigned = URL_SAFE_NO_PAD.encode(r#"{"alg":"none","typ":"JWT"}"#);
        let other_key = tokens(&PlaneSecrets::generate(Some("plane-1")).unwrap(), &now).issue(&session()).unwrap();
        let mut renamed = PlaneSecrets::from_pem(&secrets.to_pem()).unwrap();
        renamed = PlaneSecrets::from_pem(&renamed.to_pem().replace(&base64_of("plane-1"), &base64_of("plane-2"))).unwrap();
        let other_audience = tokens(&renamed, &now).issue(&session()).unwrap();
        let elsewhere = ours.issue(&Session { name: ObjectKey::new("kube-system", "ratings"), ..session() }).unwrap();
        for (what, token) in [
            ("changed", format!("{}.{changed}.{}", parts[0], parts[2])),
            ("unsigned", format!("{unsigned}.{}.", parts[1])),
            ("another key", other_key.expose().to_owned()),
            ("another audience", other_audience.expose().to_owned()),
            ("another namespace", elsewhere.expose().to_owned()),
            ("garbage", "a.b.c".to_owned()),
            ("empty", String::new()),
            ("long", "a".repeat(MAX_TOKEN_BYTES + 1)),
        ] {
            assert!(matches!(ours.verify(&token), Err(SessionError::Invalid(_))), "{what}");
        }
        assert!(ours.verify(good.expose()).is_ok());
    }

    #[test]
    fn every_claim_counts() {
        let now = Arc::new(AtomicU64::new(1_800_000_000));
        let ours = tokens(&PlaneSecrets::generate(Some("plane-1")).unwrap(), &now);
        let claims = payload(&ours.issue(&session()).unwrap());
        let signed = |change: &dyn Fn(&mut Value)| {
            let mut claims = claims.clone();
            change(&mut claims);
            jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &ours.encoding).unwrap()
        };
        assert_eq!(ours.verify(&signed(&|_| {})), Ok(session()));
        // Of the same key, for something else.
        for claim in ["iss", "aud", "azp", "sub", "exp", "claims"] {
            let others = signed(&|claims| claims[claim] = json!("plane-2"));
            assert!(matches!(ours.verify(&others), Err(SessionError::Invalid(_))), "{claim}");
            let without = signed(&|claims| drop(claims.as_object_mut().unwrap().remove(claim)));
            assert!(matches!(ours.verify(&without), Err(SessionError::Invalid(_))), "no {claim}");
        }
        let long = signed(&|claims| claims["more"] = json!("a".repeat(MAX_TOKEN_BYTES)));
        assert_eq!(ours.verify(&long), Err(SessionError::Invalid("too long".to_owned())));
    }

    fn base64_of(text: &str) -> String {
        base64::engine::general_purpose::STANDARD.encode(text)
    }
}
