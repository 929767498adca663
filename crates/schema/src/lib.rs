//! The catalogue: every table, column, tag, metric and enumeration of MetaFlow, declared once.
//!
//! From a declaration come the column block that the row path fills, the DDL, the Native encoding, what queries may name, `SHOW`
//! and the reference page. Leaves out: SQL of users (`metaflow-query`) and talking to a store (`actors`).

pub mod block;
pub mod catalogue;
pub mod ddl;
pub mod enums;
pub mod metrics;
pub mod reference;
pub mod tables;
pub mod tags;
pub mod types;

pub use block::{Block, Column, Group, Role, UnevenColumns, encode_native};
pub use tables::{Partition, TABLES, Table};
