//! The HTTP/1 codec: four small files, tokens parsed by httparse.

pub mod body;
pub mod client;
pub mod head;
pub mod server;
