//! temporary
use std::sync::Arc;
pub struct Registry;
impl Registry {
    pub fn new(_: Arc<dyn metrics::Recorder + Send + Sync>, _: usize) -> Arc<Self> {
        Arc::new(Self)
    }
}
pub struct HttpSample<'a> {
    pub service: Option<&'a crate::config::Service>,
    pub peer_workload: Option<&'a Arc<crate::config::Workload>>,
    pub peer_principal: Option<&'a str>,
    pub mtls: bool,
    pub is_grpc: bool,
    pub response_code: u16,
    pub grpc_status: Option<u16>,
    pub flags: crate::flags::ResponseFlags,
    pub duration: std::time::Duration,
    pub request_bytes: u64,
    pub response_bytes: u64,
}
pub struct TcpSample<'a> {
    pub service: Option<&'a crate::config::Service>,
    pub peer_workload: Option<&'a Arc<crate::config::Workload>>,
    pub peer_principal: Option<&'a str>,
    pub mtls: bool,
    pub flags: crate::flags::ResponseFlags,
    pub received_bytes: u64,
    pub sent_bytes: u64,
}
pub struct IstioHttpMetrics;
impl IstioHttpMetrics {
    pub fn new(_: &Arc<Registry>, _: &crate::config::StatsLabels) -> Self {
        Self
    }
    pub fn record(&self, _: &HttpSample<'_>) {}
}
pub struct IstioTcpMetrics;
impl IstioTcpMetrics {
    pub fn new(_: &Arc<Registry>, _: &crate::config::StatsLabels) -> Self {
        Self
    }
    pub fn opened(&self, _: &TcpSample<'_>) {}
    pub fn closed(&self, _: &TcpSample<'_>) {}
}
pub struct ProxyMetrics;
impl ProxyMetrics {
    pub fn new(_: &Arc<Registry>) -> Self {
        Self
    }
    pub fn connection_refused(&self, _: &str) {}
    pub fn connection_opened(&self, _: &str) {}
    pub fn connection_closed(&self, _: &str) {}
    pub fn handshake_failed(&self, _: &str) {}
    pub fn connect_failed(&self, _: &str) {}
    pub fn config_applied(&self, _: &crate::ApplyReport) {}
    pub fn certificate(&self, _: &crate::CertificateStatus) {}
}
