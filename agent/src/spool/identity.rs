//! Small files beside the spool, replaced as a whole: its generation, the id that the nodes gave this agent, and what shows that they did.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
};

/// Begin of the count of generations: 2024-01-01T00:00:00Z in seconds since 1970.
const GENERATION_EPOCH: u64 = 1_704_067_200;

/// The generation of a spool that is created at this time (microseconds since 1970).
pub fn generation_at(now: u64) -> u32 {
    u32::try_from((now / 1_000_000).saturating_sub(GENERATION_EPOCH)).unwrap_or(u32::MAX).max(1)
}

/// The number in a file; none when the file is missing or damaged.
pub(super) fn read_number(path: &Path) -> io::Result<Option<u32>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(parse_number(&text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(None),
        Err(error) => Err(error),
    }
}

/// The numbers in a file, but for those that are damaged.
pub(super) fn read_numbers(path: &Path) -> io::Result<Vec<u32>> {
    match fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).lines().filter_map(parse_number).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn parse_number(text: &str) -> Option<u32> {
    let (number, crc) = text.trim_end().split_once(' ')?;
    (u32::from_str_radix(crc, 16).ok()? == crc32fast::hash(number.as_bytes())).then(|| number.parse().ok())?
}

/// Replaces the number so that a crash leaves either the old or the new one.
pub(super) fn write_number(path: &Path, number: u32) -> io::Result<()> {
    write_numbers(path, &[number])
}

/// The same for several, one a line.
pub(super) fn write_numbers(path: &Path, numbers: &[u32]) -> io::Result<()> {
    let line = |number: &u32| {
        let number = number.to_string();
        format!("{number} {:08x}\n", crc32fast::hash(number.as_bytes()))
    };
    write(path, numbers.iter().map(line).collect::<String>().as_bytes())
}

/// What a node said with the agent's id; empty when there is no such file. Nodes notice when it is damaged.
pub(super) fn read_proof(path: &Path) -> io::Result<Vec<u8>> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read,
    }
}

pub(super) fn write_proof(path: &Path, proof: &[u8]) -> io::Result<()> {
    write(path, proof)
}

fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let next = path.with_extension("next");
    let mut file = File::create(&next)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&next, path)?;
    sync_directory(path)
}

/// Makes a created or renamed file durable.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}
