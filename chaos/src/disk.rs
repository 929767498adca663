//! A small disk of its own, to be full: a tmpfs that the test mounts (which needs root) and that is gone with the test.

use std::{
    fs::File,
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

/// Mounted until it is dropped.
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Mounts it at `path`, which is made.
    pub fn mount(path: &Path, bytes: u64) -> Result<Self> {
        std::fs::create_dir_all(path)?;
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes},mode=0700"), "metaflow-test"])
            .arg(path)
            .output()
            .context("failed to run mount")?;
        ensure!(
            output.status.success(),
            "failed to mount a tmpfs at {} (this test needs root): {}",
            path.display(),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(Self { path: path.to_owned() })
    }

    /// Takes all that is free but `leave` bytes. What others free in the meantime is theirs again.
    pub fn fill(&self, leave: u64) -> Result<()> {
        let mut file = File::options().create(true).append(true).open(self.filler())?;
        let zeros = vec![0_u8; 1 << 20];
        loop {
            let status = rustix::fs::statvfs(&self.path).context("failed to ask the disk for its space")?;
            let free = (status.f_bavail * status.f_frsize).saturating_sub(leave);
            let size = usize::try_from(free).unwrap_or(usize::MAX).min(zeros.len());
            if size == 0 {
                return Ok(());
            }
            match file.write_all(&zeros[..size]) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(error).context("failed to fill the disk"),
            }
        }
    }

    /// Space comes back.
    pub fn empty(&self) -> Result<()> {
        std::fs::remove_file(self.filler()).context("failed to empty the disk")
    }

    fn filler(&self) -> PathBuf {
        self.path.join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a process that still ends holds it a moment longer.
        match Command::new("umount").arg("--lazy").arg(&self.path).status() {
            Ok(status) if status.success() => {}
            other => eprintln!("{} stays mounted: {other:?}", self.path.display()),
        }
    }
}
