//! metaflow-actors
