//! What runs on this host: the processes, listeners and addresses that give rows their names.
//!
//! [`Collector`] looks once a second; a look gives a [`Snapshot`], which goes to the nodes as changes, and a [`Host`], which tells the
//! emitter whose socket a flow belongs to. Leaves out: names of addresses elsewhere, which the nodes know.

mod collect;
mod host;
mod identity;
mod netlink;
mod process;
mod snapshot;
mod sockets;

pub use collect::Collector;
pub(crate) use collect::OWN;
pub use host::{Host, Socket};
pub use identity::{Identity, machine_id};
pub use snapshot::{Listener, Snapshot};
