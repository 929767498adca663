//! The node process: configuration, sockets, start and stop, and the commands that talk to a node.
//!
//! It joins the actors of `metaflow-actors` to the outside: agents over gRPC, people and dashboards over HTTP. It decides nothing
//! about data. Reading order: `cli` picks a verb; `node` starts and stops the whole; `grpc` and `http` serve; `ctl` asks.

mod allocator;
pub mod cli;
mod clock;
pub mod config;
mod ctl;
mod doubts;
mod engine;
mod events;
mod files;
mod fleet;
mod grpc;
mod http;
mod inspect;
mod logging;
pub mod membership;
mod metrics;
mod node;
mod observe;
mod outside;
mod peers;
mod plain;
mod secrets;
mod shards;
mod tokens;

pub use outside::{Outside, Route};
