//! A small disk of its own, to be full: a tmpfs that the test mounts (which needs root) and that is gone with the test. What a killed test
//! left, the next one removes: the mount's name says whose it is.

use std::{
    fs::File,
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::network;

const PREFIX: &str = "metaflow-test-";

/// Mounted until it is dropped.
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Mounts it at `path`, which is made.
    pub fn mount(path: &Path, bytes: u64) -> Result<Self> {
        remove_leftovers()?;
        std::fs::create_dir_all(path)?;
        let name = format!("{PREFIX}{}", network::owner()?);
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes},mode=0700"), &name])
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
        if !unmount(&self.path) {
            eprintln!("{} stays mounted", self.path.display());
        }
    }
}

/// Takes away the disks of tests that are no more.
fn remove_leftovers() -> Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    for line in mounts.lines() {
        let mut words = line.split(' ');
        let (Some(name), Some(path)) = (words.next(), words.next()) else { continue };
        let owner = name.strip_prefix(PREFIX);
        if owner.and_then(network::is_left) == Some(true) {
            eprintln!("unmounting {path}, which a test that is no more has left");
            // Another test that starts now may have done it.
            unmount(Path::new(path));
        }
    }
    Ok(())
}

/// Lazily: a process that still ends holds it a moment longer.
fn unmount(path: &Path) -> bool {
    Command::new("umount").arg("--lazy").arg(path).status().is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_of_a_killed_test_is_unmounted_by_the_next_as_root() -> Result<()> {
        let folder = tempfile::tempdir()?;
        // No process of this machine began before the machine.
        let left = folder.path().join("left");
        std::fs::create_dir(&left)?;
        let name = format!("{PREFIX}1-0");
        let mounted = Command::new("mount").args(["-t", "tmpfs", &name]).arg(&left).status()?;
        ensure!(mounted.success(), "this test needs root");
        let disk = SmallDisk::mount(&folder.path().join("own"), 1 << 20)?;
        let mounts = std::fs::read_to_string("/proc/self/mounts")?;
        ensure!(!mounts.contains(&left.display().to_string()), "{mounts}");
        // That of a test that runs stays.
        let _other = SmallDisk::mount(&folder.path().join("other"), 1 << 20)?;
        disk.fill(0)?;
        disk.empty()
    }
}
