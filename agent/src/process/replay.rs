//! Replays capture files through the path of live traffic, until the store has all of it.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, bail};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Process, Start, Status, join, replay_dir};
use crate::{
    capture::{FileSource, Replay as FileReplay, ReplayAt},
    clock,
    config::Config,
    control::Control,
    emit,
    facts::{Host, Snapshot, machine_id},
    flow,
    pipeline::{Feed, Overflow, capture},
};

/// What to replay and how.
#[derive(Debug, Clone)]
pub struct Replay {
    pub files: Vec<PathBuf>,
    /// How often.
    pub times: u32,
    /// Speed as a multiple of the original; none is as fast as possible.
    pub pace: Option<f64>,
    /// Move the packets' times to the present.
    pub at_now: bool,
    /// Give up when nothing was committed for so long.
    pub patience: Duration,
    pub data_dir: Option<PathBuf>,
    pub machine_id: Option<String>,
}

/// Returns when everything is committed; an error says what is not.
pub async fn replay(
    mut config: Config,
    replay: Replay,
    stop: CancellationToken,
) -> anyhow::Result<(Status, anyhow::Result<()>)> {
    // Two spools are two agents: their batches must not share numbers.
    let machine =
        replay.machine_id.clone().unwrap_or_else(|| format!("{}-replay", machine_id(&config.machine_id)));
    config.data_dir = replay.data_dir.clone().unwrap_or_else(|| replay_dir(&config));
    let (_facts, facts) = watch::channel(Arc::new(Snapshot::default()));
    let (_host, host) = watch::channel(Arc::new(Host::default()));
    let start = Start {
        machine_id: machine,
        emit: emit::Config::default(),
        spool_bytes_wait: Some(config.spool.bytes_max.0 / 4 * 3),
        facts,
        host,
        is_guarded: false,
    };
    // A replay shows a file to the end, as the file says: what nodes set is for hosts.
    let control = Control::open(config.clone());
    let mut process = Process::start(config, control, start)?;
    let read = read_files(&process, &replay, &stop).await?;
    if stop.is_cancelled() {
        process.hurry.store(true, Ordering::Relaxed);
    }
    process.seal().await?;
    let is_committed = process.drain(replay.patience, true, &stop).await;
    let status = process.end().await?;
    let result = read.and_then(|()| {
        if !is_committed {
            bail!("{} batches are not committed; they stay in the spool", status.batches_pending);
        }
        if status.losses.total() > 0 {
            bail!("rows were lost: {}", serde_json::to_string(&status.losses)?);
        }
        Ok(())
    });
    Ok((status, result))
}

/// The capture thread over all files. The inner result says which file was damaged.
async fn read_files(
    process: &Process,
    replay: &Replay,
    stop: &CancellationToken,
) -> anyhow::Result<anyhow::Result<()>> {
    let config = flow::Config {
        flows_max: process.config.capture.flows_max,
        session: Arc::new(process.config.session.clone()),
        ..flow::Config::default()
    };
    let mut feed = Feed::new(
        config,
        process.queue()?,
        Overflow::Wait,
        Arc::clone(&process.metrics),
        Arc::clone(&process.shedding),
    );
    let work = replay.clone();
    let halt = Arc::new(AtomicBool::new(false));
    let halted = Arc::clone(&halt);
    let thread = std::thread::Builder::new()
        .name("capture".to_owned())
        .spawn(move || replay_all(&work, &mut feed, &halted))
        .context("failed to start the capture thread")?;
    let mut reading = std::pin::pin!(join(thread, "capture"));
    tokio::select! {
        read = &mut reading => return read,
        () = stop.cancelled() => {}
    }
    halt.store(true, Ordering::Relaxed);
    process.hurry.store(true, Ordering::Relaxed);
    reading.await
}

/// A damaged file ends the replay; what came before the damage counts.
fn replay_all(replay: &Replay, feed: &mut Feed, halt: &AtomicBool) -> anyhow::Result<()> {
    for _ in 0..replay.times {
        for path in &replay.files {
            let at = if replay.at_now { ReplayAt::Time(clock::now()) } else { ReplayAt::Recorded };
            let mut source = FileSource::open(path, FileReplay { at, speed: replay.pace })?;
            capture(&mut source, feed, None, halt)?;
        }
    }
    Ok(())
}
