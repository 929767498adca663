//! The flow table: packets become flows with TCP state, delays and counters.

pub mod report;

pub use report::{Activity, Delay, Ends, FlowFacts, FlowReport, Output, Traffic};
