//! Tests of the whole node: the real program with the real embedded engine, over its own interfaces.
//!
//! They need libchdb.so (`./dev engine`) and fail with how to get it where it is missing.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

mod agents;
mod fleet;
mod http;
mod inspect;
mod kit;
mod lifecycle;
mod profile;
mod secure;
