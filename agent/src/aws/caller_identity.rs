//! The proof of who a workload is: a request `sts:GetCallerIdentity`, signed with its role's credentials and sent by whom it is
//! meant for. STS answers with account, role and session; ECS calls the session by the task's id, EC2 by the instance's.
//!
//! The signature covers two headers that are not in the URL and that the verifier sets itself: its own name, so that no other
//! verifier can pass the proof on, and its nonce, so that nobody can show it twice.

use std::time::SystemTime;

use super::arn::Region;
use super::credentials::Credentials;
use super::sigv4::{PresignedUrl, Scope, presign};

/// Header with the name of who the proof is for.
pub const PLANE_HEADER: &str = "x-onboarding-plane";
/// Header with the nonce.
pub const NONCE_HEADER: &str = "x-onboarding-nonce";
/// Seconds that a proof is to be used within.
pub const EXPIRES_SECONDS: u32 = 60;

pub(super) const ACTION: &str = "GetCallerIdentity";
pub(super) const VERSION: &str = "2011-06-15";
pub(super) const SERVICE: &str = "sts";

/// What a proof is bound to: visible ASCII, at most 256 characters each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    plane: String,
    nonce: String,
}

/// Plane or nonce cannot be in a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the {0} of a proof: expected 1 to 256 visible ASCII characters")]
pub struct BindingError(&'static str);

impl Binding {
    /// The plane's UID and a nonce that it has made.
    ///
    /// # Errors
    /// When one of them cannot be in a header.
    pub fn new(plane: &str, nonce: &str) -> Result<Self, BindingError> {
        let fits = |text: &str| matches!(text.len(), 1..=256) && text.bytes().all(|byte| byte.is_ascii_graphic());
        match (fits(plane), fits(nonce)) {
            (false, _) => Err(BindingError("plane")),
            (_, false) => Err(BindingError("nonce")),
            _ => Ok(Self { plane: plane.to_owned(), nonce: nonce.to_owned() }),
        }
    }

    /// The plane's UID.
    pub fn plane(&self) -> &str {
        &self.plane
    }

    /// The nonce.
    pub fn nonce(&self) -> &str {
        &self.nonce
    }
}

/// Makes a proof: for STS in `region`, where the workload runs.
pub fn prove(credentials: &Credentials, region: &Region, binding: &Binding, now: SystemTime) -> PresignedUrl {
    let scope = Scope { region: region.name(), service: SERVICE, time: now };
    let query = [("Action", ACTION), ("Version", VERSION)];
    let headers = [(PLANE_HEADER, binding.plane()), (NONCE_HEADER, binding.nonce())];
    presign(credentials, &scope, &region.host(SERVICE), &query, &headers, EXPIRES_SECONDS)
}
