//! What runs on this host: the processes, listeners and addresses that give rows their names.

mod snapshot;

pub use snapshot::{Listener, Snapshot};
