//! metaflow-chaos
