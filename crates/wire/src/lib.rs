//! The network contract: messages and services between agents and nodes, with their limits.
//!
//! Generated from `proto/metaflow.proto`; what is added here is the sealing of row batches (`Columns` to `Batch` and back) and
//! the limits that both ends enforce. Leaves out: what rows mean in the store (`metaflow-schema`).

mod batch;
mod codec;
mod measure;

pub use batch::{MalformedBatch, open, seal, seq};
pub use measure::{list_bytes_max, shared_text_bytes_max, text_bytes_max};

#[allow(
    clippy::all,
    clippy::too_many_lines,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
mod generated {
    tonic::include_proto!("metaflow.v1");
}
pub use generated::*;

/// Version of the protocol spoken by this release. It rises with a release whose messages mean more than those before, so that each side
/// knows what the other can understand:
/// 1. identity, facts, heartbeats, batches with two acknowledgements.
/// 2. agents keep their id on every node and are told where they belong; batches say that they come again.
pub const PROTOCOL_VERSION: u32 = 2;

/// The oldest version that a node of this release answers: that of the previous release.
pub const PROTOCOL_VERSION_OLDEST: u32 = 1;

/// Whether a node of this release answers who speaks this version.
pub const fn is_spoken(version: u32) -> bool {
    version >= PROTOCOL_VERSION_OLDEST && version <= PROTOCOL_VERSION
}

/// Header of a refused stream of batches: the id of the agent that the node does not know.
pub const UNKNOWN_AGENT: &str = "metaflow-unknown-agent";

/// Largest compressed payload of one batch. Bounds what one message can make a node hold.
pub const BATCH_BYTES_MAX: usize = 4 << 20;

/// Largest decompressed payload of one batch; zstd is stopped there, so a bomb costs no more.
pub const COLUMNS_BYTES_MAX: usize = 32 << 20;

/// Most text that the rows of one batch may have beyond what the batch lists, see [`shared_text_bytes_max`].
pub const TEXT_BYTES_MAX: usize = 4 << 20;

/// Most rows in one batch.
pub const BATCH_ROWS_MAX: u32 = 100_000;

/// Largest gRPC message either side accepts: a full batch and its envelope.
pub const MESSAGE_BYTES_MAX: usize = BATCH_BYTES_MAX + 64 * 1024;

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    /// Every agent says this every second, so its size is what a cluster of many agents lives on.
    #[test]
    fn a_heartbeat_of_an_agent_whose_configuration_is_unchanged_has_less_than_64_bytes() {
        let heartbeat = Heartbeat {
            config_version: u64::MAX,
            spool_bytes: 1 << 40,
            memory_bytes: 1 << 36,
            cpu_percent: 10_000,
            ..Default::default()
        };
        let request = SyncRequest { body: Some(sync_request::Body::Heartbeat(heartbeat)) };
        let reply =
            SyncResponse { body: Some(sync_response::Body::Heartbeat(HeartbeatReply { spread_ms: 3_000 })) };
        // gRPC puts five bytes before a message, HTTP/2 nine before those.
        assert!(request.encoded_len() + 5 + 9 < 64, "{}", request.encoded_len());
        assert!(reply.encoded_len() + 5 + 9 < 64, "{}", reply.encoded_len());
    }
}
