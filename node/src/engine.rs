//! The embedded engine's process: what the hidden verb `store-engine` runs.
//!
//! It serves ClickHouse from a shared library until its standard input closes, which happens when the node that holds the other end
//! stops or dies in any way; so no engine outlives its node. Leaves out: choosing ports, users and limits, and starting again after a
//! crash: the node's supervisor writes the configuration and watches the process.

// Named, because the tests of `actors` build this file from another folder.
#[path = "engine/library.rs"]
mod library;

use std::{
    fs::{File, TryLockError},
    io::Read,
    path::PathBuf,
    time::Duration,
};

use anyhow::Context;

/// Exit code when another engine has the folder: it may be about to end, so the supervisor tries again.
pub(crate) const FOLDER_IN_USE: u8 = 75;

/// The engine closes its tables within this time after its node is gone; then the process ends without it. Data is safe either way.
const CLOSE_WITHIN: Duration = Duration::from_secs(10);

/// What the supervisor says. `config.xml` and `users.xml` stand in the data folder.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// libchdb.so
    #[arg(long)]
    pub(crate) library: PathBuf,
    /// Folder of configuration, lock and tables.
    #[arg(long)]
    pub(crate) data: PathBuf,
    #[arg(long)]
    pub(crate) http_port: u16,
    #[arg(long)]
    pub(crate) tcp_port: u16,
}

/// Runs the engine until standard input closes; the answer is the exit code.
pub(crate) fn run(arguments: Arguments) -> anyhow::Result<u8> {
    let Arguments { library, data, http_port, tcp_port } = arguments;
    let lock_path = data.join("engine.lock");
    let lock = File::create(&lock_path).with_context(|| format!("failed to open {}", lock_path.display()))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(FOLDER_IN_USE),
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("failed to lock {}", lock_path.display()));
        }
    }
    // The engine waits on a copy of the lifeline of its own; this thread makes sure that the process ends even when the engine hangs.
    std::thread::Builder::new()
        .name("lifeline".to_owned())
        .spawn(end_with_the_node)
        .context("failed to watch the node")?;
    let statements = "SYSTEM START LISTEN HTTP; SYSTEM START LISTEN TCP; \
                      SELECT count() FROM file('/proc/self/fd/0', 'LineAsString', 'line String')";
    let engine_arguments = [
        "metaflow-engine".to_owned(),
        // Given here because the engine's own default would override the file.
        "--log-level=warning".to_owned(),
        format!("--config-file={}", data.join("config.xml").display()),
        format!("--path={}", data.join("data").display()),
        "--listen_host=127.0.0.1".to_owned(),
        format!("--http_port={http_port}"),
        format!("--tcp_port={tcp_port}"),
        format!("--query={statements}"),
    ];
    library::serve(&library, &engine_arguments)?;
    drop(lock);
    Ok(0)
}

fn end_with_the_node() {
    let mut byte = [0];
    // Nothing is ever written: an answer is the end of the node.
    while std::io::stdin().read(&mut byte).is_ok_and(|length| length > 0) {}
    let (_never, closed) = std::sync::mpsc::sync_channel::<()>(0);
    if closed.recv_timeout(CLOSE_WITHIN).is_err() {
        std::process::abort();
    }
}
