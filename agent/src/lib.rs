//! placeholder

pub mod bootstrap;
pub mod translate;
