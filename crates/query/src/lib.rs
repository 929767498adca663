//! metaflow-query
