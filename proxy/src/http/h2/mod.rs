//! The HTTP/2 codec: what a real Envoy accepts, refuses and answers, frame by frame, for both directions.
//!
//! `core` is the state of a connection, a pure machine: `receive` feeds it with bytes, `send` puts frames into its output.
//! `driver` moves both over the socket, `stream` is what an exchange holds of it. `hpack` codes header blocks, `message`
//! judges them. [`server`] and [`client`] are the two ends. Details and manner of every refusal were measured on Envoy 1.40,
//! whose library is nghttp2.

pub mod client;
mod core;
mod driver;
mod frame;
mod hpack;
mod message;
mod receive;
mod send;
pub mod server;
mod stream;
mod tunnel;
mod validate;

#[cfg(test)]
mod tests;

pub use core::Failure;
pub use frame::Reason;
pub use stream::{Incoming, Outgoing, Respond};
pub use tunnel::Tunnel;
