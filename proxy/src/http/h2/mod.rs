//! HTTP/2 through the `h2` crate (hyper's own engine), used directly so that informational answers, reset codes, GOAWAY
//! and limits are ours to set.

pub mod client;
mod convert;
pub mod server;
mod stream;

pub use convert::{RequestError, read_request, read_response, read_trailers, write_request, write_response, write_trailers};
pub use stream::{Incoming, Outgoing};
