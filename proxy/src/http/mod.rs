//! HTTP: two codecs meet in one head and one body, so that routing, filters and logs know neither version.

pub mod body;
pub mod cors;
pub mod forwarding;
pub mod h1;
pub mod head;
pub mod path;
mod rewrite;
pub mod route;
