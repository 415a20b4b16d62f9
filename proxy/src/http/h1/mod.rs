//! The HTTP/1 codec: what a real Envoy accepts, refuses and writes, byte for byte, on two small state machines.
//!
//! [`head`] parses (tokens by httparse) and [`encode`] writes message heads, [`body`] does the same for bodies; none of them
//! knows I/O. [`server`] and [`client`] drive them over a [`crate::net::Stream`] with the buffers of `io`. Where Envoy is
//! laxer than is safe (bare CR, several Host fields, user-info in Host, an unasked 101) this codec refuses.

pub mod body;
pub mod client;
pub mod encode;
pub mod head;
pub(in crate::http) mod io;
mod probe;
#[cfg(test)]
mod recorded;
pub mod server;
