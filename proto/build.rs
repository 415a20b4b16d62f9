//! Compiles our `.proto` files with protox, so that no protoc has to be installed, and cuts the descriptors of Envoy's
//! messages to what skiff reads.

#[path = "build/schema.rs"]
mod schema;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use prost::Message;
use prost_types::{FileDescriptorProto, FileDescriptorSet};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Files whose messages, and everything they refer to, can be read from JSON or YAML.
const ENVOY_FILES: &[&str] = &[
    "envoy/admin/v3/config_dump.proto",
    "envoy/config/bootstrap/v3/bootstrap.proto",
    "envoy/config/trace/v3/opentelemetry.proto",
    "envoy/config/trace/v3/zipkin.proto",
    "envoy/extensions/access_loggers/file/v3/file.proto",
    "envoy/extensions/access_loggers/filters/cel/v3/cel.proto",
    "envoy/extensions/access_loggers/open_telemetry/v3/logs_service.proto",
    "envoy/extensions/access_loggers/stream/v3/stream.proto",
    "envoy/extensions/filters/http/cors/v3/cors.proto",
    "envoy/extensions/filters/http/ext_authz/v3/ext_authz.proto",
    "envoy/extensions/filters/http/fault/v3/fault.proto",
    "envoy/extensions/filters/http/grpc_stats/v3/config.proto",
    "envoy/extensions/filters/http/jwt_authn/v3/config.proto",
    "envoy/extensions/filters/http/local_ratelimit/v3/local_rate_limit.proto",
    "envoy/extensions/filters/http/rbac/v3/rbac.proto",
    "envoy/extensions/filters/http/router/v3/router.proto",
    "envoy/extensions/filters/listener/http_inspector/v3/http_inspector.proto",
    "envoy/extensions/filters/listener/original_dst/v3/original_dst.proto",
    "envoy/extensions/filters/listener/tls_inspector/v3/tls_inspector.proto",
    "envoy/extensions/filters/network/connection_limit/v3/connection_limit.proto",
    "envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.proto",
    "envoy/extensions/filters/network/rbac/v3/rbac.proto",
    "envoy/extensions/filters/network/sni_cluster/v3/sni_cluster.proto",
    "envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.proto",
    "envoy/extensions/http/header_formatters/preserve_case/v3/preserve_case.proto",
    "envoy/extensions/load_balancing_policies/cluster_provided/v3/cluster_provided.proto",
    "envoy/extensions/load_balancing_policies/least_request/v3/least_request.proto",
    "envoy/extensions/load_balancing_policies/maglev/v3/maglev.proto",
    "envoy/extensions/load_balancing_policies/random/v3/random.proto",
    "envoy/extensions/load_balancing_policies/ring_hash/v3/ring_hash.proto",
    "envoy/extensions/load_balancing_policies/round_robin/v3/round_robin.proto",
    "envoy/extensions/load_balancing_policies/subset/v3/subset.proto",
    "envoy/extensions/load_balancing_policies/wrr_locality/v3/wrr_locality.proto",
    "envoy/extensions/network/dns_resolver/cares/v3/cares_dns_resolver.proto",
    "envoy/extensions/path/match/uri_template/v3/uri_template_match.proto",
    "envoy/extensions/request_id/uuid/v3/uuid.proto",
    "envoy/extensions/retry/host/previous_hosts/v3/previous_hosts.proto",
    "envoy/extensions/retry/priority/previous_priorities/v3/previous_priorities_config.proto",
    "envoy/extensions/tracers/opentelemetry/resource_detectors/v3/environment_resource_detector.proto",
    "envoy/extensions/tracers/opentelemetry/resource_detectors/v3/static_config_resource_detector.proto",
    "envoy/extensions/transport_sockets/proxy_protocol/v3/upstream_proxy_protocol.proto",
    "envoy/extensions/transport_sockets/raw_buffer/v3/raw_buffer.proto",
    "envoy/extensions/transport_sockets/tls/v3/tls.proto",
    "envoy/extensions/upstreams/http/v3/http_protocol_options.proto",
];

/// Istio's filters, which no published crate has.
const ISTIO_FILTERS: &[&str] =
    &["istio/filters/metadata_exchange.proto", "istio/filters/peer_metadata.proto", "istio/filters/stats.proto"];

fn main() -> Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed=proto");
    println!("cargo::rerun-if-changed=../Cargo.lock");
    let files = protox::compile(["istio/v1/auth/ca.proto", "skiff/onboarding/v1alpha1/onboarding.proto"], ["proto"])?;
    tonic_prost_build::configure().build_transport(false).codec_path("crate::codec::LeanCodec").compile_fds(files)?;
    let mut filters = protox::compile(ISTIO_FILTERS, ["proto"])?;
    filters.file.iter_mut().for_each(|file| file.source_code_info = None);
    let mut config = prost_build::Config::new();
    // The well-known types of Envoy's messages.
    config.compile_well_known_types().extern_path(".google.protobuf", "::envoy_types::pb::google::protobuf");
    config.enable_type_names().compile_fds(filters.clone())?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("filters.bin"), filters.encode_to_vec())?;
    let mut descriptors = envoy_descriptors()?;
    let known: BTreeSet<String> = descriptors.file.iter().map(|file| file.name().to_owned()).collect();
    descriptors.file.extend(filters.file.into_iter().filter(|file| !known.contains(file.name())));
    std::fs::write(out.join("envoy_schema.rs"), schema::tables(&descriptors)?)?;
    std::fs::write(out.join("envoy.bin"), descriptors.encode_to_vec())?;
    Ok(())
}

/// [`ENVOY_FILES`] and what they import, without comments and without the options of other tools.
fn envoy_descriptors() -> Result<FileDescriptorSet> {
    let path = envoy_types()?.join("src/generated/types.bin");
    let bytes = std::fs::read(&path).map_err(|error| format!("descriptors of envoy-types, {}: {error}", path.display()))?;
    // Decoding drops the extensions of validation tools, which are most of the options.
    let mut all: BTreeMap<String, FileDescriptorProto> =
        FileDescriptorSet::decode(bytes.as_slice())?.file.into_iter().map(|file| (file.name().to_owned(), file)).collect();
    let mut wanted: Vec<String> = ENVOY_FILES.iter().map(|&name| name.to_owned()).collect();
    let mut seen: BTreeSet<String> = wanted.iter().cloned().collect();
    let mut set = FileDescriptorSet::default();
    while let Some(name) = wanted.pop() {
        let mut file = all.remove(&name).ok_or_else(|| format!("{name} is missing in {}", path.display()))?;
        wanted.extend(file.dependency.iter().filter(|&import| seen.insert(import.clone())).cloned());
        file.source_code_info = None;
        set.file.push(file);
    }
    Ok(set)
}

/// Where cargo keeps the sources of `envoy-types`: the crate ships its descriptors beside its code without exporting them.
fn envoy_types() -> Result<PathBuf> {
    // Where cargo has fetched everything it does not have to ask again; a first build fetches only what it compiles, so that
    // cargo may have to fetch the rest for this answer.
    let output = metadata("--frozen").or_else(|_| metadata("--locked"))?;
    let metadata: serde_json::Value = serde_json::from_slice(&output)?;
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let manifest =
        packages.filter(|package| package["name"] == "envoy-types").find_map(|package| package["manifest_path"].as_str());
    let directory = manifest.and_then(|manifest| Path::new(manifest).parent());
    Ok(directory.ok_or("envoy-types is not among the dependencies")?.to_owned())
}

fn metadata(network: &str) -> Result<Vec<u8>> {
    let mut cargo = Command::new(std::env::var("CARGO")?);
    cargo.args(["metadata", "--format-version=1", network, "--filter-platform", &std::env::var("TARGET")?]);
    let output = cargo.output()?;
    if !output.status.success() {
        return Err(format!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(output.stdout)
}
