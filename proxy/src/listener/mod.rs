//! Listeners: sockets, acceptance, and the drain of what they have accepted.

mod accept;
mod chain;
mod connection;

pub use accept::Acceptor;
pub use chain::{Filter, FilterChain, ListenerRuntime, Seen};
pub use connection::serve;
