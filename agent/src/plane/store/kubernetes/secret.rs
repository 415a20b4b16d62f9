//! What all replicas have to have in common, in a Secret: whoever comes first makes it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value as Json, json};

use super::client::{ApiServer, CallError, Written, core, segment};
use crate::plane::objects::ObjectKey;
use crate::plane::store::StoreError;

/// The Secret's only entry.
const ENTRY: &str = "plane.pem";
/// As many as can come between reading and making it.
const ATTEMPTS: usize = 5;

/// What the Secret `name` says, else what `make` says, which it says from then on.
pub(super) async fn shared(
    server: &ApiServer,
    namespace: &str,
    name: &str,
    make: impl FnOnce() -> Result<String, String>,
) -> Result<String, StoreError> {
    let key = ObjectKey::new(namespace, name);
    let place = core(namespace, "secrets");
    let mut made: Option<String> = None;
    let mut make = Some(make);
    for _ in 0..ATTEMPTS {
        // Read as JSON, whose errors cannot quote it.
        let stored: Option<Json> = server.get(&place, segment(name)).await.map_err(|error| error.of(&key))?;
        if let Some(secret) = stored {
            return text(&secret).ok_or_else(|| StoreError::Refused(format!("Secret {key}: expected {ENTRY}, in base64")));
        }
        if let Some(make) = make.take() {
            made = Some(make().map_err(StoreError::Unavailable)?);
        }
        let body = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": namespace},
            "type": "Opaque",
            "immutable": true,
            "data": {ENTRY: STANDARD.encode(made.as_deref().unwrap_or_default())},
        });
        let request = place.create(&Default::default(), body.to_string().into_bytes());
        let request = request.map_err(|error| CallError::from(error).of(&key))?;
        let Written { result, .. } = server.write::<Json>(request).await;
        match result {
            // What is stored is what counts: an earlier attempt may have been another's.
            Ok(_) => {}
            Err(error) if error.code() == 409 => {}
            Err(error) => return Err(error.of(&key)),
        }
    }
    Err(StoreError::Conflict(key))
}

fn text(secret: &Json) -> Option<String> {
    let bytes = STANDARD.decode(secret["data"][ENTRY].as_str()?).ok()?;
    String::from_utf8(bytes).ok().filter(|text| !text.trim().is_empty())
}
