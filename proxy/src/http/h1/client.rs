//! placeholder (helper h1)
