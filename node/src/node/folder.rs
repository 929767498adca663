//! The data folder: made when missing, and held by one node at a time.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{Read as _, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};

/// A data folder that this process holds; dropping it lets go.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    /// The lock is the kernel's: it is gone when the process is, however it ended.
    _lock: File,
}

impl Folder {
    /// Makes and takes the folder. Only this user may look into it: it holds what hosts say to each other.
    pub(super) fn take(path: &Path) -> anyhow::Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .with_context(|| format!("failed to make data_dir {}", path.display()))?;
        let lock_path = path.join("node.lock");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_path)
            .with_context(|| format!("failed to open {}", lock_path.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Who holds it is a help; not to know it is no further error.
                let holder = match lock.read_to_string(&mut holder) {
                    Ok(_) if !holder.trim().is_empty() => format!("process {}", holder.trim()),
                    _ => "another process".to_owned(),
                };
                bail!("data_dir {} is in use by {holder}: one node at a time", path.display());
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("failed to lock {}", lock_path.display()));
            }
        }
        lock.set_len(0)
            .and_then(|()| writeln!(lock, "{}", std::process::id()))
            .with_context(|| format!("failed to write {}", lock_path.display()))?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// The node's own database.
    pub(super) fn database(&self) -> PathBuf {
        self.path.join("state")
    }

    /// The last generation of this node's gossip.
    pub(super) fn gossip_generation(&self) -> PathBuf {
        self.path.join("gossip-generation")
    }

    /// The embedded engine's folder.
    pub(super) fn engine(&self) -> PathBuf {
        self.path.join("store")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_taker_is_told_who_holds_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/data");
        let first = Folder::take(&path).unwrap();
        let error = Folder::take(&path).unwrap_err().to_string();
        assert!(error.contains(&format!("in use by process {}", std::process::id())), "{error}");
        drop(first);
        Folder::take(&path).unwrap();
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let error = Folder::take(&file.join("data")).unwrap_err().to_string();
        assert!(error.contains(&file.display().to_string()), "{error}");
    }
}
