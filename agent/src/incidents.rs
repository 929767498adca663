//! Incidents: slow calls on files and lives of processes become rows. Pure. Bound: rows of a second; what is beyond is counted.

use crate::events::host::{FileCall, Life, Operation, Turn};

/// Rows of each sort in one second: a machine that starts a thousand processes a second says nothing new with each.
const ROWS_A_SECOND: u32 = 1_000;

/// A slow read, write or sync.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRow {
    /// Microseconds since 1970.
    pub start: u64,
    pub end: u64,
    pub pid: u32,
    pub thread: u32,
    pub thread_name: String,
    pub event_type: &'static str,
    pub directory: String,
    pub file: String,
    pub bytes: u64,
    /// Microseconds.
    pub duration: u64,
}

/// What happened to a process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LifeRow {
    /// Microseconds since 1970.
    pub time: u64,
    pub pid: u32,
    pub parent: u32,
    pub name: String,
    pub event_type: &'static str,
    pub program: String,
    pub exit_code: i32,
    pub signal: u8,
    pub sender: u32,
    pub sender_name: String,
    /// Microseconds.
    pub lived: u64,
}

/// Makes rows, within limits.
#[derive(Debug, Default)]
pub struct Incidents {
    /// What the wall clock is ahead of that of the records, microseconds.
    ahead: i64,
    second: u64,
    files: u32,
    lives: u32,
    excess: u64,
}

impl Incidents {
    pub fn set_clock(&mut self, ahead_us: i64) {
        self.ahead = ahead_us;
    }

    /// None: there were too many in this second.
    pub fn file(&mut self, call: FileCall) -> Option<FileRow> {
        let FileCall { entered, time, pid, thread, thread_name, operation, result, path } = call;
        self.admit(time, |this| &mut this.files)?;
        let (directory, file) = path.rsplit_once('/').unwrap_or(("", &path));
        Some(FileRow {
            start: self.wall(entered),
            end: self.wall(time),
            pid,
            thread,
            thread_name,
            event_type: match operation {
                Operation::Read => "read",
                Operation::Write => "write",
                Operation::Sync => "sync",
            },
            directory: if directory.is_empty() { "/".to_owned() } else { directory.to_owned() },
            file: file.to_owned(),
            bytes: u64::try_from(result).unwrap_or(0),
            duration: time.saturating_sub(entered) / 1_000,
        })
    }

    pub fn life(&mut self, life: Life) -> Option<LifeRow> {
        let Life { time, pid, parent, name, turn } = life;
        self.admit(time, |this| &mut this.lives)?;
        let row = LifeRow { time: self.wall(time), pid, parent, name, ..LifeRow::default() };
        Some(match turn {
            Turn::Start => LifeRow { event_type: "start", ..row },
            Turn::Exec { program } => LifeRow { event_type: "exec", program, ..row },
            Turn::Signal { number, sender, sender_name } => {
                LifeRow { event_type: "signal", signal: number, sender, sender_name, ..row }
            }
            Turn::OutOfMemory => LifeRow { event_type: "oom", ..row },
            Turn::Exit { code, signal, lived } => {
                LifeRow { event_type: "exit", exit_code: code, signal, lived: lived / 1_000, ..row }
            }
        })
    }

    /// Those that were too many, since the last time.
    pub fn take_excess(&mut self) -> u64 {
        std::mem::take(&mut self.excess)
    }

    fn admit(&mut self, time: u64, count: impl Fn(&mut Self) -> &mut u32) -> Option<()> {
        let second = time / 1_000_000_000;
        if second != self.second {
            (self.second, self.files, self.lives) = (second, 0, 0);
        }
        let count = count(self);
        if *count >= ROWS_A_SECOND {
            self.excess += 1;
            return None;
        }
        *count += 1;
        Some(())
    }

    fn wall(&self, time: u64) -> u64 {
        (time / 1_000).saturating_add_signed(self.ahead)
    }
}

/// The name of a signal; those without a name of their own are real-time ones.
pub fn signal_name(number: u8) -> &'static str {
    const NAMES: [&str; 32] = [
        "",
        "SIGHUP",
        "SIGINT",
        "SIGQUIT",
        "SIGILL",
        "SIGTRAP",
        "SIGABRT",
        "SIGBUS",
        "SIGFPE",
        "SIGKILL",
        "SIGUSR1",
        "SIGSEGV",
        "SIGUSR2",
        "SIGPIPE",
        "SIGALRM",
        "SIGTERM",
        "SIGSTKFLT",
        "SIGCHLD",
        "SIGCONT",
        "SIGSTOP",
        "SIGTSTP",
        "SIGTTIN",
        "SIGTTOU",
        "SIGURG",
        "SIGXCPU",
        "SIGXFSZ",
        "SIGVTALRM",
        "SIGPROF",
        "SIGWINCH",
        "SIGIO",
        "SIGPWR",
        "SIGSYS",
    ];
    NAMES.get(usize::from(number)).copied().unwrap_or("SIGRT")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(time: u64, path: &str) -> FileCall {
        FileCall {
            entered: time - 12_000_000,
            time,
            pid: 1,
            thread: 2,
            thread_name: "db".to_owned(),
            operation: Operation::Write,
            result: 4_096,
            path: path.to_owned(),
        }
    }

    #[test]
    fn a_slow_call_has_its_file_size_and_times_of_the_day() {
        let mut incidents = Incidents::default();
        incidents.set_clock(1_000_000);
        let row = incidents.file(call(20_000_000, "/var/data/file")).unwrap();
        assert_eq!((row.start, row.end, row.duration), (1_008_000, 1_020_000, 12_000));
        assert_eq!((row.directory.as_str(), row.file.as_str(), row.bytes), ("/var/data", "file", 4_096));
        for (path, expected) in [("/top", ("/", "top")), ("", ("/", ""))] {
            let row = incidents.file(call(20_000_000, path)).unwrap();
            assert_eq!((row.directory.as_str(), row.file.as_str()), expected);
        }
        let failed = FileCall { result: -5, ..call(20_000_000, "/top") };
        assert_eq!(incidents.file(failed).unwrap().bytes, 0);
    }

    #[test]
    fn rows_of_a_second_are_bounded_for_each_sort_and_counted() {
        let mut incidents = Incidents::default();
        let life = |time| Life { time, pid: 1, parent: 1, name: String::new(), turn: Turn::Start };
        let rows = (0..ROWS_A_SECOND + 7).filter_map(|_| incidents.life(life(5_000_000_000))).count();
        assert_eq!((rows, incidents.take_excess()), (1_000, 7));
        assert!(incidents.file(call(5_100_000_000, "/f")).is_some());
        assert!(incidents.life(life(6_000_000_000)).is_some());
        assert_eq!(incidents.take_excess(), 0);
    }

    #[test]
    fn signals_have_their_names() {
        let names = [0, 9, 11, 15, 31, 40].map(signal_name);
        assert_eq!(names, ["", "SIGKILL", "SIGSEGV", "SIGTERM", "SIGSYS", "SIGRT"]);
    }
}
