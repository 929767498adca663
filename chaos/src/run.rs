//! One run: a cluster starts, works in peace, then under the faults of a plan, then is whole again; invariants are checked all the while.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Error, Result, bail, ensure};
use metaflow_agent::sender;
use metaflow_cluster_tests::{ledger::LedgerAgent, process::Node, wait_for};
use tokio::{
    runtime::Handle,
    task::JoinHandle,
    time::{Instant, interval, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    agent::Agent,
    checks::{Ledgers, Observer, check_end, is_at_home},
    now_seconds,
    plan::Plan,
    world::{Places, World},
};

/// The machine may be busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);
/// Without faults, nothing may move for so long.
const QUIET: Duration = Duration::from_secs(3);
const ROWS_A_BATCH: u32 = 10;
/// Between two batches of all agents.
const APPEND_EVERY: Duration = Duration::from_millis(300);
/// An agent comes so often that is gone for ever soon after, and its batches: what it was told is all that is known.
const GONE_EVERY: Duration = Duration::from_millis(1_500);
const GONE_AFTER: Duration = Duration::from_millis(2_500);
const GONE_BATCHES: u32 = 30;
const LOOK_EVERY: Duration = Duration::from_millis(200);
const WATCH_EVERY: Duration = Duration::from_millis(500);
const SAMPLE_EVERY: Duration = Duration::from_millis(50);
/// I8.
const SERVED_WITHIN: Duration = Duration::from_secs(10);

/// What a run has seen.
#[derive(Debug)]
pub struct Report {
    pub batches: u32,
    /// Batches that were in several stores, of which nodes have removed copies since their last starts.
    pub removed: usize,
    /// Agents that are gone, with what nodes had told them.
    pub gone: Vec<LedgerAgent>,
    /// Milliseconds from the beginning of a fault until all agents were served again, where some were not, by the fault's kind.
    pub served_ms: BTreeMap<&'static str, Vec<u64>>,
    /// The same, from the end of the last fault.
    pub healed_ms: u64,
    /// Placements and dictionaries that were compared under faults.
    pub compared: usize,
    /// Of nodes that had ended because their disk was full.
    pub restarts: usize,
}

/// Runs a plan. The error says which invariant broke; who prints it adds the plan.
pub fn run(plan: &Plan) -> Result<Report> {
    let folder = tempfile::tempdir()?;
    let places = Places::make(plan.nodes)?;
    // On a thread of its own, since it must be in the namespace that reaches all others.
    let result = std::thread::scope(|scope| {
        let running = scope.spawn(|| {
            places.network.enter("watch")?;
            places.watch.block_on(Box::pin(live(plan, &places, folder.path())))
        });
        running.join().unwrap_or_else(|_| Err(Error::msg("the run panicked")))
    });
    if let Err(error) = &result
        && std::env::var_os("METAFLOW_CHAOS_KEEP").is_some()
    {
        eprintln!("{error:#}\nlogs stay in {}", folder.keep().display());
    }
    result
}

type Agents = Arc<Mutex<Vec<Agent>>>;

fn lock(agents: &Agents) -> MutexGuard<'_, Vec<Agent>> {
    agents.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs beside the faults until it is finished, or dropped.
struct Task<T> {
    handle: JoinHandle<T>,
    stop: CancellationToken,
}

impl<T: Send + 'static> Task<T> {
    fn start<F: Future<Output = T> + Send + 'static>(work: impl FnOnce(CancellationToken) -> F) -> Self {
        let stop = CancellationToken::new();
        Self { handle: tokio::spawn(work(stop.clone())), stop }
    }

    async fn finish(mut self) -> Result<T> {
        self.stop.cancel();
        Ok((&mut self.handle).await?)
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

async fn live(plan: &Plan, places: &Places, folder: &Path) -> Result<Report> {
    let mut world = World::start(plan, places, folder).await?;
    let observer = Observer::new(&world.nodes, Duration::from_secs(3))?;
    wait_for("the nodes to see each other", PATIENCE, async || {
        for node in 0..plan.nodes {
            let page = observer.page(node, "/v1/cluster/members").await?.to_string();
            ensure!(page.matches("\"eligible\":true").count() == plan.nodes, "{page}");
        }
        anyhow::Ok(())
    })
    .await?;
    let agents = start_agents(plan, places, &world, folder).await?;
    settle(&observer, &agents).await?;
    let feeding = Task::start(|stop| feed(Arc::clone(&agents), plan.seed, stop));
    stay_quiet(&agents).await?;
    let mut report = suffer(&mut world, &observer, &agents, plan, places).await?;
    feeding.finish().await??;
    end(&world, &agents, &mut report).await?;
    Ok(report)
}

/// The faults, from the first to the time after the last.
async fn suffer(
    world: &mut World<'_>,
    observer: &Observer,
    agents: &Agents,
    plan: &Plan,
    places: &Places,
) -> Result<Report> {
    let begins = Instant::now();
    let watching = Task::start(|stop| watch(observer.clone(), plan.nodes, stop));
    let service = Task::start(|stop| watch_service(Arc::clone(agents), begins, stop));
    let urls = world.nodes.iter().map(Node::grpc_url).collect();
    let leaving = Task::start(|stop| leave(urls, plan.seed, places.agents[0].handle().clone(), stop));
    break_things(world, plan, begins, &watching).await?;
    if watching.handle.is_finished() {
        watching.finish().await??;
        bail!("nobody watches any more");
    }
    let served_ms = by_kind(plan, &service.finish().await?);
    let gone = leaving.finish().await??;
    world.ready().await.context("after the last fault")?;
    world.twins_gone().await?;
    let healed_ms = heal(world, agents).await?;
    let compared = watching.finish().await??;
    Ok(Report {
        batches: 0,
        removed: 0,
        gone,
        served_ms,
        healed_ms,
        compared,
        restarts: world.restarts.len(),
    })
}

/// Does each thing in its time, and looks after the nodes in between.
async fn break_things<T: Send + 'static>(
    world: &mut World<'_>,
    plan: &Plan,
    begins: Instant,
    watching: &Task<Result<T>>,
) -> Result<()> {
    let ends = plan.steps.iter().enumerate().map(|(index, step)| (step.ends_ms, index, false));
    let mut moments: Vec<(u64, usize, bool)> = plan
        .steps
        .iter()
        .enumerate()
        .map(|(index, step)| (step.begins_ms, index, true))
        .chain(ends)
        .collect();
    moments.sort_unstable();
    for (at_ms, step, is_begin) in moments {
        let at = begins + Duration::from_millis(at_ms);
        while Instant::now() < at && !watching.handle.is_finished() {
            world.supervise()?;
            (0..plan.nodes).try_for_each(|node| world.check_memory(node))?;
            sleep_until(at.min(Instant::now() + LOOK_EVERY)).await;
        }
        // What broke is what the watcher says when it is finished.
        if watching.handle.is_finished() {
            return Ok(());
        }
        let done = if is_begin { world.begin(step).await } else { world.end(step).await };
        done.with_context(|| format!("{:?}, {}", plan.steps[step], if is_begin { "begin" } else { "end" }))?;
    }
    world.supervise()
}

async fn end(world: &World<'_>, agents: &Agents, report: &mut Report) -> Result<()> {
    let agents = std::mem::take(&mut *lock(agents));
    report.batches = agents.iter().map(|agent| agent.batches).sum();
    (0..world.nodes.len()).try_for_each(|node| world.check_memory(node))?;
    let ledgers = Ledgers { agents: &agents, rows_a_batch: ROWS_A_BATCH, gone: &report.gone };
    report.removed = check_end(&world.nodes, &ledgers).await?;
    (0..world.nodes.len()).try_for_each(|node| world.check_memory(node))
}

async fn start_agents(plan: &Plan, places: &Places, world: &World<'_>, folder: &Path) -> Result<Agents> {
    let servers: Vec<String> = world.nodes.iter().map(|node| node.grpc_address()).collect();
    let mut agents = Vec::new();
    for number in 0..plan.agents {
        let config = sender::Config { insecure: true, ..sender::Config::new(servers.clone()) };
        let folder = folder.to_owned();
        let runtime = &places.agents[number as usize % places.agents.len()];
        agents.push(runtime.spawn(async move { Agent::start(&folder, number, config) }).await??);
    }
    Ok(Arc::new(Mutex::new(agents)))
}

/// Waits until every agent is where it belongs.
async fn settle(observer: &Observer, agents: &Agents) -> Result<()> {
    let names: Vec<String> = lock(agents).iter().map(|agent| agent.name.clone()).collect();
    wait_for("agents to be where they belong", PATIENCE, async || {
        for name in &names {
            let page = observer.page(0, &format!("/v1/shard?agent={name}")).await?;
            let mut candidates = page["candidates"].as_array().into_iter().flatten();
            let primary = candidates.find(|it| it["verdict"] == "primary").map(|it| &it["name"]);
            ensure!(primary.is_some() && page["connected_to"].get(0) == primary, "{page}");
        }
        anyhow::Ok(())
    })
    .await
}

/// I10.
async fn stay_quiet(agents: &Agents) -> Result<()> {
    let connections = || lock(agents).iter().map(Agent::connections).collect::<Vec<_>>();
    let before = connections();
    sleep(QUIET).await;
    let after = connections();
    ensure!(
        before == after,
        "I10: agents moved without a fault: they had {before:?} connections and have {after:?}"
    );
    Ok(())
}

/// Each agent makes batches, of shops that nobody knew a second ago: all nodes have to name them at once.
async fn feed(agents: Agents, seed: u64, stop: CancellationToken) -> Result<()> {
    let (mut ticks, began) = (interval(APPEND_EVERY), Instant::now());
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        let shop = format!("s{}.r{seed}.example", began.elapsed().as_secs());
        for agent in lock(&agents).iter_mut() {
            agent.append(ROWS_A_BATCH, &shop)?;
        }
    }
    Ok(())
}

/// Agents that come, send, and are gone with all that they had.
async fn leave(
    urls: Vec<String>,
    seed: u64,
    there: Handle,
    stop: CancellationToken,
) -> Result<Vec<LedgerAgent>> {
    let mut gone = Vec::new();
    while !stop.is_cancelled() {
        let number = gone.len();
        let name = format!("gone-{seed}-{number}");
        let mut agent = LedgerAgent::new(&name, 1, GONE_BATCHES, ROWS_A_BATCH, now_seconds());
        agent.answer_within = Duration::from_secs(1);
        let (urls, turn) = (urls.clone(), AtomicUsize::new(number));
        let sending = there.spawn(async move {
            let next = || urls[turn.fetch_add(1, Ordering::Relaxed) % urls.len()].clone();
            // To be late is its fate.
            agent.run(next, GONE_AFTER).await.ok();
            agent
        });
        gone.push(sending.await?);
        stop.run_until_cancelled(sleep(GONE_EVERY)).await;
    }
    Ok(gone)
}

/// What must hold at any moment; the answer is how much was compared.
async fn watch(observer: Observer, nodes: usize, stop: CancellationToken) -> Result<usize> {
    let (mut compared, mut node, mut suspects) = (0, 0, BTreeSet::new());
    while !stop.is_cancelled() {
        compared += observer.places_alike().await?;
        compared += observer.names_hold(node, &mut suspects).await?;
        node = (node + 1) % nodes;
        stop.run_until_cancelled(sleep(WATCH_EVERY)).await;
    }
    Ok(compared)
}

/// From when to when some agent was not served, in milliseconds.
async fn watch_service(agents: Agents, begins: Instant, stop: CancellationToken) -> Vec<(u64, u64)> {
    let now = || u64::try_from(begins.elapsed().as_millis()).unwrap_or(u64::MAX);
    let (mut gaps, mut since) = (Vec::new(), None);
    let mut ticks = interval(SAMPLE_EVERY);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        let are_connected = lock(&agents).iter().all(Agent::is_connected);
        match since {
            None if !are_connected => since = Some(now()),
            Some(began) if are_connected => {
                gaps.push((began, now()));
                since = None;
            }
            _ => {}
        }
    }
    gaps
}

/// A gap belongs to the last fault that had begun; it counts from that fault's beginning.
fn by_kind(plan: &Plan, gaps: &[(u64, u64)]) -> BTreeMap<&'static str, Vec<u64>> {
    let mut served: BTreeMap<&'static str, Vec<u64>> = BTreeMap::new();
    for (from, to) in gaps {
        if let Some(step) = plan.steps.iter().rfind(|step| step.begins_ms <= *from) {
            served.entry(step.fault.kind()).or_default().push(to - step.begins_ms);
        }
    }
    served
}

/// I8; the answer is how long it took.
async fn heal(world: &World<'_>, agents: &Agents) -> Result<u64> {
    let healed = Instant::now();
    let observer = Observer::new(&world.nodes, PATIENCE / 2)?;
    let names: Vec<String> = lock(agents).iter().map(|agent| agent.name.clone()).collect();
    let connections = || lock(agents).iter().map(Agent::connections).collect::<Vec<_>>();
    let are_served = async || {
        let missing: Vec<_> = lock(agents)
            .iter()
            .filter(|agent| !agent.is_connected())
            .map(|agent| agent.name.clone())
            .collect();
        ensure!(missing.is_empty(), "{missing:?} are not connected");
        for name in &names {
            is_at_home(&observer, name).await?;
        }
        Ok(())
    };
    let mut last = Err(Error::msg("nobody answered"));
    while healed.elapsed() < SERVED_WITHIN {
        last = tokio::time::timeout_at(healed + SERVED_WITHIN, are_served()).await.unwrap_or(last);
        if last.is_ok() {
            return Ok(u64::try_from(healed.elapsed().as_millis()).unwrap_or(u64::MAX));
        }
        sleep(SAMPLE_EVERY).await;
    }
    // Nodes that ask each other may take longer to tell than agents to move: what they tell counts if no agent moves any more.
    let before = connections();
    are_served().await.with_context(|| format!("I8, the time was up after {last:?}"))?;
    ensure!(before == connections(), "I8: agents still moved {SERVED_WITHIN:?} after healing");
    Ok(u64::try_from(SERVED_WITHIN.as_millis()).unwrap_or(u64::MAX))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { batches, removed, gone, served_ms, healed_ms, compared, restarts } = self;
        let acknowledged: usize = gone.iter().map(|agent| agent.received.len()).sum();
        writeln!(
            f,
            "  {batches} batches, {removed} copies removed, {acknowledged} acknowledged ones of {} agents that are gone; {compared} comparisons; {restarts} restarts; \
             all served {:.1} s after healing",
            gone.len(),
            *healed_ms as f64 / 1e3
        )?;
        for (kind, times) in served_ms {
            let times: Vec<String> = times.iter().map(|ms| format!("{:.1}", *ms as f64 / 1e3)).collect();
            writeln!(f, "  {kind}: all served again after {} s", times.join(", "))?;
        }
        Ok(())
    }
}
