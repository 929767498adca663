//! Logs of the process: one line an event on standard error, for people (`text`) or for collectors (`json`). The latest lines stay in
//! memory too, for the debug bundle of an operator who has no access to the machine.

use std::{
    collections::VecDeque,
    io::{self, IsTerminal as _},
    sync::{Mutex, MutexGuard, PoisonError},
};

use tracing_subscriber::{EnvFilter, Layer, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::config::{Log, LogFormat};

/// Lines that are kept, and the longest of them: 2 MiB at most.
const LINES_MAX: usize = 2_000;
const LINE_BYTES_MAX: usize = 1_024;

/// One process, one log.
static LATEST: Latest = Latest(Mutex::new(VecDeque::new()));

/// Starts logging. `RUST_LOG` wins over the configured level, so that one run can be looked at closely.
pub(crate) fn init(config: &Log) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(config.level.filter()));
    let output = match config.format {
        LogFormat::Text => fmt::layer()
            .with_writer(io::stderr)
            .with_ansi(io::stderr().is_terminal())
            .with_target(false)
            .boxed(),
        LogFormat::Json => fmt::layer().json().flatten_event(true).with_writer(io::stderr).boxed(),
    };
    let kept = fmt::layer().with_writer(|| &LATEST).with_ansi(false).with_target(false);
    let started = tracing_subscriber::registry().with(filter).with(output).with(kept).try_init();
    if let Err(error) = started {
        tracing::debug!(%error, "a logger is installed already");
    }
}

/// The latest lines, the oldest first.
pub(crate) fn latest(lines_max: usize) -> Vec<String> {
    let lines = LATEST.lines();
    lines.iter().skip(lines.len().saturating_sub(lines_max)).cloned().collect()
}

struct Latest(Mutex<VecDeque<String>>);

impl Latest {
    fn lines(&self) -> MutexGuard<'_, VecDeque<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The formatter writes a whole line at a time.
impl io::Write for &Latest {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(LINE_BYTES_MAX)]);
        let mut lines = self.lines();
        if lines.len() >= LINES_MAX {
            lines.pop_front();
        }
        lines.push_back(text.trim_end().to_owned());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn the_latest_lines_are_kept_and_long_ones_cut() {
        let latest = Latest(Mutex::default());
        for line in 0..LINES_MAX + 5 {
            (&latest).write_all(format!("line {line}\n").as_bytes()).unwrap();
        }
        (&latest).write_all("é".repeat(LINE_BYTES_MAX).as_bytes()).unwrap();
        let lines = latest.lines();
        assert_eq!((lines.len(), lines[0].as_str()), (LINES_MAX, "line 6"));
        assert!(lines[LINES_MAX - 1].len() <= LINE_BYTES_MAX + 3);
    }
}
