//! What nodes set on this agent: laid over its file, applied where that needs no restart, kept on disk for the next start.
//!
//! It is kept so that an agent that was switched off stays off when it starts while no node answers. What cannot be applied is told
//! with every heartbeat. Leaves out: what a setting does.

use std::{fs, io, path::PathBuf, sync::Arc};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::config::{Config, Remote, take_hot};

/// Name of the kept file in the agent's directory.
const FILE: &str = "remote.toml";
/// Keys that are told to nodes; more than a person reads.
const PENDING_MAX: usize = 16;

/// The settings that count now, for those who follow them.
pub type Running = watch::Receiver<Arc<Config>>;

/// What the node sent, as it is kept.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    version: u64,
    settings: String,
}

/// How the agent stands to what its node wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stand {
    /// Of the configuration that was taken last; 0: the file alone.
    pub version: u64,
    /// Keys that wait for a restart.
    pub pending: Vec<String>,
    /// Why the last one was not taken, or not wholly.
    pub problem: String,
}

/// The file's settings and what was laid over them.
#[derive(Debug)]
pub struct Control {
    file: Config,
    path: PathBuf,
    running: watch::Sender<Arc<Config>>,
    stand: Stand,
}

impl Control {
    /// With what is kept from before. Settings count from the start on, those too that need one.
    pub fn open(file: Config) -> Self {
        let path = file.data_dir.join(FILE);
        let (config, stand) =
            match read(&path).and_then(|kept| Ok((over(&file, &kept.settings)?, kept.version))) {
                Ok((config, version)) => (config, Stand { version, ..Stand::default() }),
                Err(error) => {
                    let problem = format!("{error:#}");
                    tracing::warn!(problem, "what a node set before does not count until it sets it again");
                    (file.clone(), Stand { problem, ..Stand::default() })
                }
            };
        let (running, _) = watch::channel(Arc::new(config));
        Self { file, path, running, stand }
    }

    pub fn running(&self) -> Running {
        self.running.subscribe()
    }

    pub fn stand(&self) -> &Stand {
        &self.stand
    }

    /// The start failed with what nodes set: the file counts, but for what is hot.
    pub fn fall_back(&mut self, problem: &anyhow::Error) {
        let wanted = Arc::clone(&self.running.borrow());
        let (config, pending) = take_hot(&self.file, &wanted);
        self.running.send_replace(Arc::new(config));
        self.stand.pending = shortened(pending);
        self.stand.problem = format!("the start failed with it: {problem:#}");
        tracing::error!(problem = self.stand.problem, "the agent runs with its file instead");
    }

    /// Whether something is laid over the file.
    pub fn has_more_than_the_file(&self) -> bool {
        **self.running.borrow() != self.file
    }

    /// Takes what a node sent, or says in [`Stand::problem`] why not.
    pub fn take(&mut self, version: u64, settings: &str) {
        let wanted = match over(&self.file, settings) {
            Ok(wanted) => wanted,
            Err(error) => {
                self.stand.problem = format!("{error:#}");
                tracing::error!(
                    version,
                    problem = self.stand.problem,
                    "configuration from the node is not taken"
                );
                return;
            }
        };
        let (config, pending) = take_hot(&self.running.borrow(), &wanted);
        self.stand = Stand { version, pending: shortened(pending), problem: String::new() };
        if let Err(error) = self.keep(version, settings) {
            self.stand.problem = format!("it is forgotten at the next start: {error:#}");
            tracing::warn!(problem = self.stand.problem, "configuration from the node is not kept");
        }
        tracing::info!(version, pending = ?self.stand.pending, "configuration from the node");
        self.running.send_if_modified(|running| {
            let is_new = **running != config;
            *running = Arc::new(config);
            is_new
        });
    }

    fn keep(&self, version: u64, settings: &str) -> anyhow::Result<()> {
        if version == 0 {
            return match fs::remove_file(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
                _ => Ok(()),
            };
        }
        let next = self.path.with_extension("next");
        let text = toml::to_string(&Kept { version, settings: settings.to_owned() })?;
        fs::write(&next, text)
            .and_then(|()| fs::rename(&next, &self.path))
            .with_context(|| format!("failed to write {}", self.path.display()))
    }
}

fn read(path: &std::path::Path) -> anyhow::Result<Kept> {
    match fs::read_to_string(path) {
        Ok(text) => toml::from_str(&text).with_context(|| format!("{} is damaged", path.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Kept::default()),
        Err(error) => Err(error).with_context(|| format!("failed to read {}", path.display())),
    }
}

fn over(file: &Config, settings: &str) -> anyhow::Result<Config> {
    Ok(Remote::parse(settings)?.over(file)?)
}

fn shortened(mut pending: Vec<String>) -> Vec<String> {
    pending.truncate(PENDING_MAX);
    pending
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_set_counts_at_once_where_it_can_and_wholly_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let file = Config { data_dir: folder.path().to_owned(), ..Config::default() };
        let mut control = Control::open(file.clone());
        let running = control.running();
        assert_eq!((**running.borrow() == file, control.stand().version), (true, 0));
        control.take(7, "enabled = false\n[capture]\nflows_max = 9");
        assert!(!running.borrow().enabled);
        assert_eq!(running.borrow().capture, file.capture);
        assert_eq!(control.stand().pending, ["capture.flows_max"]);

        control.take(8, "[guard]\ncpu_max = 1");
        assert_eq!(control.stand().version, 7, "what is refused does not count");
        assert!(control.stand().problem.contains("guard.cpu_max"), "{:?}", control.stand());

        let mut again = Control::open(file.clone());
        let started = again.running();
        assert_eq!((started.borrow().enabled, started.borrow().capture.flows_max), (false, 9));
        assert_eq!(again.stand(), &Stand { version: 7, ..Stand::default() });
        again.fall_back(&anyhow::anyhow!("no memory"));
        assert_eq!((started.borrow().enabled, started.borrow().capture == file.capture), (false, true));
        assert!(again.stand().problem.contains("no memory"));

        again.take(0, "");
        assert_eq!(**started.borrow(), file);
        assert_eq!(Control::open(file).stand(), &Stand::default());
    }

    #[test]
    fn a_damaged_file_is_no_reason_not_to_start() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE), "version = ").unwrap();
        let file = Config { data_dir: folder.path().to_owned(), ..Config::default() };
        let control = Control::open(file.clone());
        assert_eq!(**control.running().borrow(), file);
        assert!(control.stand().problem.contains(FILE));
    }
}
