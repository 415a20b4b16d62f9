//! The harness of the end-to-end tests: real `skiff` processes in a small mesh on loopback addresses of their own.
//!
//! - [`network`]: addresses that no other test uses; [`skiff`]: a process, its log lines and its admin page.
//! - [`mesh`]: Istio YAML, a plane that signs certificates, and the sidecars of ratings and details.
//! - [`istiod`] and [`onboarding`]: a control plane and an onboarding plane that say what a test makes them say; [`joined`]: a
//!   sidecar that has joined the former; [`living`]: a real istiod, where there is one.
//! - [`door`]: details alone, open to everybody.
//! - [`apps`] and [`raw`]: the applications behind them; [`http`], [`http2`], [`frames`] and [`tls`]: clients that can misbehave.
//! - [`ecs`]: Bookinfo with a real onboarding plane; [`aws`]: AWS, as a task and an onboarding plane see it.
//! - [`bootstrap`]: `skiff proxy -c` without a mesh.
//! - [`collector`]: who takes spans and log records.
//! - [`access_log`] and [`metrics`]: what a sidecar says about what it did.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test harness fails by panicking")]

pub mod access_log;
pub mod apps;
pub mod aws;
pub mod bootstrap;
pub mod collector;
pub mod door;
pub mod ecs;
pub mod frames;
pub mod http;
pub mod http2;
pub mod istiod;
pub mod joined;
pub mod living;
pub mod load;
pub mod mesh;
pub mod metrics;
pub mod network;
pub mod onboarding;
pub mod raw;
pub mod skiff;
pub mod tls;
pub mod wait;
