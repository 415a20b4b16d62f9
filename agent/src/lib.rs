//! The agent of skiff: everything around the data plane.
//!
//! [`cli`] is the command line, [`sidecar`] wires one sidecar: configuration ([`watch`], translation) and certificates go into
//! [`skiff_proxy::Proxy`], [`admin`] shows what came of it, [`shutdown`] ends it. [`quickstart`] runs two of them in one process.

pub mod admin;
pub mod cli;
pub mod client;
pub mod exit;
pub mod logging;
pub mod metrics;
pub mod quickstart;
pub mod shutdown;
pub mod sidecar;
pub mod stand_in;
pub mod watch;
