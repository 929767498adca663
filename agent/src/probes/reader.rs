//! A thread that looks into files: a large program takes it a tenth of a second, in which the eBPF thread goes on reading records. It also
//! lets go of probes, because the kernel waits for those that are running.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use aya::programs::uprobe::UProbeLink;

use super::binary::{self, Error, Findings};
use super::libraries::FileKey;

/// Files, and sets of probes, that wait.
const QUEUE_MAX: usize = 1_024;

pub(super) enum Work {
    Examine { key: FileKey, paths: Vec<PathBuf> },
    LetGo(Vec<UProbeLink>),
}

/// How it went with a file.
pub(super) struct Examined {
    pub(super) key: FileKey,
    /// The path that led to it, which is as good for the kernel.
    pub(super) result: Result<(PathBuf, Findings), Error>,
}

pub(super) struct Reader {
    work: SyncSender<Work>,
    examined: Receiver<Examined>,
}

impl Reader {
    /// `tls`: whether plain text of TLS is of interest. The thread ends with this handle.
    pub(super) fn start(tls: bool) -> std::io::Result<Self> {
        let (work, jobs) = sync_channel(QUEUE_MAX);
        let (results, examined) = sync_channel(QUEUE_MAX);
        std::thread::Builder::new().name("files".to_owned()).spawn(move || {
            for job in jobs {
                match job {
                    Work::Examine { key, paths } => {
                        let result = binary::examine(&paths, tls);
                        if results.send(Examined { key, result }).is_err() {
                            return;
                        }
                    }
                    Work::LetGo(links) => drop(links),
                }
            }
        })?;
        Ok(Self { work, examined })
    }

    /// False when there is no room: what was not taken is to be asked again.
    pub(super) fn examine(&self, key: FileKey, paths: Vec<PathBuf>) -> bool {
        self.work.try_send(Work::Examine { key, paths }).is_ok()
    }

    /// Where there is no room, the caller waits for the kernel itself.
    pub(super) fn let_go(&self, links: Vec<UProbeLink>) {
        if let Err(TrySendError::Full(work) | TrySendError::Disconnected(work)) =
            self.work.try_send(Work::LetGo(links))
        {
            drop(work);
        }
    }

    pub(super) fn next(&self) -> Option<Examined> {
        self.examined.try_recv().ok()
    }
}
