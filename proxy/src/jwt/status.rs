//! What can be wrong with a token, in Envoy's words and numbers (`source/common/jwt/status.h`): callers see the text, the
//! access log has it in the details.

use http::StatusCode;

/// Why a token is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    /// There is none.
    Missing,
    /// `nbf` lies ahead.
    NotYetValid,
    /// `exp` has passed.
    Expired,
    /// Not three parts.
    BadFormat,
    /// Header is not base64url.
    HeaderBase64,
    /// Header is no JSON object.
    HeaderJson,
    /// `alg` is missing or no string.
    HeaderAlg,
    /// `alg` is none of those known here; `none` is one of these.
    UnknownAlg,
    /// `kid` is no string.
    HeaderKid,
    /// Payload is not base64url.
    PayloadBase64,
    /// Payload is no JSON object.
    PayloadJson,
    /// `iss` is no string.
    Iss,
    /// `sub` is no string.
    Sub,
    /// `iat` is no number.
    Iat,
    /// `iat` is negative or too large.
    IatRange,
    /// `nbf` is no number.
    Nbf,
    /// `nbf` is negative or too large.
    NbfRange,
    /// `exp` is no number.
    Exp,
    /// `exp` is negative or too large.
    ExpRange,
    /// `jti` is no string.
    Jti,
    /// `aud` is neither a string nor a list of strings.
    Aud,
    /// Signature is not base64url.
    SignatureBase64,
    /// An Ed25519 signature has 64 bytes.
    Ed25519Length,
    /// No provider of this issuer is asked for.
    UnknownIssuer,
    /// No audience is allowed.
    AudienceNotAllowed,
    /// The signature is wrong, or the subject or the lifetime is not allowed.
    VerificationFails,
    /// More tokens than anybody needs.
    MultipleTokens,
    /// There are no keys.
    NoValidKeys,
    /// No key has the token's `kid` and `alg`.
    NoMatchingKey,
    /// The keys could not be fetched.
    FetchFailed,
}

impl Status {
    /// Envoy's text, which is the body of the answer.
    pub(super) fn text(self) -> &'static str {
        self.parts().1
    }

    /// Envoy's number, for `failed_status_in_metadata`.
    pub(super) fn code(self) -> u32 {
        self.parts().0
    }

    /// 403 for tokens that are valid elsewhere, else 401.
    pub(super) fn http(self) -> StatusCode {
        if self == Self::AudienceNotAllowed { StatusCode::FORBIDDEN } else { StatusCode::UNAUTHORIZED }
    }

    fn parts(self) -> (u32, &'static str) {
        match self {
            Self::Missing => (1, "Jwt is missing"),
            Self::NotYetValid => (2, "Jwt not yet valid"),
            Self::Expired => (3, "Jwt is expired"),
            Self::BadFormat => (4, "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"),
            Self::HeaderBase64 => (5, "Jwt header is an invalid Base64url encoded"),
            Self::HeaderJson => (6, "Jwt header is an invalid JSON"),
            Self::HeaderAlg => (7, "Jwt header [alg] field is required and must be a string"),
            Self::UnknownAlg => (8, "Jwt header [alg] is not supported"),
            Self::HeaderKid => (9, "Jwt header [kid] field is not a string"),
            Self::PayloadBase64 => (10, "Jwt payload is an invalid Base64url encoded"),
            Self::PayloadJson => (11, "Jwt payload is an invalid JSON"),
            Self::Iss => (12, "Jwt payload [iss] field is not a string"),
            Self::Sub => (13, "Jwt payload [sub] field is not a string"),
            Self::Iat => (14, "Jwt payload [iat] field is not an integer"),
            Self::IatRange => (15, "Jwt payload [iat] field is not a positive 64 bit integer"),
            Self::Nbf => (16, "Jwt payload [nbf] field is not an integer"),
            Self::NbfRange => (17, "Jwt payload [nbf] field is not a positive 64 bit integer"),
            Self::Exp => (18, "Jwt payload [exp] field is not an integer"),
            Self::ExpRange => (19, "Jwt payload [exp] field is not a positive 64 bit integer"),
            Self::Jti => (20, "Jwt payload [jti] field is not a string"),
            Self::Aud => (21, "Jwt payload [aud] field is not a string or string list"),
            Self::SignatureBase64 => (22, "Jwt signature is an invalid Base64url encoded"),
            Self::Ed25519Length => (23, "Jwt ED25519 signature is wrong length"),
            Self::UnknownIssuer => (24, "Jwt issuer is not configured"),
            Self::AudienceNotAllowed => (25, "Audiences in Jwt are not allowed"),
            Self::VerificationFails => (26, "Jwt verification fails"),
            Self::MultipleTokens => (27, "Found multiple Jwt tokens"),
            Self::NoValidKeys => (31, "Jwks doesn't have any valid public key"),
            Self::NoMatchingKey => (32, "Jwks doesn't have key to match kid or alg from Jwt"),
            Self::FetchFailed => (40, "Jwks remote fetch is failed"),
        }
    }
}
