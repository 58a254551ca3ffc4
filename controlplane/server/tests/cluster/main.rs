//! Real processes on loopback with mutual TLS: what must hold between them, and over their deaths.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod belonging;
mod daemon;
mod failures;
mod fixture;
mod membership;
mod scenarios;
