//! Tests of the whole node: the real program with the real embedded engine, over its own interfaces.
//!
//! They need libchdb.so (`./dev engine`) and fail with how to get it where it is missing.

mod agents;
mod http;
mod kit;
mod lifecycle;
