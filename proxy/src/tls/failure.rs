//! Why a handshake failed, in the words of Envoy's `%UPSTREAM_TRANSPORT_FAILURE_REASON%`: operators search logs for them.

use std::io;

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, PeerIncompatible};

use super::verify::SanError;

/// Library number of SSL in BoringSSL's packed error codes.
const SSL: u32 = 16 << 24;

/// Envoy's text for a failed handshake, blanks as underscores, such as
/// `TLS_error:|268435703:SSL_routines:OPENSSL_internal:WRONG_VERSION_NUMBER:TLS_error_end`.
///
/// Causes that BoringSSL has no counterpart of keep rustls's words in the same frame.
pub fn failure_reason(error: &io::Error) -> String {
    let text = match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(error) => tls_reason(error),
        None => format!("TLS_error:_{error}"),
    };
    text.replace(char::is_whitespace, "_")
}

fn tls_reason(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(error) => {
            ssl(125, &format!("CERTIFICATE_VERIFY_FAILED:verify cert failed: {}", verification(error)))
        }
        Error::InvalidMessage(InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion) => {
            ssl(247, "WRONG_VERSION_NUMBER")
        }
        Error::NoCertificatesPresented => ssl(192, "PEER_DID_NOT_RETURN_A_CERTIFICATE"),
        Error::PeerIncompatible(PeerIncompatible::NoCipherSuitesInCommon) => ssl(184, "NO_SHARED_CIPHER"),
        Error::PeerIncompatible(
            PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::Tls13RequiredForQuic
            | PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
        ) => ssl(240, "UNSUPPORTED_PROTOCOL"),
        Error::AlertReceived(alert) => alert_reason(*alert),
        other => format!("TLS_error:|{other}:TLS_error_end"),
    }
}

fn ssl(reason: u32, text: &str) -> String {
    format!("TLS_error:|{}:SSL routines:OPENSSL_internal:{text}:TLS_error_end", SSL + reason)
}

fn verification(error: &CertificateError) -> String {
    if let CertificateError::Other(other) = error
        && let Some(san) = other.0.downcast_ref::<SanError>()
    {
        return san.to_string();
    }
    let reason = match error {
        CertificateError::UnknownIssuer => "unable to get local issuer certificate",
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "certificate has expired",
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "certificate is not yet valid",
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => "unsupported certificate purpose",
        CertificateError::BadSignature => "certificate signature failure",
        CertificateError::Revoked => "certificate revoked",
        CertificateError::UnhandledCriticalExtension => "unhandled critical extension",
        other => return format!("X509_verify_cert: {other}"),
    };
    format!("X509_verify_cert: certificate verification error at depth 0: {reason}")
}

/// BoringSSL numbers alerts from 1000 and prefixes them with the version that introduced them.
fn alert_reason(alert: AlertDescription) -> String {
    let name = match alert {
        AlertDescription::CloseNotify => "SSLV3_ALERT_CLOSE_NOTIFY",
        AlertDescription::UnexpectedMessage => "SSLV3_ALERT_UNEXPECTED_MESSAGE",
        AlertDescription::BadRecordMac => "SSLV3_ALERT_BAD_RECORD_MAC",
        AlertDescription::RecordOverflow => "TLSV1_ALERT_RECORD_OVERFLOW",
        AlertDescription::HandshakeFailure => "SSLV3_ALERT_HANDSHAKE_FAILURE",
        AlertDescription::BadCertificate => "SSLV3_ALERT_BAD_CERTIFICATE",
        AlertDescription::UnsupportedCertificate => "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
        AlertDescription::CertificateRevoked => "SSLV3_ALERT_CERTIFICATE_REVOKED",
        AlertDescription::CertificateExpired => "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        AlertDescription::CertificateUnknown => "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
        AlertDescription::IllegalParameter => "SSLV3_ALERT_ILLEGAL_PARAMETER",
        AlertDescription::UnknownCA => "TLSV1_ALERT_UNKNOWN_CA",
        AlertDescription::AccessDenied => "TLSV1_ALERT_ACCESS_DENIED",
        AlertDescription::DecodeError => "TLSV1_ALERT_DECODE_ERROR",
        AlertDescription::DecryptError => "TLSV1_ALERT_DECRYPT_ERROR",
        AlertDescription::ProtocolVersion => "TLSV1_ALERT_PROTOCOL_VERSION",
        AlertDescription::InsufficientSecurity => "TLSV1_ALERT_INSUFFICIENT_SECURITY",
        AlertDescription::InternalError => "TLSV1_ALERT_INTERNAL_ERROR",
        AlertDescription::UserCanceled => "TLSV1_ALERT_USER_CANCELLED",
        AlertDescription::NoRenegotiation => "TLSV1_ALERT_NO_RENEGOTIATION",
        AlertDescription::UnsupportedExtension => "TLSV1_ALERT_UNSUPPORTED_EXTENSION",
        AlertDescription::UnrecognisedName => "TLSV1_ALERT_UNRECOGNIZED_NAME",
        AlertDescription::CertificateRequired => "TLSV1_ALERT_CERTIFICATE_REQUIRED",
        AlertDescription::NoApplicationProtocol => "TLSV1_ALERT_NO_APPLICATION_PROTOCOL",
        other => return format!("TLS_error:|alert {}:TLS_error_end", u8::from(other)),
    };
    ssl(1000 + u32::from(u8::from(alert)), name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(error: impl Into<Error>) -> String {
        failure_reason(&io::Error::new(io::ErrorKind::InvalidData, error.into()))
    }

    #[test]
    fn reasons_read_as_envoy_writes_them() {
        let frame = |code: u32, text: &str| format!("TLS_error:|{code}:SSL_routines:OPENSSL_internal:{text}:TLS_error_end");
        // Recorded: golden scenarios uptls.noretry, uptls.otherca, uptls.plain.
        let impostor = SanError::NoMatch(vec!["spiffe://cluster.local/ns/bookinfo/sa/impostor".into()]);
        let verify = "CERTIFICATE_VERIFY_FAILED:verify_cert_failed:";
        assert_eq!(
            reason(impostor),
            frame(
                268_435_581,
                &format!("{verify}_SAN_matcher,_certificate_SANs_are_[spiffe://cluster.local/ns/bookinfo/sa/impostor]")
            )
        );
        let depth = "_X509_verify_cert:_certificate_verification_error_at_depth_0:_unable_to_get_local_issuer_certificate";
        assert_eq!(reason(CertificateError::UnknownIssuer), frame(268_435_581, &format!("{verify}{depth}")));
        assert_eq!(reason(InvalidMessage::InvalidContentType), frame(268_435_703, "WRONG_VERSION_NUMBER"));
        // BoringSSL's numbering of alerts.
        assert_eq!(
            reason(Error::AlertReceived(AlertDescription::CertificateExpired)),
            frame(268_436_501, "SSLV3_ALERT_CERTIFICATE_EXPIRED")
        );
        assert_eq!(failure_reason(&io::Error::other("peer went away")), "TLS_error:_peer_went_away");
    }
}
