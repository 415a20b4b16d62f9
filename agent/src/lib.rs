//! placeholder
pub mod translate;
