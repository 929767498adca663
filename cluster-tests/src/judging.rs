//! Traces of real programs, judged against the truth.
//!
//! A driver asks the first of a chain of programs for `/t/<number>x`; each program puts the number into what it asks the next, so each request
//! says which trace it is of, and its port says which program serves it. The agent's own code sees the programs in this machine's kernel, and
//! the querier's own code puts what it saw together. Neither reads the numbers: links come from threads, sockets and headers alone.
//!
//! Leaves out: node and store (`tests/traces.rs`).

mod cases;
mod observer;
mod programs;
mod verdict;

pub use cases::{CASES, Case};
pub use observer::{Observer, Seen};
pub use programs::{Chain, Load, Part};
pub use verdict::{Verdict, judge};
