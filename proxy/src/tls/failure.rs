//! Why a handshake failed, in the words of Envoy's `%UPSTREAM_TRANSPORT_FAILURE_REASON%`: operators search logs for them.

use std::io;

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, PeerIncompatible};

use super::verify::SanError;

/// Library numbers in BoringSSL's packed error codes.
const SSL: u32 = 16 << 24;
const SYSTEM: u32 = 2 << 24;

/// Envoy's text for a failed handshake, blanks as underscores, such as
/// `TLS_error:|268435703:SSL_routines:OPENSSL_internal:WRONG_VERSION_NUMBER:TLS_error_end`; empty for a peer that only went away.
///
/// Causes that BoringSSL has no counterpart of keep rustls's words in the same frame.
pub fn failure_reason(error: &io::Error) -> String {
    let text = match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(error) => tls_reason(error),
        None if error.kind() == io::ErrorKind::UnexpectedEof => String::new(),
        None => match error.raw_os_error().and_then(|number| u32::try_from(number).ok()) {
            Some(number) => frame(&format!("{}:system library:OPENSSL_internal:{}", SYSTEM + number, system(error))),
            None => format!("TLS_error:_{error}"),
        },
    };
    text.replace(char::is_whitespace, "_")
}

/// The system's words, without the number that Rust adds.
fn system(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

fn tls_reason(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(error) => {
            ssl(125, &format!("CERTIFICATE_VERIFY_FAILED:verify cert failed: {}", verification(error)))
        }
        Error::InvalidMessage(InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion) => {
            ssl(247, "WRONG_VERSION_NUMBER")
        }
        Error::InappropriateMessage { .. } | Error::InappropriateHandshakeMessage { .. } => ssl(223, "UNEXPECTED_MESSAGE"),
        Error::NoCertificatesPresented => {
            ssl(192, "PEER_DID_NOT_RETURN_A_CERTIFICATE:peer did not provide required client certificate")
        }
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

fn frame(entries: &str) -> String {
    format!("TLS_error:|{entries}:TLS_error_end")
}

fn entry(reason: u32, text: &str) -> String {
    format!("{}:SSL routines:OPENSSL_internal:{text}", SSL + reason)
}

fn ssl(reason: u32, text: &str) -> String {
    frame(&entry(reason, text))
}

fn verification(error: &CertificateError) -> String {
    if let CertificateError::Other(other) = error
        && let Some(san) = other.0.downcast_ref::<SanError>()
    {
        return san.to_string();
    }
    let revocation = match error {
        CertificateError::Revoked => Some("certificate revoked"),
        CertificateError::UnknownRevocationStatus => Some("unable to get certificate CRL"),
        CertificateError::ExpiredRevocationList => Some("CRL has expired"),
        _ => None,
    };
    if let Some(why) = revocation {
        return format!(
            "X509_verify_cert: certificate verification error at depth 0: \
             certificate revocation check against provided CRLs failed: {why}"
        );
    }
    let reason = match error {
        CertificateError::UnknownIssuer => "unable to get local issuer certificate",
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "certificate has expired",
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "certificate is not yet valid",
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => "unsupported certificate purpose",
        CertificateError::BadSignature => "certificate signature failure",
        CertificateError::UnhandledCriticalExtension => "unhandled critical extension",
        // What webpki has words of its own for.
        CertificateError::Other(other) => match format!("{:?}", other.0).as_str() {
            "UnsupportedCriticalExtension" => "unhandled critical extension",
            "EndEntityUsedAsCa" | "CaUsedAsEndEntity" => "invalid CA certificate",
            other => return format!("X509_verify_cert: {other}"),
        },
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
    let said = entry(1000 + u32::from(u8::from(alert)), name);
    // BoringSSL notes what the alert was the answer to; only a client ever hears this one.
    match alert {
        AlertDescription::HandshakeFailure => frame(&format!("{said}|{}", entry(154, "HANDSHAKE_FAILURE_ON_CLIENT_HELLO"))),
        _ => frame(&said),
    }
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
        let answered = frame(
            268_436_496,
            "SSLV3_ALERT_HANDSHAKE_FAILURE|268435610:SSL_routines:OPENSSL_internal:HANDSHAKE_FAILURE_ON_CLIENT_HELLO",
        );
        assert_eq!(reason(Error::AlertReceived(AlertDescription::HandshakeFailure)), answered);
        let missing = "PEER_DID_NOT_RETURN_A_CERTIFICATE:peer_did_not_provide_required_client_certificate";
        assert_eq!(reason(Error::NoCertificatesPresented), frame(268_435_648, missing));
        let revoked = "certificate_revocation_check_against_provided_CRLs_failed:_certificate_revoked";
        let revoked = format!("{verify}_X509_verify_cert:_certificate_verification_error_at_depth_0:_{revoked}");
        assert_eq!(reason(CertificateError::Revoked), frame(268_435_581, &revoked));
        assert_eq!(
            failure_reason(&io::Error::from_raw_os_error(104)),
            "TLS_error:|33554536:system_library:OPENSSL_internal:Connection_reset_by_peer:TLS_error_end"
        );
        assert_eq!(failure_reason(&io::ErrorKind::UnexpectedEof.into()), "");
        assert_eq!(failure_reason(&io::Error::other("peer went away")), "TLS_error:_peer_went_away");
    }
}
