//! placeholder (helper tls)
