//! HTTP: two codecs meet in one head and one body, so that routing, filters and logs know neither version.
//!
//! The way of a request: [`server`] reads it, [`exchange`] decides, `forward` carries it to an upstream.

pub mod body;
mod connect;
pub mod cors;
pub mod exchange;
mod ext_authz;
mod fault;
pub mod filter;
mod forward;
pub mod forwarding;
pub(crate) mod grpc;
pub mod h1;
pub mod h2;
pub(crate) mod hash;
pub mod head;
mod lifetime;
mod local_rate_limit;
pub mod local_reply;
pub mod manager;
mod messages;
mod mirror;
pub mod path;
pub mod pipe;
pub mod request_body;
pub mod responder;
pub mod retry;
mod rewrite;
pub mod route;
pub mod server;
mod spans;
pub mod subrequest;
pub mod timers;
mod underscores;
pub mod upgrade;
mod upstream;
