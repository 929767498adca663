//! Capture files as a source, as fast as possible or at their own pace.

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::pcap::Pcap;
use super::pcapng::{self, PcapNg};
use super::{Error, Progress, Source, Statistics};
use crate::packet::{Frame, LinkType, TIMESTAMP_MAX};

/// No link carries larger frames, even with offload; a longer record means that the file is damaged.
const RECORD_BYTES_MAX: u32 = 16 << 20;

/// Frames handed over in one poll.
const POLL_FRAMES_MAX: usize = 256;

/// How a file's times are used.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Replay {
    pub at: ReplayAt,
    /// Frames come as far apart as they were captured, divided by this; as fast as possible without.
    pub speed: Option<f64>,
}

/// Which time the first frame gets; the others keep their distance to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ReplayAt {
    /// The time at which it was captured.
    #[default]
    Recorded,
    /// This one, in microseconds since 1970.
    Time(u64),
}

/// One capture file.
pub struct FileSource<R = BufReader<File>> {
    path: PathBuf,
    input: Input<R>,
    format: Format,
    replay: Replay,
    pace: Option<Pace>,
    /// Read, but its time has not come.
    held: Option<Record>,
    first: Option<u64>,
    last: u64,
    statistics: Statistics,
}

#[derive(Debug)]
enum Format {
    Pcap(Pcap),
    PcapNg(PcapNg),
}

#[derive(Debug)]
struct Pace {
    start: Option<Instant>,
    speed: f64,
}

impl FileSource {
    /// Opens a file and reads its header.
    pub fn open(path: &Path, replay: Replay) -> Result<Self, Error> {
        let file = File::open(path).map_err(|source| Error::Open { path: path.to_owned(), source })?;
        Self::new(path, BufReader::with_capacity(1 << 18, file), replay)
    }
}

impl<R: BufRead> FileSource<R> {
    /// Reads from anything; `path` is for messages.
    pub fn new(path: &Path, reader: R, replay: Replay) -> Result<Self, Error> {
        let mut input = Input { reader, buffer: Vec::new(), packet: 0 };
        let format = open(&mut input).map_err(|damage| damage.into_error(path, 0))?;
        let speed = replay.speed.filter(|speed| speed.is_finite() && *speed > 0.0);
        Ok(Self {
            path: path.to_owned(),
            input,
            format,
            replay,
            pace: speed.map(|speed| Pace { start: None, speed }),
            held: None,
            first: None,
            last: 0,
            statistics: Statistics::default(),
        })
    }

    fn next(&mut self) -> Result<Option<Record>, Error> {
        let next = match &mut self.format {
            Format::Pcap(pcap) => pcap.next(&mut self.input),
            Format::PcapNg(pcapng) => pcapng.next(&mut self.input),
        };
        let number = self.input.packet + 1;
        let mut next = next.map_err(|damage| damage.into_error(&self.path, number))?;
        if let Some(record) = &mut next {
            self.input.packet = number;
            if record.timestamp == 0 {
                record.timestamp = self.last;
            }
            if record.timestamp > TIMESTAMP_MAX {
                let damage = Damage::Wrong("time beyond the year 2200".to_owned());
                return Err(damage.into_error(&self.path, number));
            }
            self.last = record.timestamp;
            self.first.get_or_insert(record.timestamp);
        }
        Ok(next)
    }

    /// How long the frame has to wait.
    fn wait_for(&mut self, record: &Record) -> Option<Duration> {
        let pace = self.pace.as_mut()?;
        let start = *pace.start.get_or_insert_with(Instant::now);
        let distance = record.timestamp.saturating_sub(self.first.unwrap_or(0));
        let due = Duration::try_from_secs_f64(distance as f64 / 1e6 / pace.speed).unwrap_or(Duration::MAX);
        due.checked_sub(start.elapsed()).filter(|wait| !wait.is_zero())
    }
}

impl<R: BufRead> Source for FileSource<R> {
    fn poll(&mut self, wait: Duration, each: &mut dyn FnMut(&Frame<'_>)) -> Result<Progress, Error> {
        for handed in 0..POLL_FRAMES_MAX {
            let record = match self.held.take() {
                Some(record) => record,
                None => match self.next()? {
                    Some(record) => record,
                    None => return Ok(if handed == 0 { Progress::End } else { Progress::Frames }),
                },
            };
            if let Some(due) = self.wait_for(&record) {
                self.held = Some(record);
                if handed > 0 {
                    return Ok(Progress::Frames);
                }
                // Nothing else can happen before the frame is due, so the thread rests until then.
                std::thread::park_timeout(due.min(wait));
                return Ok(Progress::Idle);
            }
            let timestamp = match (self.replay.at, self.first) {
                (ReplayAt::Time(at), Some(first)) => {
                    at.saturating_add(record.timestamp).saturating_sub(first).min(TIMESTAMP_MAX)
                }
                _ => record.timestamp,
            };
            self.statistics.frames += 1;
            each(&Frame {
                timestamp,
                interface_index: record.interface_index,
                link: record.link,
                vlan: 0,
                data: &self.input.buffer[record.start..record.start + record.captured],
                wire_length: record.wire_length,
            });
        }
        Ok(Progress::Frames)
    }

    fn statistics(&mut self) -> Statistics {
        self.statistics
    }
}

fn open<R: BufRead>(input: &mut Input<R>) -> Result<Format, Damage> {
    let magic = input.read(4, "file header")?.first_chunk().copied().unwrap_or_default();
    if u32::from_be_bytes(magic) == pcapng::SECTION {
        return PcapNg::open(input).map(Format::PcapNg);
    }
    match Pcap::open(magic, input)? {
        Some(pcap) => Ok(Format::Pcap(pcap)),
        None => Err(Damage::Wrong("no pcap or pcapng header".to_owned())),
    }
}

/// One packet of a file; its data is in the input's buffer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Record {
    /// Microseconds since 1970; 0 when the file does not say.
    pub(super) timestamp: u64,
    pub(super) interface_index: u32,
    pub(super) link: LinkType,
    pub(super) start: usize,
    pub(super) captured: usize,
    pub(super) wire_length: u32,
}

/// Reads a file piece by piece into one buffer.
#[derive(Debug)]
pub(super) struct Input<R> {
    reader: R,
    buffer: Vec<u8>,
    /// Packets read.
    packet: u64,
}

/// What is wrong with a file.
#[derive(Debug)]
pub(super) enum Damage {
    Wrong(String),
    Io(std::io::Error),
}

impl Damage {
    pub(super) fn short() -> Self {
        Self::Wrong("block that is too short".to_owned())
    }

    fn into_error(self, path: &Path, packet: u64) -> Error {
        let path = path.to_owned();
        match self {
            Self::Wrong(what) => Error::Damaged { path, packet, what },
            Self::Io(source) => Error::Read { path, packet, source },
        }
    }
}

impl<R: BufRead> Input<R> {
    /// Nothing follows.
    pub(super) fn at_end(&mut self) -> Result<bool, Damage> {
        loop {
            match self.reader.fill_buf() {
                Ok(data) => return Ok(data.is_empty()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Damage::Io(error)),
            }
        }
    }

    /// Reads exactly that much.
    pub(super) fn read(&mut self, length: usize, what: &str) -> Result<&[u8], Damage> {
        self.buffer.resize(length, 0);
        match self.reader.read_exact(&mut self.buffer) {
            Ok(()) => Ok(&self.buffer),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                Err(Damage::Wrong(format!("file ends inside the {what}")))
            }
            Err(error) => Err(Damage::Io(error)),
        }
    }

    /// Reads data whose length the file states.
    pub(super) fn read_data(&mut self, length: u32) -> Result<&[u8], Damage> {
        if length > RECORD_BYTES_MAX {
            return Err(Damage::Wrong(format!("record of {length} bytes")));
        }
        self.read(length as usize, "data")
    }
}
