//! The MetaFlow agent: sees the requests and flows of a host and sends them, as columns, to the nodes.
//!
//! A row's path, in the order of the modules:
//!
//! ```text
//! capture -> packet -> flow -> session (protocol/*) -> emit -> spool -> sender
//!                                        facts ------> Sync ----^      guard watches all
//! ```
//!
//! `packet`, `flow`, `session`, `protocol` and `emit` are pure: bytes and times come in, records go out.

pub mod capabilities;
pub mod capture;
pub mod clock;
pub mod control;
pub mod emit;
pub mod events;
pub mod facts;
pub mod flow;
pub mod guard;
pub mod heap;
pub mod incidents;
pub mod metrics;
pub mod packet;
pub mod pipeline;
pub mod probes;
pub mod process;
pub mod profile;
pub mod protocol;
pub mod sender;
pub mod session;
pub mod sockets;
pub mod spool;

pub use metaflow_agent_config as config;
