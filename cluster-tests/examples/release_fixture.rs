//! Makes the fixture of a release: `release_fixture NAME [PROGRAM VERSION]` writes `cluster-tests/fixtures/NAME.tar.gz`.
//!
//! PROGRAM is the `metaflow` of that release and VERSION its protocol's, those of this workspace by default. Its node takes batches of one agent while its engine
//! stands still, and is killed: so the write-ahead log has what no store has, and the dictionary names that no store knows.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use metaflow_cluster_tests::{
    fixture::{BATCHES, MACHINE_ID, ROWS_A_BATCH, SECOND, pack},
    ledger::LedgerAgent,
    process::Node,
    wait_for,
};
use rustix::process::Signal;

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().context("say what it is called: release_fixture NAME [PROGRAM]")?;
    let folder = tempfile::tempdir()?;
    let mut node = Node::configure(folder.path(), "")?;
    let mut agent = LedgerAgent::new(MACHINE_ID, 1, BATCHES, ROWS_A_BATCH, SECOND);
    if let Some(program) = arguments.next() {
        node.run_program(PathBuf::from(program));
        let version = arguments.next().context("say which version of the protocol it speaks")?;
        agent.speak_version(version.parse()?);
    }
    node.restart().await?;
    agent.greet(&node.grpc_url()).await?;
    node.signal_engine(Signal::STOP)?;
    let sending = agent.run(|| node.grpc_url(), Duration::from_secs(5)).await;
    ensure!(sending.is_err(), "the engine stores rows although it was stopped");
    ensure!(agent.received.len() == BATCHES as usize && agent.committed.is_empty(), "{agent:?}");
    // The labeler names things a moment after the log has the batch.
    wait_for("the names of the rows", Duration::from_secs(20), async || {
        let pending = node.metric("metaflow_dictionary_pending").await?;
        ensure!(pending > 50.0, "{pending} names");
        Ok(())
    })
    .await?;
    let engine = node.engine();
    node.kill().await?;
    if let Some(engine) = engine {
        // Stopped, it would not notice that the node is gone. Where it did, all the better.
        rustix::process::kill_process(engine, Signal::KILL).ok();
    }
    let path = pack(&folder.path().join("data"), &name)?;
    eprintln!("{}: {} bytes", path.display(), path.metadata()?.len());
    Ok(())
}
