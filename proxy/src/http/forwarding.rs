//! placeholder (helper routes)
