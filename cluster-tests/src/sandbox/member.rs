//! A node in this process, on a runtime of its own: the end of the runtime is the node's death, in the middle of whatever it does.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use metaflow_node::{Outside, Route, config};
use tokio::{runtime::Runtime, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// A folder, a database and ports are free again soon after a death.
const START_AGAIN_AFTER: Duration = Duration::from_millis(100);
const STARTS: u32 = 100;
const ENDS_WITHIN: Duration = Duration::from_secs(30);

pub(super) struct Member {
    pub(super) node_id: u16,
    file: PathBuf,
    pub(super) grpc: SocketAddr,
    pub(super) http: SocketAddr,
    route: Route,
    running: Option<(Runtime, JoinHandle<Result<()>>, CancellationToken)>,
}

impl Member {
    /// A node that is not started yet; `file` is its configuration.
    pub(super) fn new(node_id: u16, file: PathBuf, grpc: SocketAddr, http: SocketAddr, route: Route) -> Self {
        Self { node_id, file, grpc, http, route, running: None }
    }

    pub(super) fn start(&mut self) -> Result<()> {
        if self.running.is_some() {
            return Ok(());
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name(format!("n{}", self.node_id))
            .enable_all()
            .build()
            .context("failed to start a runtime")?;
        let outside = Outside { stop: CancellationToken::new(), route: self.route.clone() };
        let (file, stop) = (self.file.clone(), outside.stop.clone());
        let task = runtime.spawn(async move {
            let mut starts = 0;
            loop {
                let config = config::load(Some(&file), None)?;
                match outside.clone().run(config).await {
                    Err(_) if starts < STARTS => starts += 1,
                    Err(error) => {
                        eprintln!("a node does not start: {error:#}");
                        return Err(error);
                    }
                    Ok(()) => return Ok(()),
                }
                tokio::time::sleep(START_AGAIN_AFTER).await;
            }
        });
        self.running = Some((runtime, task, stop));
        Ok(())
    }

    /// Dies at once.
    pub(super) fn kill(&mut self) {
        if let Some((runtime, ..)) = self.running.take() {
            runtime.shutdown_background();
        }
    }

    /// Tells it to end as SIGTERM does.
    pub(super) fn terminate(&self) {
        if let Some((_, _, stop)) = &self.running {
            stop.cancel();
        }
    }

    /// Waits until it has ended by itself.
    pub(super) async fn ended(&mut self) -> Result<()> {
        let (runtime, task, _) = self.running.take().context("the node does not run")?;
        let ended = tokio::time::timeout(ENDS_WITHIN, task).await;
        runtime.shutdown_background();
        ended.context("the node did not end")??
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}
