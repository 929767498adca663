//! The durability path against the real engine: crashes, cut answers, a stopped engine, and what the tables hold at the end.
//!
//! Needs the embedded engine's library: `./dev engine` fetches it.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

mod crash;
mod fence;
mod insert;
mod kit;
mod path;
mod proxy;
mod ranges;
mod refusals;
