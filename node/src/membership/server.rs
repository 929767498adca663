//! The task that keeps gossip running: a session from one start of the library to its end, and the supervisor that starts the next.
//!
//! Nothing that happens here ends the node. A session that panics, ends or must take a new generation is counted and followed by
//! another, after a pause that grows while they fail.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    Facts, View,
    book::{Book, Unreadable},
    generation,
    gossip::{Gossip, Seen, Settings, Wire, lock},
    pace::Pace,
    screen::{Claims, Identity, Screen},
    seeds::Seeds,
    stats::{Restart, Stats, add},
};
use crate::clock;

/// Time after which gossip forgets who is dead: longer keeps the starts of a node that restarts all the time.
const DEAD_GRACE: Duration = Duration::from_secs(600);
/// Between two sessions; doubled while they fail.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// A session that held this long was a good one.
const STABLE_AFTER: Duration = Duration::from_secs(30);
/// Within so many intervals, gossip that starts anew has heard of everybody again: twice what it takes to find that one is dead.
const RELEARN_INTERVALS: u32 = 10;
/// How long the cluster must have another size before the pace is changed; nodes add up to as much by their ids, so as not to change
/// all at once.
const PACE_AFTER: Duration = Duration::from_secs(10);
/// Greetings that wait for the library.
const GREETINGS_MAX: usize = 64;

/// What all sessions share, and what there is without any.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) cluster: String,
    pub(super) node_id: u16,
    pub(super) own_address: std::net::SocketAddr,
    pub(super) seeds: Vec<String>,
    /// None: follows the number of members.
    pub(super) interval: Option<Duration>,
    pub(super) phi_threshold: f64,
    pub(super) generation_file: PathBuf,
    pub(super) facts: watch::Sender<Facts>,
    pub(super) view: watch::Sender<Arc<View>>,
    pub(super) book: Mutex<Book>,
    pub(super) stats: Arc<Stats>,
    pub(super) leave: CancellationToken,
    /// Ends of this node's process without leaving, of late.
    pub(super) crashes: AtomicUsize,
    /// The pace of the running session.
    pub(super) pace: Mutex<Pace>,
}

/// Runs sessions until the node leaves.
pub(super) async fn supervise(server: Arc<Server>, wire: Wire) {
    let mut pause = PAUSE_MIN;
    let mut generation_min = 0;
    while !server.leave.is_cancelled() {
        let started = Instant::now();
        // In a set, so that the session ends with its supervisor; as a task, so that its panic ends there.
        let mut session = JoinSet::new();
        session.spawn(session_of(Arc::clone(&server), wire.clone(), generation_min));
        let reason = match session.join_next().await {
            Some(Ok(Ok(End::Left))) | None => return,
            Some(Ok(Ok(End::Restart { reason, generation_min: min }))) => {
                generation_min = min;
                tracing::warn!(?reason, "gossip takes a new generation");
                reason
            }
            Some(Ok(Err(error))) => {
                tracing::warn!(error = format!("{error:#}"), "gossip could not be started");
                Restart::Failed
            }
            Some(Err(error)) => {
                tracing::error!(%error, "gossip panicked");
                Restart::Panicked
            }
        };
        server.stats.restart(reason);
        pause = if started.elapsed() >= STABLE_AFTER { PAUSE_MIN } else { (pause * 2).min(PAUSE_MAX) };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = server.leave.cancelled() => return,
        }
    }
}

enum End {
    Left,
    Restart { reason: Restart, generation_min: u64 },
}

impl End {
    fn restart(reason: Restart) -> Self {
        Self::Restart { reason, generation_min: 0 }
    }
}

/// One start of the library.
struct Session {
    server: Arc<Server>,
    own: Identity,
    gossip: Gossip,
    screen: Arc<Mutex<Screen>>,
    alone: Arc<AtomicBool>,
    /// Since when another pace would be right.
    pace_wrong: Option<Instant>,
}

async fn session_of(server: Arc<Server>, wire: Wire, generation_min: u64) -> anyhow::Result<End> {
    // Before the start takes the facts, so that no change falls between the two.
    let mut facts = server.facts.subscribe();
    let mut session = Session::start(Arc::clone(&server), &wire, generation_min).await?;
    let pace = *lock(&server.pace);
    let (greet, mut greetings) = mpsc::channel(GREETINGS_MAX);
    let seeds = Seeds {
        names: server.seeds.clone(),
        own: server.own_address,
        interval: pace.interval,
        alone: Arc::clone(&session.alone),
        stats: Arc::clone(&server.stats),
    };
    // Ends with the session.
    let mut helpers = JoinSet::new();
    helpers.spawn(seeds.run(greet));
    let ended = session.gossip.ended();
    tokio::pin!(ended);
    let mut tick = tokio::time::interval(pace.interval);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = server.leave.cancelled() => return Ok(End::Left),
            ended = &mut ended => {
                tracing::error!(error = ended.err().map(|error| format!("{error:#}")), "gossip ended by itself");
                return Ok(End::restart(Restart::Ended));
            }
            Some(address) = greetings.recv() => {
                session.gossip.greet(address);
                continue;
            }
            changed = facts.changed() => {
                if changed.is_ok() {
                    let values = facts.borrow_and_update().key_values();
                    session.gossip.publish(values).await;
                }
            }
            () = session.gossip.changed() => {}
            _ = tick.tick() => {}
        }
        if let Some(end) = session.look().await {
            return Ok(end);
        }
    }
}

/// The next generation, and how often the node has lately crashed.
async fn take_generation(server: &Arc<Server>, generation_min: u64) -> anyhow::Result<(u64, usize)> {
    let start = generation::Start {
        of_process: server.facts.borrow().start == 0,
        generation_min,
        clock_seconds: clock::seconds(),
    };
    let server = Arc::clone(server);
    let taking = tokio::task::spawn_blocking(move || {
        generation::next(&server.generation_file, start)
            .with_context(|| format!("failed to write {}", server.generation_file.display()))
    });
    taking.await.context("taking a generation panicked")?
}

impl Session {
    async fn start(server: Arc<Server>, wire: &Wire, generation_min: u64) -> anyhow::Result<Self> {
        let (generation, crashes) = take_generation(&server, generation_min).await?;
        server.crashes.store(crashes, Ordering::Relaxed);
        let node = server.node_id.to_string().into();
        let own = Identity { node, generation, address: server.own_address };
        let pace = server.right_pace();
        *lock(&server.pace) = pace;
        // The process is known by the first generation that it takes.
        server.facts.send_if_modified(|facts| {
            let first = facts.start == 0;
            if first {
                facts.start = generation;
            }
            first
        });
        let screen = Arc::new(Mutex::new(Screen::new(server.cluster.clone(), own.clone())));
        let settings = Settings {
            cluster: server.cluster.clone(),
            own: own.clone(),
            pace,
            phi_threshold: server.phi_threshold,
            dead_grace: DEAD_GRACE,
        };
        let values = server.facts.borrow().key_values();
        let (stats, for_gossip) = (Arc::clone(&server.stats), Arc::clone(&screen));
        let gossip = Gossip::start(settings, wire, for_gossip, stats, values).await?;
        lock(&server.book).relearn((Instant::now() + pace.interval * RELEARN_INTERVALS).into_std());
        tracing::debug!(generation, address = %own.address, "gossip started");
        let alone = Arc::new(AtomicBool::new(true));
        Ok(Self { server, own, gossip, screen, alone, pace_wrong: None })
    }

    /// Takes in what gossip shows now; says when the session must end.
    async fn look(&mut self) -> Option<End> {
        let server = Arc::clone(&self.server);
        // Before what we said: others can tell only what was said before.
        let claims = lock(&self.screen).claims();
        let seen = self.gossip.observe(|identity| lock(&server.book).version(identity)).await;
        let said = seen.iter().find(|seen| seen.identity == self.own).map(|own| (own.heartbeat, own.version));
        self.alone.store(seen.iter().filter(|seen| seen.live).count() <= 1, Ordering::Relaxed);
        let (now, clock_ms) = (Instant::now(), clock::milliseconds());
        let view = {
            let mut book = lock(&server.book);
            let view = book.observe(seen, now.into_std(), clock_ms, |unreadable| match unreadable {
                Unreadable::NodeId => add(&server.stats.foreign_ids, 1),
                Unreadable::Key(key) => server.stats.malformed(key),
            });
            lock(&self.screen).retain(|identity| book.knows(identity));
            view
        };
        server.publish(view);
        if let Some(end) = self.impersonated(claims, said) {
            return Some(end);
        }
        self.other_pace(now)
    }

    /// Others were told of our start what we never said: they would not listen to us any more.
    fn impersonated(&self, claims: Claims, said: Option<(u64, u64)>) -> Option<End> {
        let (heartbeat, version) = said?;
        if claims.heartbeat <= heartbeat && claims.version <= version {
            return None;
        }
        let own = self.own.generation;
        let believable = claims.generation.saturating_sub(own) <= generation::CLAIM_DISTANCE_MAX;
        let generation_min = if believable { claims.generation.max(own) + 1 } else { own + 1 };
        Some(End::Restart { reason: Restart::Impersonated, generation_min })
    }

    fn other_pace(&mut self, now: Instant) -> Option<End> {
        if self.server.right_pace() == *lock(&self.server.pace) {
            self.pace_wrong = None;
            return None;
        }
        let since = *self.pace_wrong.get_or_insert(now);
        let spread = PACE_AFTER.mul_f64(f64::from(self.server.node_id % 100) / 100.0);
        (now.duration_since(since) >= PACE_AFTER + spread).then(|| End::restart(Restart::Pace))
    }
}

impl Server {
    /// The view of a node that has heard of nobody.
    pub(super) fn see_only_oneself(&self) {
        let node = self.node_id.to_string().into();
        let identity = Identity { node, generation: 0, address: self.own_address };
        let values = Some(self.facts.borrow().key_values());
        let own = Seen { identity, heartbeat: 1, version: 1, live: true, values };
        let view =
            lock(&self.book).observe(vec![own], Instant::now().into_std(), clock::milliseconds(), |_| {});
        self.publish(view);
    }

    /// The pace for the cluster as it is now.
    fn right_pace(&self) -> Pace {
        let pace = *lock(&self.pace);
        let members = self.view.borrow().live().count();
        self.interval.map_or_else(|| Pace::of_members(members, Some(pace)), Pace::of_interval)
    }

    /// Tells those who follow the view, when it has changed, and the log, when somebody must know.
    fn publish(&self, view: View) {
        self.view.send_if_modified(|last| {
            if **last == view {
                return false;
            }
            tell(last, &view);
            *last = Arc::new(view);
            true
        });
    }
}

/// Logs what has changed in the cluster.
fn tell(before: &View, after: &View) {
    for member in after.members.iter().filter(|member| member.node_id != after.own) {
        let was = before.member(member.node_id).map(super::Member::word);
        let (node_id, address, word) = (member.node_id, member.gossip, member.word());
        match (was, word) {
            (Some(was), word) if was == word => {}
            (_, "dead") => tracing::warn!(node_id, %address, was, "a member is dead"),
            (_, word) => tracing::info!(node_id, %address, was, now = word, "a member changed"),
        }
    }
    for duplicate in after.duplicates.iter().filter(|duplicate| !before.duplicates.contains(duplicate)) {
        let (node_id, addresses) = (duplicate.node_id, &duplicate.addresses);
        tracing::error!(node_id, ?addresses, "two running nodes use one node_id: give one of them another");
    }
}
