//! One segment: an append-only file of records, and beside it a file of marks.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    identity::sync_directory,
    record::{self, MARK, SEGMENT_HEADER, Scan, SegmentHeader},
};

#[derive(Debug)]
pub(super) struct Segment {
    records_path: PathBuf,
    marks_path: PathBuf,
    pub(super) file: Arc<File>,
    marks: Option<File>,
    marks_bytes: u64,
    /// End of the last durable record.
    pub(super) bytes: u64,
    /// Batches that are not done with.
    pub(super) live: usize,
}

/// First number and count of batches that are done with.
pub(super) type Marks = Vec<(u64, u32)>;

fn records_path(directory: &Path, ordinal: u32) -> PathBuf {
    directory.join(format!("{ordinal:010}.segment"))
}

fn marks_path(directory: &Path, ordinal: u32) -> PathBuf {
    directory.join(format!("{ordinal:010}.marks"))
}

impl Segment {
    /// Creates the file with its header and makes both durable.
    pub(super) fn create(directory: &Path, header: SegmentHeader) -> io::Result<Self> {
        let path = records_path(directory, header.ordinal);
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        let made = file
            .write_all_at(&record::encode_segment_header(header), 0)
            .and_then(|()| file.sync_all())
            .and_then(|()| sync_directory(&path));
        if let Err(error) = made {
            // Leave no half-made file behind: a full disk is tried again and again.
            fs::remove_file(&path).ok();
            return Err(error);
        }
        Ok(Self {
            marks_path: marks_path(directory, header.ordinal),
            records_path: path,
            file: Arc::new(file),
            marks: None,
            marks_bytes: 0,
            bytes: SEGMENT_HEADER as u64,
            live: 0,
        })
    }

    /// Opens what an earlier process left: scans it, cuts a torn tail and reads the marks.
    pub(super) fn open(directory: &Path, ordinal: u32) -> io::Result<(Self, Scan, Marks)> {
        let path = records_path(directory, ordinal);
        let marks_path = marks_path(directory, ordinal);
        let scan = record::scan(&fs::read(&path)?);
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        if scan.torn_bytes > 0 {
            file.set_len(scan.length as u64)?;
            file.sync_all()?;
        }
        let marks = match fs::read(&marks_path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let segment = Self {
            records_path: path,
            marks_path,
            file: Arc::new(file),
            marks: None,
            // A torn mark is written over.
            marks_bytes: (marks.len() / MARK * MARK) as u64,
            bytes: scan.length as u64,
            live: 0,
        };
        Ok((segment, scan, record::decode_marks(&marks).collect()))
    }

    /// Notes that numbers are done with. Not synced: a mark lost with the power means that a batch is sent again.
    pub(super) fn mark(&mut self, first_seq: u64, count: u32) -> io::Result<()> {
        let marks = match &mut self.marks {
            Some(marks) => marks,
            none => none
                .insert(OpenOptions::new().write(true).create(true).truncate(false).open(&self.marks_path)?),
        };
        marks.write_all_at(&record::encode_mark(first_seq, count), self.marks_bytes)?;
        self.marks_bytes += MARK as u64;
        Ok(())
    }

    pub(super) fn disk_bytes(&self) -> u64 {
        self.bytes + self.marks_bytes
    }

    /// The marks go last: without their segment they mean nothing, without them its batches would be sent again.
    pub(super) fn delete(self) -> io::Result<()> {
        fs::remove_file(&self.records_path)?;
        if self.marks_bytes > 0 { fs::remove_file(&self.marks_path) } else { Ok(()) }
    }
}

/// The ordinals of the segments in a directory; marks without a segment are removed.
pub(super) fn list(directory: &Path) -> io::Result<Vec<u32>> {
    let mut ordinals = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let ordinal = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
        let Some(ordinal) = ordinal else { continue };
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("segment") => ordinals.push(ordinal),
            Some("marks") if !records_path(directory, ordinal).exists() => fs::remove_file(&path)?,
            _ => {}
        }
    }
    ordinals.sort_unstable();
    Ok(ordinals)
}
