//! metaflow-cluster-tests
