//! TLS contexts and secrets.

use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use prost::Name as _;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use skiff_proto::envoy::config::core::v3::proxy_protocol_config::Version;
use skiff_proto::envoy::config::core::v3::{DataSource, TransportSocket, data_source::Specifier, transport_socket};
use skiff_proto::envoy::extensions::transport_sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport;
use skiff_proto::envoy::extensions::transport_sockets::tls::v3 as pb;
use skiff_proxy::config::{
    self, CertificatePin, CertificateSource, InlinePem, ProxyProtocol, Revocation, SanMatcher, TlsVersion,
};

use super::outcome::{At, Outcome, each, invalid, required};
use super::{any, basic};

const RAW_BUFFER: &str = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer";
/// Names of secrets that istiod gives to files of the workload: a trust bundle, and a certificate with its key.
const FILE_ROOT: &str = "file-root:";
const FILE_CERTIFICATE: &str = "file-cert:";
/// In place of a trust bundle's path.
const SYSTEM_ROOTS: &str = "system";

/// `None` is plaintext.
pub(super) fn downstream_socket(message: &TransportSocket) -> Outcome<Option<Arc<config::DownstreamTls>>> {
    let transport_socket::ConfigType::TypedConfig(config) = required(message.config_type.as_ref(), "typed_config")?;
    match any::type_name(config).as_str() {
        RAW_BUFFER => Ok(None),
        "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext" => {
            Ok(Some(Arc::new(downstream(&any::unpack(config)?).at("typed_config")?)))
        }
        other => invalid(format!("transport socket {other} is not supported")).at("typed_config"),
    }
}

/// A transport socket without the PROXY protocol around it, and that.
pub(super) fn upstream_socket(message: &TransportSocket) -> Outcome<(config::TransportSocket, Option<ProxyProtocol>)> {
    let transport_socket::ConfigType::TypedConfig(config) = required(message.config_type.as_ref(), "typed_config")?;
    if any::type_name(config) != ProxyProtocolUpstreamTransport::full_name() {
        return Ok((inner_socket(message)?, None));
    }
    let wrapper: ProxyProtocolUpstreamTransport = any::unpack(config).at("typed_config")?;
    let version = match Version::try_from(wrapper.config.unwrap_or_default().version) {
        Ok(Version::V1) => ProxyProtocol::V1,
        Ok(Version::V2) => ProxyProtocol::V2,
        Err(_) => return invalid("expected V1 or V2").at("typed_config.config.version"),
    };
    let inner = required(wrapper.transport_socket.as_ref(), "transport_socket").at("typed_config")?;
    Ok((inner_socket(inner).at("typed_config.transport_socket")?, Some(version)))
}

fn inner_socket(message: &TransportSocket) -> Outcome<config::TransportSocket> {
    let transport_socket::ConfigType::TypedConfig(config) = required(message.config_type.as_ref(), "typed_config")?;
    match any::type_name(config).as_str() {
        RAW_BUFFER => Ok(config::TransportSocket::RawBuffer),
        "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext" => {
            Ok(config::TransportSocket::Tls(Arc::new(upstream(&any::unpack(config)?).at("typed_config")?)))
        }
        other => invalid(format!("transport socket {other} is not supported")).at("typed_config"),
    }
}

fn downstream(message: &pb::DownstreamTlsContext) -> Outcome<config::DownstreamTls> {
    let require_client_certificate = basic::flag(message.require_client_certificate.as_ref(), false);
    let common = common(message.common_tls_context.as_ref()).at("common_tls_context")?;
    let Some(certificate) = common.certificate else {
        return invalid("expected tls_certificates or tls_certificate_sds_secret_configs").at("common_tls_context");
    };
    if require_client_certificate && common.validation.trust.is_none() {
        return invalid("expected a validation context with trusted_ca, because a client certificate is required")
            .at("common_tls_context");
    }
    Ok(config::DownstreamTls {
        certificate,
        trust: common.validation.trust,
        require_client_certificate,
        sans: common.validation.sans,
        pins: common.validation.pins,
        revocation: common.validation.revocation,
        alpn: common.alpn,
        versions: common.versions,
    })
}

fn upstream(message: &pb::UpstreamTlsContext) -> Outcome<config::UpstreamTls> {
    let common = common(message.common_tls_context.as_ref()).at("common_tls_context")?;
    Ok(config::UpstreamTls {
        certificate: common.certificate,
        trust: common.validation.trust,
        sans: common.validation.sans,
        pins: common.validation.pins,
        revocation: common.validation.revocation,
        sni: message.sni.clone(),
        auto_sni: false,
        auto_san_validation: false,
        alpn: common.alpn,
        versions: common.versions,
    })
}

/// Which peers are accepted.
#[derive(Default)]
struct PeerValidation {
    trust: Option<CertificateSource>,
    sans: Vec<SanMatcher>,
    pins: Vec<CertificatePin>,
    revocation: Option<Revocation>,
}

struct Common {
    certificate: Option<CertificateSource>,
    validation: PeerValidation,
    alpn: Vec<String>,
    versions: (TlsVersion, TlsVersion),
}

fn common(message: Option<&pb::CommonTlsContext>) -> Outcome<Common> {
    use pb::common_tls_context::ValidationContextType as Validation;
    let default = pb::CommonTlsContext::default();
    let message = message.unwrap_or(&default);
    let validation = match &message.validation_context_type {
        None => PeerValidation::default(),
        Some(Validation::ValidationContext(context)) => validation(context).at("validation_context")?,
        Some(Validation::ValidationContextSdsSecretConfig(secret)) => {
            let trust = named(secret).at("validation_context_sds_secret_config")?;
            PeerValidation { trust: Some(trust), ..PeerValidation::default() }
        }
        Some(Validation::CombinedValidationContext(combined)) => {
            let at = "combined_validation_context.default_validation_context";
            let own = validation(required(combined.default_validation_context.as_ref(), at)?).at(at)?;
            let secret = combined.validation_context_sds_secret_config.as_ref();
            let trust = secret.map(named).transpose().at("combined_validation_context.validation_context_sds_secret_config")?;
            PeerValidation { trust: trust.or(own.trust), ..own }
        }
        Some(_) => return invalid("certificate providers are not supported").at("validation_context_type"),
    };
    if !validation.sans.is_empty() && validation.trust.is_none() {
        return invalid("expected trusted_ca beside subject alternative names: without it any certificate would pass");
    }
    if validation.revocation.is_some() && validation.trust.is_none() {
        return invalid("expected trusted_ca beside crl: without it nobody's certificate is verified");
    }
    Ok(Common {
        certificate: certificate(message)?,
        validation,
        alpn: message.alpn_protocols.clone(),
        versions: versions(message)?,
    })
}

fn certificate(message: &pb::CommonTlsContext) -> Outcome<Option<CertificateSource>> {
    match (message.tls_certificates.as_slice(), message.tls_certificate_sds_secret_configs.as_slice()) {
        ([], []) => Ok(None),
        ([], [secret]) => Ok(Some(named(secret).at("tls_certificate_sds_secret_configs[0]")?)),
        ([certificate], []) => {
            let data = |source: Option<&DataSource>, field: &str| match source {
                Some(source) => data(source).at(field).at("tls_certificates[0]"),
                None => invalid("is missing").at(field).at("tls_certificates[0]"),
            };
            let chain = data(certificate.certificate_chain.as_ref(), "certificate_chain")?;
            match (chain, data(certificate.private_key.as_ref(), "private_key")?) {
                (Data::File(chain), Data::File(key)) => {
                    Ok(Some(CertificateSource::Files { certificates: chain.into(), key: Some(key.into()) }))
                }
                (Data::Inline(certificates), Data::Inline(key)) => {
                    Ok(Some(CertificateSource::Inline { certificates, key: Some(key) }))
                }
                _ => invalid("expected both in files, or neither").at("tls_certificates[0]"),
            }
        }
        _ => invalid("expected one certificate"),
    }
}

fn named(secret: &pb::SdsSecretConfig) -> Outcome<CertificateSource> {
    let name = secret.name.as_str();
    if let Some(path) = name.strip_prefix(FILE_ROOT) {
        return Ok(match path {
            SYSTEM_ROOTS => CertificateSource::System,
            path => CertificateSource::Files { certificates: path.into(), key: None },
        });
    }
    if let Some(paths) = name.strip_prefix(FILE_CERTIFICATE) {
        let Some((certificates, key)) = paths.split_once('~') else {
            return invalid(format!("expected {FILE_CERTIFICATE}certificate~key, found {name:?}")).at("name");
        };
        return Ok(CertificateSource::Files { certificates: certificates.into(), key: Some(key.into()) });
    }
    // `credentialName`: secrets of Kubernetes, which only a gateway may ask istiod for.
    if let Some((scheme, _)) = name.split_once("://").filter(|(scheme, _)| *scheme != "spiffe") {
        return invalid(format!("{name:?}: secrets of {scheme} are not served here, expected files")).at("name");
    }
    Ok(CertificateSource::Secret(name.to_owned()))
}

enum Data {
    File(String),
    Inline(InlinePem),
}

/// Where PEM is. A file is read when the configuration is applied, and again when it changes; the environment now.
fn data(source: &DataSource) -> Outcome<Data> {
    match &source.specifier {
        Some(Specifier::Filename(path)) => Ok(Data::File(path.clone())),
        Some(Specifier::InlineString(text)) => Ok(Data::Inline(InlinePem::new(text.as_str()))),
        Some(Specifier::InlineBytes(bytes)) => Ok(Data::Inline(InlinePem::new(bytes.as_slice()))),
        Some(Specifier::EnvironmentVariable(name)) => match std::env::var(name) {
            Ok(text) => Ok(Data::Inline(InlinePem::new(text))),
            Err(_) => invalid(format!("environment variable {name} is not set")).at("environment_variable"),
        },
        None => invalid("expected filename, inline_string, inline_bytes or environment_variable"),
    }
}

fn validation(message: &pb::CertificateValidationContext) -> Outcome<PeerValidation> {
    let trust = match (&message.trusted_ca, &message.system_root_certs) {
        (Some(source), _) => Some(match data(source).at("trusted_ca")? {
            Data::File(path) => CertificateSource::Files { certificates: path.into(), key: None },
            Data::Inline(certificates) => CertificateSource::Inline { certificates, key: None },
        }),
        (None, Some(_)) => Some(CertificateSource::System),
        (None, None) => None,
    };
    let mut sans = each(&message.match_typed_subject_alt_names, "match_typed_subject_alt_names", san)?;
    // Deprecated, but what istiod sends: the type of the name is not asked.
    sans.extend(each(&message.match_subject_alt_names, "match_subject_alt_names", |any| {
        Ok(SanMatcher::Any(basic::string_matcher(any)?))
    })?);
    let mut pins = each(&message.verify_certificate_hash, "verify_certificate_hash", |text| certificate_hash(text))?;
    pins.extend(each(&message.verify_certificate_spki, "verify_certificate_spki", |text| key_hash(text))?);
    let lists = message.crl.as_ref().map(data).transpose().at("crl")?.map(|lists| match lists {
        Data::File(path) => CertificateSource::RevocationFile(path.into()),
        Data::Inline(lists) => CertificateSource::RevocationInline(lists),
    });
    let revocation = lists.map(|lists| Revocation { lists, leaf_only: message.only_verify_leaf_cert_crl });
    Ok(PeerValidation { trust, sans, pins, revocation })
}

/// SHA-256 in hex, with or without colons.
fn certificate_hash(text: &str) -> Outcome<CertificatePin> {
    let digits: Option<Vec<u32>> = text.chars().filter(|c| *c != ':').map(|c| c.to_digit(16)).collect();
    let bytes = digits.and_then(|digits| {
        let pairs = digits.chunks(2).map(|pair| u8::try_from(pair[0] * 16 + pair.get(1)?).ok());
        <[u8; 32]>::try_from(pairs.collect::<Option<Vec<u8>>>()?).ok()
    });
    bytes.map_or_else(|| invalid("expected a SHA-256 of 64 hexadecimal digits"), |hash| Ok(CertificatePin::Certificate(hash)))
}

/// SHA-256 in base64.
fn key_hash(text: &str) -> Outcome<CertificatePin> {
    let bytes = BASE64_STANDARD.decode(text).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    bytes.map_or_else(|| invalid("expected a SHA-256 in base64"), |hash| Ok(CertificatePin::Key(hash)))
}

fn san(message: &pb::SubjectAltNameMatcher) -> Outcome<SanMatcher> {
    use pb::subject_alt_name_matcher::SanType;
    let matcher = basic::string_matcher(required(message.matcher.as_ref(), "matcher")?).at("matcher")?;
    match SanType::try_from(message.san_type) {
        Ok(SanType::Uri) => Ok(SanMatcher::Uri(matcher)),
        Ok(SanType::Dns) => Ok(SanMatcher::Dns(matcher)),
        Ok(SanType::Email) => Ok(SanMatcher::Email(matcher)),
        Ok(SanType::IpAddress) => Ok(SanMatcher::Ip(matcher)),
        _ => invalid("expected URI, DNS, EMAIL or IP_ADDRESS").at("san_type"),
    }
}

fn versions(message: &pb::CommonTlsContext) -> Outcome<(TlsVersion, TlsVersion)> {
    use pb::tls_parameters::TlsProtocol;
    let Some(params) = &message.tls_params else { return Ok((TlsVersion::Tls12, TlsVersion::Tls13)) };
    let lowest = match TlsProtocol::try_from(params.tls_minimum_protocol_version) {
        Ok(TlsProtocol::TlsAuto | TlsProtocol::TlSv12) => TlsVersion::Tls12,
        Ok(TlsProtocol::TlSv13) => TlsVersion::Tls13,
        _ => return invalid("expected TLSv1_2 or TLSv1_3").at("tls_params.tls_minimum_protocol_version"),
    };
    let highest = match TlsProtocol::try_from(params.tls_maximum_protocol_version) {
        Ok(TlsProtocol::TlSv12) => TlsVersion::Tls12,
        Ok(TlsProtocol::TlsAuto | TlsProtocol::TlSv13) => TlsVersion::Tls13,
        _ => return invalid("expected TLSv1_2 or TLSv1_3").at("tls_params.tls_maximum_protocol_version"),
    };
    if lowest > highest {
        return invalid("the lowest version is above the highest").at("tls_params");
    }
    Ok((lowest, highest))
}

/// A secret whose PEM stands in the message.
pub(super) fn secret(message: &pb::Secret) -> Outcome<config::Secret> {
    match required(message.r#type.as_ref(), "type")? {
        pb::secret::Type::TlsCertificate(certificate) => {
            let chain = pem(certificate.certificate_chain.as_ref()).at("tls_certificate.certificate_chain")?;
            let key = pem(certificate.private_key.as_ref()).at("tls_certificate.private_key")?;
            let Ok(key) = PrivateKeyDer::from_pem_slice(key.as_bytes()) else {
                return invalid("expected a private key in PEM").at("tls_certificate.private_key");
            };
            let chain = certificates(&chain).at("tls_certificate.certificate_chain")?;
            Ok(config::Secret::Certificate { chain, key: Arc::new(key) })
        }
        pb::secret::Type::ValidationContext(context) => {
            if context.crl.is_some() {
                return invalid("is supported in listeners and clusters, not in secrets").at("validation_context.crl");
            }
            let roots = certificates(&pem(context.trusted_ca.as_ref()).at("validation_context.trusted_ca")?);
            Ok(config::Secret::Trust { roots: roots.at("validation_context.trusted_ca")? })
        }
        _ => invalid("expected tls_certificate or validation_context"),
    }
}

fn pem(source: Option<&DataSource>) -> Outcome<InlinePem> {
    match source.map(data).transpose()? {
        Some(Data::Inline(pem)) => Ok(pem),
        _ => invalid("expected inline_string, inline_bytes or environment_variable"),
    }
}

fn certificates(pem: &InlinePem) -> Outcome<Vec<CertificateDer<'static>>> {
    match CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>() {
        Ok(all) if !all.is_empty() => Ok(all),
        _ => invalid("expected certificates in PEM"),
    }
}
