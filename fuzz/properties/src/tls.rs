//! First bytes of connections, and the names in certificates.

use std::cell::LazyCell;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair,
};
use rustls::ClientConfig;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::PrivateKeyDer;
use skiff_proxy::config::{
    CertificateSource, DownstreamTls, Permission, Policy, Principal, RbacAction, RbacRules, SanMatcher, Secret,
    SetCurrentClientCertDetails, SpiffeId, StringMatcher, TlsVersion, UpstreamTls,
};
use skiff_proxy::rbac::{Engine, RequestContext};
use skiff_proxy::tls::{
    ClientContext, HttpSniff, PeerCertificate, Secrets, ServerContext, Sniff, forwarded_client_cert, sniff, sniff_http,
};

use crate::facts;
use crate::input::{Input, cuts};

/// First bytes under the TLS inspector: more bytes never change a verdict, and it reads the same hello as the TLS library.
pub fn client_hello(data: &[u8]) {
    let whole = sniff(data);
    for cut in cuts(data) {
        let early = sniff(&data[..cut]);
        assert!(early == Sniff::NeedMore || early == whole, "cut at {cut}: {early:?}, then {whole:?}");
    }
    let Some((server_name, alpn)) = as_rustls_reads_it(data) else { return };
    let Sniff::Tls { server_name: seen, alpn: offered } = whole else { panic!("{whole:?} for a hello that rustls accepts") };
    // For rustls an address is no name; Envoy takes any text.
    assert!(server_name.is_none() || seen == server_name.map(|name| name.to_ascii_lowercase()), "{seen:?}");
    assert_eq!(offered, alpn);
}

fn as_rustls_reads_it(mut data: &[u8]) -> Option<(Option<String>, Vec<Vec<u8>>)> {
    let mut acceptor = rustls::server::Acceptor::default();
    loop {
        if acceptor.read_tls(&mut data).ok()? == 0 {
            return None;
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                let hello = accepted.client_hello();
                let alpn = hello.alpn().into_iter().flatten().map(<[u8]>::to_vec).collect();
                return Some((hello.server_name().map(str::to_owned), alpn));
            }
            Ok(None) => {}
            Err(_) => return None,
        }
    }
}

/// First bytes under the HTTP inspector: more bytes never change a verdict.
pub fn http_sniff(data: &[u8]) {
    let whole = sniff_http(data);
    for cut in cuts(data) {
        let early = sniff_http(&data[..cut]);
        assert!(early == HttpSniff::NeedMore || early == whole, "cut at {cut}: {early:?}, then {whole:?}");
    }
}

/// A SPIFFE id is its text and nothing else.
pub fn spiffe_id(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(id) = text.parse::<SpiffeId>() else { return };
    assert_eq!(id.to_string(), text);
    assert_eq!(text.split('/').count(), 7);
    assert!(text.bytes().all(|b| b.is_ascii_graphic()));
}

const PREFIX: &str = "spiffe://cluster.local/";
const WANTED: &str = "spiffe://cluster.local/ns/a/sa/admin";

/// A signer, a server that trusts it, and a client that lacks only a certificate.
struct Mesh {
    ca: CertifiedIssuer<'static, KeyPair>,
    key: KeyPair,
    server: ServerContext,
    client: (Arc<ClientConfig>, rustls_pki_types::ServerName<'static>),
    admins: Engine,
}

thread_local! {
    static MESH: LazyCell<Mesh> = LazyCell::new(Mesh::new);
}

impl Mesh {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let secrets = Secrets::new();
        let leaf = CertificateParams::new(vec!["server".to_owned()]).unwrap().signed_by(&key, &ca).unwrap();
        let own = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        secrets.set("own", Secret::Certificate { chain: vec![leaf.der().clone()], key: Arc::new(own) }).unwrap();
        secrets.set("roots", Secret::Trust { roots: vec![ca.der().clone()] }).unwrap();
        let source = |name: &str| CertificateSource::Secret(name.to_owned());
        let versions = (TlsVersion::Tls13, TlsVersion::Tls13);
        let server = DownstreamTls {
            certificate: source("own"),
            trust: Some(source("roots")),
            require_client_certificate: true,
            sans: vec![SanMatcher::Any(StringMatcher::prefix(PREFIX))],
            pins: Vec::new(),
            revocation: None,
            alpn: Vec::new(),
            versions,
        };
        let client = UpstreamTls {
            certificate: None,
            trust: None,
            sans: Vec::new(),
            sni: "server".to_owned(),
            auto_sni: false,
            auto_san_validation: false,
            pins: Vec::new(),
            revocation: None,
            alpn: Vec::new(),
            versions,
        };
        let client = ClientContext::new(&secrets, &client).unwrap();
        let policy = Policy {
            permissions: vec![Permission::Any],
            principals: vec![Principal::Authenticated(Some(StringMatcher::exact(WANTED)))],
        };
        let admins = RbacRules { action: RbacAction::Allow, policies: [("admins".to_owned(), policy)].into() };
        Self {
            server: ServerContext::new(&secrets, &server).unwrap(),
            client: (client.config(None).unwrap(), client.server_name()),
            admins: Engine::compile(&admins).unwrap(),
            ca,
            key,
        }
    }

    /// What the server makes of a client with this certificate, signed by the mesh's own CA.
    fn present(&self, sans: Option<Vec<u8>>, subject: &str) -> Option<Arc<PeerCertificate>> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        if !subject.is_empty() {
            params.distinguished_name.push(DnType::CommonName, subject);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.custom_extensions = sans.map(|der| CustomExtension::from_oid_content(&[2, 5, 29, 17], der)).into_iter().collect();
        let leaf = params.signed_by(&self.key, &self.ca).ok()?.der().clone();
        let key = any_supported_type(&PrivateKeyDer::Pkcs8(self.key.serialize_der().into())).unwrap();
        let mut config = ClientConfig::clone(&self.client.0);
        config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(CertifiedKey::new(vec![leaf], key)));
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (ours, theirs) = tokio::io::duplex(64 * 1024);
            let (accepted, _) = tokio::join!(self.server.accept(ours), connector.connect(self.client.1.clone(), theirs));
            accepted.ok().map(|(_, handshake)| handshake.peer.expect("a certificate is required and parses"))
        })
    }
}

/// A certificate that the mesh's own CA signed, with any names in it: who is let in has exactly the one SPIFFE id that is written
/// there, in policies and in x-forwarded-client-cert.
pub fn certificate(data: &[u8]) {
    let mut input = Input::new(data);
    let choice = input.byte();
    let subject = input.text();
    let (der, uris) = if choice & 1 == 0 { names(input) } else { (input.rest().to_vec(), None) };
    let sans = (choice & 2 == 0).then_some(der);
    MESH.with(|mesh| {
        let Some(peer) = mesh.present(sans, &subject) else { return };
        let [uri] = &peer.uri_sans[..] else { panic!("let in with the URIs {:?}", peer.uri_sans) };
        assert!(uri.starts_with(PREFIX), "let in as {uri:?}");
        if let Some(uris) = uris {
            assert_eq!(uris, [uri.as_bytes()], "another id than the one that is written there");
        }
        for name in peer.uri_sans.iter().chain(&peer.dns_sans).chain([&peer.subject]) {
            assert!(name.bytes().all(|b| (b' '..=b'~').contains(&b)), "{name:?}");
        }
        let connection = facts::connection(Some(Arc::clone(&peer)));
        let context = RequestContext { request: None, connection: &connection, remote: connection.remote.ip(), metadata: None };
        assert_eq!(mesh.admins.evaluate(&context).allowed, uri == WANTED);
        check_element(&peer);
    });
}

/// A list of names, each a type (its tag) and a text; and the URIs among them.
fn names(mut input: Input<'_>) -> (Vec<u8>, Option<Vec<Vec<u8>>>) {
    let (mut list, mut uris) = (Vec::new(), Vec::new());
    while !input.is_empty() && list.len() < 2048 {
        let tag = [6, 6, 2, 1, 7, 4, 8, 0][input.below(8)];
        let text = input.part();
        let text = &text[..text.len().min(512)];
        if tag == 6 {
            uris.push(text.to_vec());
        }
        list.extend(der(0x80 | tag, text));
    }
    (der(0x30, &list), Some(uris))
}

fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap().to_be_bytes();
    let mut out = vec![tag];
    match content.len() {
        0..128 => out.push(length[1]),
        128..256 => out.extend([0x81, length[1]]),
        _ => out.extend([0x82, length[0], length[1]]),
    }
    out.extend_from_slice(content);
    out
}

/// Reads the element as a receiver does: quoted texts are skipped, a comma would begin another one.
fn check_element(peer: &PeerCertificate) {
    let details = SetCurrentClientCertDetails { subject: true, dns: true, uri: true, ..Default::default() };
    let mut element = Vec::new();
    forwarded_client_cert(peer, Some("spiffe://cluster.local/ns/b/sa/own"), details, &mut element);
    let (mut quoted, mut escaped, mut keys, mut start) = (false, false, Vec::new(), 0);
    for (at, byte) in element.iter().chain(b";").enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b',' if !quoted => panic!("a second element in {:?}", String::from_utf8_lossy(&element)),
            b';' if !quoted => {
                let pair = &element[start..at];
                keys.push(&pair[..pair.iter().position(|b| *b == b'=').expect("a key")]);
                start = at + 1;
            }
            _ => {}
        }
    }
    assert!(!quoted);
    let mut expected: Vec<&[u8]> = vec![b"By", b"Hash", b"Subject", b"URI"];
    expected.extend(peer.dns_sans.iter().map(|_| &b"DNS"[..]));
    assert_eq!(keys, expected, "{:?}", String::from_utf8_lossy(&element));
}
