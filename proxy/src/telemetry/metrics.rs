//! placeholder (helper telemetry)
