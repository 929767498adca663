//! The machine: disk, files, certificates.

use std::{
    fs::File,
    io::Write as _,
    path::Path,
    time::{Duration, Instant},
};

use rustix::process::{Resource, getrlimit};

use super::{Check, judge};
use crate::{clock, config, node::Parts};

/// Synced writes of which the median counts.
const SYNCS: usize = 5;

/// Space and speed of the disk below the data folder.
pub(super) async fn disk(parts: &Parts) -> Vec<Check> {
    let (folder, wanted) = (parts.config().data_dir.clone(), parts.config().wal.size_max.0);
    let looking = tokio::task::spawn_blocking(move || {
        let space = match rustix::fs::statvfs(&folder) {
            Ok(stat) => {
                let size = stat.f_frsize;
                judge::space(stat.f_bavail * size, stat.f_blocks * size, wanted)
            }
            Err(error) => broken("disk space", &folder, &error.into()),
        };
        let sync = match sync_median(&folder) {
            Ok(median) => judge::fsync(median),
            Err(error) => broken("disk sync", &folder, &error),
        };
        vec![space, sync]
    });
    looking.await.unwrap_or_else(|error| {
        vec![Check::fail("disk space", error.to_string(), "look at the log of the node")]
    })
}

fn broken(check: &'static str, folder: &Path, error: &std::io::Error) -> Check {
    let found = format!("{} cannot be used: {error}", folder.display());
    Check::fail(check, found, "see that the disk is there, has space and belongs to the node's user")
}

/// Writes and syncs a small file some times.
fn sync_median(folder: &Path) -> std::io::Result<Duration> {
    let path = folder.join("doctor-probe");
    let mut times = Vec::with_capacity(SYNCS);
    let written = (|| {
        let mut file = File::create(&path)?;
        for _ in 0..SYNCS {
            let begin = Instant::now();
            file.write_all(&[0; 4096])?;
            file.sync_data()?;
            times.push(begin.elapsed());
        }
        Ok(())
    })();
    std::fs::remove_file(&path)?;
    times.sort_unstable();
    written.map(|()| times.get(SYNCS / 2).copied().unwrap_or_default())
}

/// Open files against their limit.
pub(super) fn files(parts: &Parts) -> Check {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, |files| files.count() as u64);
    let config = parts.config();
    let connections = config.grpc.connections_max.get() + config.http.connections_max.get();
    judge::files(limit, open, connections as u64)
}

/// Certificates of the node, and of those who prove themselves to it.
pub(super) fn certificates(parts: &Parts) -> Vec<Check> {
    let config = parts.config();
    let now = u64::from(clock::seconds());
    match config.tls.grpc() {
        Err(error) => {
            let advice = "put readable files of one certificate and its key in place: the node does not start again with these";
            vec![Check::fail("certificate", format!("{error:#}"), advice)]
        }
        Ok(Some(tls)) => {
            let mut checks = vec![judge::certificate("tls.certificate", tls.certificate_end(), now)];
            let authority = tls.client_authority_end();
            checks.extend(authority.map(|end| judge::certificate("tls.client_authority", end, now)));
            checks
        }
        Ok(None) => {
            let open: Vec<_> = [("grpc.listen", config.grpc.listen), ("http.listen", config.http.listen)]
                .into_iter()
                .filter(|(_, address)| !config::is_local(*address))
                .map(|(setting, _)| setting)
                .collect();
            if open.is_empty() {
                return vec![Check::ok("certificate", "none: all sockets are of this machine alone")];
            }
            let found = format!("none, and {} is open to other machines in plain text", open.join(" and "));
            let advice = "set tls.certificate and tls.key (metaflow ctl cert bootstrap makes them)";
            vec![Check::warn("certificate", found, advice)]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_measured_and_nothing_is_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        assert!(sync_median(folder.path()).unwrap() > Duration::ZERO);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        sync_median(&folder.path().join("missing")).unwrap_err();
    }
}
