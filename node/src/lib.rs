//! metaflow-node
