//! A scenario of `agent/testdata/istio`, served by the fake istiod to the real binary, with applications and peers around it.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use bytes::Bytes;
use prost::{Message, Name};
use skiff_proto::envoy::config::core::v3::address::Address as Place;
use skiff_proto::envoy::config::core::v3::socket_address::PortSpecifier;
use skiff_proto::envoy::config::listener::v3::Listener;
use skiff_proto::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::Istiod;
use crate::apps::{App, Speaks};
use crate::http::{Answer, Connection, get_request};
use crate::mesh::{Mesh, RATINGS};
use crate::network::Network;
use crate::skiff::Skiff;
use crate::tls::{self, Validity, acceptor};

/// A workload in a recorded mesh; its addresses are 127.x.y, where the recording has 127.0.0.
#[derive(Debug)]
pub struct Scenario {
    /// The network and the authority.
    pub mesh: Mesh,
    /// What the sidecar follows.
    pub istiod: Istiod,
    /// The sidecar, ready.
    pub sidecar: Skiff,
    peers: JoinSet<()>,
}

impl Scenario {
    /// Joins. What was recorded differs in two ways: 0.0.0.0 is the workload's own address, and 10,000 is added to ports below
    /// 1024.
    pub async fn join(name: &str) -> Self {
        let mesh = Mesh::prepare_on(Network::claim_short()).await;
        let address = mesh.network.at(16, 15012);
        let istiod = Istiod::with(recorded(name, &mesh.network), address, mesh.authority()).await;
        let proxy_config = format!(r#"{{"discoveryAddress": "{address}"}}"#);
        let sidecar = mesh.spawn_without_documents(RATINGS, &[("PROXY_CONFIG", &proxy_config)]);
        sidecar.ready().await;
        Self { mesh, istiod, sidecar, peers: JoinSet::new() }
    }

    /// A port of the address with this last byte.
    pub fn at(&self, last: u8, port: u16) -> SocketAddr {
        self.mesh.network.at(last, port)
    }

    /// The application of the workload, where its ingress expects it.
    pub fn application(&self) -> App {
        App::start(self.at(1, 9080), Speaks::Http)
    }

    /// An application in the mesh, behind mutual TLS with the certificate of this service account.
    pub async fn peer(&mut self, last: u8, port: u16, account: &str, speaks: Speaks) -> App {
        let identity = self.mesh.authority().issue(&format!("spiffe://cluster.local/ns/bookinfo/sa/{account}"), Validity::Always);
        let config = acceptor(identity, &["h2", "istio-http/1.1", "istio", "http/1.1"]);
        let behind = self.at(last, port + 10_000);
        let listener = TcpListener::bind(self.at(last, port)).await.unwrap();
        self.peers.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                let acceptor = TlsAcceptor::from(config.clone());
                connections.spawn(async move {
                    let mut outside = acceptor.accept(tcp).await?;
                    let mut inside = TcpStream::connect(behind).await?;
                    tokio::io::copy_bidirectional(&mut outside, &mut inside).await
                });
            }
        });
        App::start(behind, speaks)
    }

    /// Asks the workload from outside of the mesh.
    pub async fn ask_in_plaintext(&self, port: u16, request: &str) -> std::io::Result<Answer> {
        Connection::open(self.at(RATINGS_OWN, port)).await?.ask(request).await
    }

    /// Asks the workload as this service account of the mesh.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn ask_as(&self, account: &str, port: u16, request: &str) -> std::io::Result<Answer> {
        let identity = self.mesh.authority().issue(&format!("spiffe://cluster.local/ns/bookinfo/sa/{account}"), Validity::Always);
        let stream = tls::connect(self.at(RATINGS_OWN, port), Some(&identity), &["istio"]).await?;
        Connection::over(stream).ask(request).await
    }

    /// Asks for a path of a host through the egress listener at this address.
    pub async fn ask_out(&self, (last, port): (u8, u16), host: &str, path: &str, fields: &str) -> Answer {
        let mut connection = Connection::open(self.at(last, port)).await.unwrap();
        connection.ask(&get_request(host, path, fields)).await.unwrap()
    }
}

/// Last byte of the workload's own address in every recording.
const RATINGS_OWN: u8 = 21;

fn recorded(name: &str, network: &Network) -> Vec<DeltaDiscoveryResponse> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../agent/testdata/istio").join(name).join("delta.bin");
    let mut bytes = Bytes::from(network.localise_bytes(&fs::read(file).unwrap()));
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let mut response = DeltaDiscoveryResponse::decode_length_delimited(&mut bytes).unwrap();
        for any in response.resources.iter_mut().filter_map(|resource| resource.resource.as_mut()) {
            if any.type_url == Listener::type_url() {
                let listener = Listener::decode(any.value.as_slice()).unwrap();
                any.value = bindable(listener, network).encode_to_vec();
            }
        }
        all.push(response);
    }
    all
}

fn bindable(mut listener: Listener, network: &Network) -> Listener {
    if let Some(Place::SocketAddress(socket)) = listener.address.as_mut().and_then(|address| address.address.as_mut()) {
        if socket.address.parse() == Ok(IpAddr::V4(Ipv4Addr::UNSPECIFIED)) {
            socket.address = network.ip(RATINGS_OWN).to_string();
        }
        if let Some(PortSpecifier::PortValue(port @ 0..1024)) = &mut socket.port_specifier {
            *port += 10_000;
        }
    }
    listener
}
