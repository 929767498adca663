//! The work of a node: what happens to row batches, facts and queries.
//!
//! ```text
//! gRPC Ingest --Batch+permit--> ingester --Accepted--> labeler --Labelled--> writer --blocks--> store
//!      ^                          |  ^                    |                    |
//!      '------ Received, Committed'  '---- Stored --------|--------------------'
//! gRPC Sync --Facts--> controller --snapshot--> labeler   '--names--> dictionary --rows--> store
//! HTTP SQL --> querier --> store
//! ```
//!
//! Bound of every edge: a batch holds a [`memory::Permit`] from the socket until its rows are stored; channels are bounded in
//! messages. Leaves out: sockets, gossip, command line (`node`).

pub mod controller;
pub mod dictionary;
pub mod disk;
pub mod documents;
pub mod doubts;
pub mod groups;
pub mod ingester;
pub mod labeler;
pub mod memory;
pub mod placement;
pub mod querier;
pub mod rows;
pub mod store;
pub mod tap;
pub mod underway;
pub mod wal;
pub mod writer;
