//! Open files of the process: one for each connection, and some for everything else.
//!
//! Systems start programs with a low limit that they may raise up to a second one, because old programs cannot deal with more. A node can.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files that are no connections of agents: the node's database, HTTP, gossip, other nodes, the store.
const OTHERS: u64 = 1_024;
/// Least number of agents that a node takes, whatever the limit is: an operator who sees refused connections has something to look at.
const AGENTS_MIN: usize = 64;

/// Raises the limit as far as this process may; none is no limit.
pub(crate) fn raise_limit() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    match setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        Ok(()) => limit.maximum,
        Err(error) => {
            tracing::warn!(%error, "the limit of open files could not be raised");
            limit.current
        }
    }
}

/// How many agents may connect: as many as configured, or as there are files for.
pub(crate) fn connections(wanted: usize, limit: Option<u64>) -> usize {
    let files = limit.map_or(u64::MAX, |limit| limit.saturating_sub(OTHERS));
    let possible = usize::try_from(files).unwrap_or(usize::MAX).max(AGENTS_MIN);
    if possible < wanted {
        tracing::info!(
            wanted,
            possible,
            limit,
            "grpc.connections_max is more than the limit of open files leaves room for: raise LimitNOFILE of the unit, or ulimit -Hn"
        );
    }
    wanted.min(possible)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_for_everything_else() {
        assert_eq!(connections(4_096, None), 4_096);
        assert_eq!(connections(4_096, Some(20_000)), 4_096);
        assert_eq!(connections(65_536, Some(20_000)), 18_976);
        assert_eq!(connections(4_096, Some(512)), 64);
    }

    #[test]
    fn the_limit_is_raised_to_what_the_process_may_have() {
        let raised = raise_limit();
        assert_eq!(getrlimit(Resource::Nofile).current, raised);
        assert_eq!(getrlimit(Resource::Nofile).maximum, raised);
    }
}
