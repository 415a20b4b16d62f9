//! placeholder (lead)
