//! Data of a release, kept to see that later ones read it.
//!
//! `cargo run -p metaflow-cluster-tests --example release_fixture -- NAME` makes one, of a node that was killed with batches in
//! its log that no store had. One small archive a release stays below `fixtures/`; it is never made anew, since then it would be
//! another release's.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use flate2::{Compression, read::GzDecoder, write::GzEncoder};

/// What the agent of a fixture is called.
pub const MACHINE_ID: &str = "fixture-machine";
/// Batches in the log, and rows of each.
pub const BATCHES: u32 = 3;
pub const ROWS_A_BATCH: u32 = 40;
/// 2100-01-01: rows of that time are not too old for any table.
pub const SECOND: u64 = 4_102_444_800;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// Every fixture there is, by name.
pub fn all() -> Result<Vec<PathBuf>> {
    let mut archives: Vec<PathBuf> =
        std::fs::read_dir(folder())?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    archives.retain(|path| path.extension().is_some_and(|ending| ending == "gz"));
    archives.sort();
    ensure!(!archives.is_empty(), "no fixture is in {}", folder().display());
    Ok(archives)
}

/// Unpacks a fixture as the data folder of a node.
pub fn unpack(archive: &Path, data: &Path) -> Result<()> {
    let file = File::open(archive).with_context(|| format!("failed to open {}", archive.display()))?;
    tar::Archive::new(GzDecoder::new(file)).unpack(data)?;
    Ok(())
}

/// Packs what of a data folder belongs to a fixture: the node's own state. The store is another program's.
pub fn pack(data: &Path, name: &str) -> Result<PathBuf> {
    let path = folder().join(format!("{name}.tar.gz"));
    ensure!(!path.exists(), "{} is there already: a fixture is never made anew", path.display());
    std::fs::create_dir_all(folder())?;
    let mut archive = tar::Builder::new(GzEncoder::new(File::create(&path)?, Compression::best()));
    archive.mode(tar::HeaderMode::Deterministic);
    for entry in std::fs::read_dir(data.join("state"))? {
        let entry = entry?;
        let name = entry.file_name();
        // What RocksDB says of its work, and its lock.
        if name != "LOCK" && !name.to_string_lossy().starts_with("LOG") {
            archive.append_path_with_name(entry.path(), Path::new("state").join(name))?;
        }
    }
    archive.into_inner()?.finish()?;
    Ok(path)
}
