//! The generation: a number that grows with each start of the gossip of a node, so that others tell the new from the old; and how
//! often the node has lately come back without having left.
//!
//! Both are kept in the data folder, because a wall clock can be set back and a process forgets. A folder without the file (a new
//! disk) begins at the clock's second, so that it does not repeat what the old disk had said.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
};

/// What others may claim of our generation is followed up to this distance; beyond it is a forgery that would use up the numbers.
pub(super) const CLAIM_DISTANCE_MAX: u64 = 1 << 32;
/// Ends without leaving are remembered for so many seconds, and so many of them.
const CRASHES_WITHIN: u32 = 600;
const CRASHES_MAX: usize = 32;

/// What the file says.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Record {
    generation: Option<u64>,
    /// The process that wrote it has not left.
    running: bool,
    /// Seconds of the wall clock at which a process found that the one before had not left.
    crashes: Vec<u32>,
}

/// Who is about to gossip.
#[derive(Debug, Clone, Copy)]
pub(super) struct Start {
    /// The first of its process.
    pub(super) of_process: bool,
    /// The generation must be at least this.
    pub(super) generation_min: u64,
    pub(super) clock_seconds: u32,
}

/// Takes the next generation, which is on disk when this returns; also the number of late crashes.
pub(super) fn next(file: &Path, start: Start) -> io::Result<(u64, usize)> {
    let Start { of_process, generation_min, clock_seconds } = start;
    let mut record = read(file)?;
    let first = u64::from(clock_seconds).max(1);
    let next = record.generation.map_or(first, |last| last.saturating_add(1));
    let generation = next.max(generation_min);
    if of_process && record.running {
        record.crashes.push(clock_seconds);
    }
    // Of the future: the clock was set back.
    record.crashes.retain(|at| clock_seconds.checked_sub(*at).is_some_and(|age| age < CRASHES_WITHIN));
    let surplus = record.crashes.len().saturating_sub(CRASHES_MAX);
    record.crashes.drain(..surplus);
    (record.generation, record.running) = (Some(generation), true);
    write(file, &record)?;
    Ok((generation, record.crashes.len()))
}

/// The node leaves: its next start is no crash.
pub(super) fn left(file: &Path) -> io::Result<()> {
    let record = read(file)?;
    write(file, &Record { running: false, ..record })
}

/// A damaged file counts as none.
fn read(file: &Path) -> io::Result<Record> {
    let text = match fs::read(file) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Record::default()),
        Err(error) => return Err(error),
    };
    let mut lines = text.lines();
    let generation = lines.next().and_then(|line| line.parse().ok());
    let running = lines.next() == Some("running");
    let crashes = lines.filter_map(|line| line.parse().ok()).take(CRASHES_MAX).collect();
    Ok(Record { generation, running, crashes })
}

fn write(file: &Path, record: &Record) -> io::Result<()> {
    let new = file.with_extension("new");
    let mut written = File::create(&new)?;
    writeln!(written, "{}", record.generation.unwrap_or(0))?;
    writeln!(written, "{}", if record.running { "running" } else { "left" })?;
    for crash in &record.crashes {
        writeln!(written, "{crash}")?;
    }
    written.sync_all()?;
    fs::rename(&new, file)?;
    match file.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(generation_min: u64, clock_seconds: u32) -> Start {
        Start { of_process: true, generation_min, clock_seconds }
    }

    #[test]
    fn generations_grow_whatever_the_clock_says() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("gossip-generation");
        let next = |min, clock| next(&file, start(min, clock)).unwrap().0;
        assert_eq!(next(0, 1000), 1000);
        assert_eq!(next(0, 5), 1001);
        assert_eq!(next(2000, 9999), 2000);
        assert_eq!(next(0, 0), 2001);
    }

    #[test]
    fn a_damaged_file_counts_as_a_new_disk_and_a_missing_folder_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("gossip-generation");
        fs::write(&file, b"\0\xffgarbage").unwrap();
        assert_eq!(next(&file, start(0, 1_700_000_000)).unwrap(), (1_700_000_000, 0));
        assert!(next(&folder.path().join("no/such"), start(0, 1)).is_err());
    }

    #[test]
    fn crashes_are_counted_for_a_while_and_leaving_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("gossip-generation");
        let crashes = |clock| next(&file, start(0, clock)).unwrap().1;
        assert_eq!(crashes(1000), 0);
        assert_eq!(crashes(1010), 1);
        let again = Start { of_process: false, ..start(0, 1020) };
        assert_eq!(next(&file, again).unwrap().1, 1, "gossip that starts anew is no crash");
        left(&file).unwrap();
        assert_eq!(crashes(1030), 1);
        assert_eq!(crashes(1650), 1, "the first is long ago, and one was added");
        for second in 1651..1750 {
            crashes(second);
        }
        assert_eq!(crashes(1750), CRASHES_MAX);
    }
}
