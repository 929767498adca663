//! The sender against a node that misbehaves on purpose.

use std::collections::BTreeMap;

use metaflow_wire::{Batch, Heartbeat, Process, SyncRequest, Table, sync_request};
use prost::Message as _;
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle};

use super::{
    peer::{Manner, Peer, until},
    servers::backoff,
    *,
};
use crate::{control::Running, spool};

/// Length and flags of a gRPC message, and the head of its HTTP/2 frame.
const GRPC_HEAD_BYTES: usize = 5 + 9;

struct Rig {
    spool: SharedSpool,
    facts: watch::Sender<Arc<Snapshot>>,
    settings: Running,
    state: Arc<State>,
    stop: CancellationToken,
    task: JoinHandle<()>,
    _directory: TempDir,
}

impl Rig {
    fn start(servers: Vec<String>) -> Self {
        let directory = TempDir::new().unwrap();
        let config = spool::Config::new(directory.path().to_owned(), 1 << 30);
        let spool = SharedSpool::new(Spool::open(config, 1).unwrap().0);
        let (facts, facts_receiver) = watch::channel(Arc::new(Snapshot::default()));
        let data_dir = directory.path().to_owned();
        let control = Control::open(crate::config::Config { data_dir, ..Default::default() });
        let settings = control.running();
        let config = Config {
            heartbeat: Duration::from_millis(20),
            silence_max: Duration::from_millis(400),
            backoff_min: Duration::from_millis(5),
            backoff_max: Duration::from_millis(20),
            move_within: Duration::from_millis(20),
            ..Config::new(servers)
        };
        let sender =
            Sender::new(config, Hello::default(), spool.clone(), facts_receiver, control, Arc::default());
        let state = sender.state();
        let stop = CancellationToken::new();
        let task = tokio::spawn(sender.run(stop.clone()));
        Self { spool, facts, settings, state, stop, task, _directory: directory }
    }

    fn append(&self, count: u32) -> Vec<u64> {
        let numbers = (0..count).map(|rows| self.spool.lock().append(batch(rows), 1).unwrap()).collect();
        self.spool.flush().unwrap();
        numbers
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

fn batch(rows: u32) -> Batch {
    metaflow_wire::seal(0, 0, Table::L7FlowLog, rows, &metaflow_wire::Columns::default())
}

#[tokio::test]
async fn batches_go_in_order_and_leave_the_spool_when_they_are_committed() {
    let peer = Peer::new(Manner::Commit);
    let (server, _task) = peer.serve().await;
    let rig = Rig::start(vec![server]);
    let early = rig.append(20);
    until("first batches", || rig.spool.lock().is_empty()).await;
    let late = rig.append(1);
    until("batch on an open connection", || rig.spool.lock().is_empty()).await;
    let seen: Vec<_> = peer.see(|seen| seen.batches.iter().map(|batch| batch.seq).collect());
    assert_eq!(seen, [early, late].concat());
    let stamps: Vec<_> =
        peer.see(|seen| seen.batches.iter().map(|batch| (batch.agent_id, batch.resent)).collect());
    assert!(stamps.iter().all(|stamp| *stamp == (5, false)), "{stamps:?}");
    assert_eq!(rig.spool.lock().stats().committed_batches, 21);
    rig.end().await;
}

#[tokio::test]
async fn after_a_broken_stream_all_that_is_not_committed_comes_again_as_resent() {
    let peer = Peer::new(Manner::BreakAfter(4));
    let (server, _task) = peer.serve().await;
    let rig = Rig::start(vec![server]);
    let numbers = rig.append(6);
    until("break", || peer.see(|seen| seen.batches.len() >= 4)).await;
    *peer.manner.lock().unwrap() = Manner::Commit;
    until("empty spool", || rig.spool.lock().is_empty()).await;
    let mut times: BTreeMap<u64, Vec<bool>> = BTreeMap::new();
    peer.see(|seen| {
        for batch in &seen.batches {
            times.entry(batch.seq).or_default().push(batch.resent);
        }
    });
    assert_eq!(times.keys().copied().collect::<Vec<_>>(), numbers);
    for (seq, resent) in times {
        assert!(!resent[0] || resent.len() == 1, "{seq}: {resent:?}");
        assert!(resent[1..].iter().all(|resent| *resent), "{seq}: {resent:?}");
    }
    let said = peer.see(|seen| seen.agent_ids.clone());
    assert_eq!(said[0], 0);
    assert!(
        said.len() > 1 && said[1..].iter().all(|id| *id == 5),
        "the id of the first Welcome stays: {said:?}"
    );
    rig.end().await;
}

#[tokio::test]
async fn received_batches_stay_until_they_are_committed() {
    let peer = Peer::new(Manner::ReceiveOnly);
    let (server, task) = peer.serve().await;
    let rig = Rig::start(vec![server]);
    rig.append(3);
    until("batches", || peer.see(|seen| seen.batches.len() == 3)).await;
    assert_eq!(rig.spool.lock().stats().batches, 3);
    task.abort();
    rig.end().await;
}

#[tokio::test]
async fn batches_under_an_id_that_the_node_does_not_know_go_under_the_present_one() {
    let peer = Peer::new(Manner::Unknown(3));
    let (server, _task) = peer.serve().await;
    let rig = Rig::start(vec![server]);
    until("connection", || rig.state.connected.load(Ordering::Relaxed)).await;
    let first = rig.append(1);
    let second = {
        let mut spool = rig.spool.lock();
        spool.set_agent_id(3).unwrap();
        let second = spool.append(batch(7), 1).unwrap();
        spool.set_agent_id(5).unwrap();
        second
    };
    rig.spool.flush().unwrap();
    until("empty spool", || rig.spool.lock().is_empty()).await;
    let seen: Vec<_> =
        peer.see(|seen| seen.batches.iter().map(|batch| (batch.seq, batch.agent_id)).collect());
    assert!(seen.contains(&(first[0], 5)) && seen.contains(&(second, 3)), "{seen:?}");
    assert_eq!(seen.last(), Some(&(second, 5)), "nothing is lost");
    assert_eq!(rig.spool.lock().stats().committed_batches, 2);
    rig.end().await;
}

#[tokio::test]
async fn refused_batches_are_counted_by_reason_and_not_sent_again() {
    let peer = Peer::new(Manner::Reject);
    let (server, _task) = peer.serve().await;
    let rig = Rig::start(vec![server]);
    rig.append(4);
    until("empty spool", || rig.spool.lock().is_empty()).await;
    assert_eq!(rig.spool.lock().losses().get("rejected: malformed"), 6);
    until("heartbeat with the loss", || {
        peer.see(|seen| {
            seen.heartbeats.iter().any(|heartbeat| heartbeat.losses.iter().any(|loss| loss.rows == 6))
        })
    })
    .await;
    assert_eq!(peer.see(|seen| seen.batches.len()), 4);
    rig.end().await;
}

#[tokio::test]
async fn without_credit_nothing_more_is_sent_and_the_connection_stays() {
    let peer = Peer::new(Manner::NoCredit);
    let (server, _task) = peer.serve().await;
    let rig = Rig::start(vec![server]);
    rig.append(1);
    until("first batch", || peer.see(|seen| seen.batches.len() == 1)).await;
    let beats = peer.see(|seen| seen.heartbeats.len());
    until("ack", || peer.see(|seen| seen.heartbeats.len() > beats + 3)).await;
    rig.append(5);
    let beats = peer.see(|seen| seen.heartbeats.len());
    until("life without batches", || peer.see(|seen| seen.heartbeats.len() > beats + 10)).await;
    assert_eq!(peer.see(|seen| (seen.batches.len(), seen.hellos)), (1, 1));
    rig.end().await;
}

#[tokio::test]
async fn a_dead_and_a_silent_server_are_given_up_for_the_next() {
    let silent = Peer::new(Manner::Silent);
    let (silent_server, _silent_task) = silent.serve().await;
    let good = Peer::new(Manner::Commit);
    let (good_server, _good_task) = good.serve().await;
    // A port that was free a moment ago: nothing listens there.
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let rig = Rig::start(vec![dead, silent_server, good_server]);
    rig.append(3);
    until("empty spool", || rig.spool.lock().is_empty()).await;
    assert!(silent.see(|seen| seen.hellos) >= 1);
    assert!(rig.state.connected.load(Ordering::Relaxed));
    rig.end().await;
}

#[tokio::test]
async fn facts_go_in_full_then_as_changes_and_in_full_when_asked() {
    let peer = Peer::new(Manner::Commit);
    let (server, _task) = peer.serve().await;
    let rig = Rig::start(vec![server]);
    until("facts, asked for twice", || peer.see(|seen| seen.facts.len() == 2)).await;
    let processes = [(9, Process { pid: 9, name: "web".into(), ..Default::default() })].into();
    rig.facts.send_replace(Arc::new(Snapshot { processes, ..Snapshot::default() }));
    until("change", || peer.see(|seen| seen.facts.len() == 3)).await;
    let shapes: Vec<_> = peer.see(|seen| {
        seen.facts.iter().map(|facts| (facts.version, facts.full, facts.processes.len())).collect()
    });
    assert_eq!(shapes, [(1, true, 0), (2, true, 0), (3, false, 1)]);
    rig.end().await;
}

#[tokio::test]
async fn configuration_of_the_node_counts_when_it_is_valid() {
    let peer = Peer::new(Manner::Commit);
    let (server, _task) = peer.serve().await;
    let rig = Rig::start(vec![server]);
    until("heartbeat with the version", || {
        peer.see(|seen| {
            seen.heartbeats.last().is_some_and(|heartbeat| {
                heartbeat.config_version == 3 && heartbeat.config_error.contains("TOML")
            })
        })
    })
    .await;
    assert!(!rig.settings.borrow().enabled);
    // Every second of every agent: unchanged configuration costs nothing beside it.
    let heartbeat = Heartbeat {
        config_version: 1 << 47,
        spool_bytes: 1 << 30,
        memory_bytes: 1 << 29,
        cpu_percent: 100,
        ..Default::default()
    };
    let request = SyncRequest { body: Some(sync_request::Body::Heartbeat(heartbeat)) };
    assert!(request.encoded_len() + GRPC_HEAD_BYTES < 64, "{} bytes", request.encoded_len());
    rig.end().await;
}

#[test]
fn servers_of_the_node_come_first_and_the_configured_ones_last() {
    let now = Instant::now();
    let mut servers = Servers::new(vec!["a:1".into(), "b:1".into()]);
    assert_eq!(servers.current().as_deref(), Some("a:1"));
    servers.welcome("a:1", &["c:1".into(), "a:1".into()]);
    assert_eq!(servers.list, ["c:1", "a:1", "b:1"]);
    let mut order = Vec::new();
    for _ in 0..4 {
        order.extend(servers.current());
        servers.fail(now, false);
    }
    assert_eq!(order, ["a:1", "b:1", "c:1", "a:1"]);
    servers.welcome("vip:1", &["c:1".into()]);
    assert_eq!(servers.list, ["c:1", "a:1", "b:1", "vip:1"]);
    assert_eq!(servers.current().as_deref(), Some("vip:1"));
}

#[test]
fn an_agent_belongs_to_the_first_server_that_a_node_named_unless_it_cannot_reach_it() {
    let now = Instant::now();
    let after = |seconds| now + Duration::from_secs(seconds);
    let mut servers = Servers::new(vec!["a:1".into(), "b:1".into()]);
    servers.fail(now, false);
    servers.welcome("b:1", &[]);
    assert!(!servers.belongs_elsewhere(after(100)), "the order of the configuration moves nobody");
    servers.welcome("b:1", &["c:1".into(), "b:1".into()]);
    assert!(servers.belongs_elsewhere(now));
    servers.at = 0;
    servers.fail(now, false);
    assert!(!servers.belongs_elsewhere(after(9)) && servers.belongs_elsewhere(after(10)));
    servers.at = 0;
    servers.fail(after(10), false);
    for _ in 0..9 {
        servers.at = 0;
        servers.fail(after(10), false);
    }
    assert!(!servers.belongs_elsewhere(after(29)) && servers.belongs_elsewhere(after(30)));
    servers.welcome("b:1", &["d:1".into(), "b:1".into()]);
    assert!(servers.belongs_elsewhere(after(11)), "another first server");
}

#[test]
fn an_agent_with_a_server_that_nobody_named_goes_to_the_next_one_when_it_cannot_reach_the_first() {
    let config = Config::new(vec![]);
    let now = Instant::now();
    let mut servers = Servers::new(vec!["a:1".into(), "b:1".into(), "c:1".into()]);
    servers.welcome("a:1", &["c:1".into(), "b:1".into()]);
    assert!(servers.belongs_elsewhere(now));
    servers.next(Ended::Moves, now, &config, 0);
    servers.next(Ended::NotReached, now, &config, 0);
    assert_eq!(servers.current().as_deref(), Some("b:1"), "a fallback");
    assert!(!servers.belongs_elsewhere(now), "which is as good, as long as the first is not to be reached");
    servers.next(Ended::NotReached, now, &config, 0);
    servers.welcome("a:1", &["c:1".into(), "b:1".into()]);
    assert!(!servers.belongs_elsewhere(now), "neither is to be reached");

    let mut servers = Servers::new(vec!["a:1".into(), "b:1".into(), "c:1".into()]);
    servers.welcome("c:1", &["c:1".into()]);
    servers.next(Ended::Lost, now, &config, 0);
    servers.welcome("a:1", &["c:1".into(), "b:1".into()]);
    servers.next(Ended::Moves, now, &config, 0);
    assert_eq!(servers.current().as_deref(), Some("b:1"), "the first was lost a moment ago");
}

#[tokio::test]
async fn an_agent_goes_where_the_node_says_that_it_belongs() {
    let home = Peer::new(Manner::Commit);
    let (home_server, _home_task) = home.serve().await;
    let guide = Peer::naming(vec![home_server]);
    let (guide_server, _guide_task) = guide.serve().await;
    let rig = Rig::start(vec![guide_server]);
    until("the agent at home", || home.see(|seen| seen.hellos == 1)).await;
    rig.append(2);
    until("batches at home", || home.see(|seen| seen.batches.len() == 2)).await;
    assert_eq!(guide.see(|seen| seen.hellos), 1);
    rig.end().await;
}

#[test]
fn agents_of_a_lost_node_come_spread_over_the_time_that_it_asked_for() {
    let now = Instant::now();
    let config = Config::new(vec![]);
    let pauses = |spread_ms: u32, ended: Ended| {
        let mut pauses: Vec<Duration> = (0..10_000_u64)
            .map(|agent| {
                let mut servers = Servers::new(vec!["a:1".into(), "b:1".into()]);
                servers.spread(spread_ms);
                servers.next(ended, now, &config, agent.wrapping_mul(0x9e37_79b9_7f4a_7c15))
            })
            .collect();
        pauses.sort_unstable();
        pauses
    };
    let few = pauses(0, Ended::Lost);
    assert!(few[9_999] <= Duration::from_millis(100), "a small cluster loses no time: {:?}", few[9_999]);
    let many = pauses(3_000, Ended::Lost);
    for tenth in 1..10 {
        let (here, even) = (many[tenth * 1_000].as_millis(), 75 + 300 * tenth as u128);
        assert!(here.abs_diff(even) < 100, "{tenth}: {here}");
    }
    assert!(many[9_999] <= Duration::from_millis(3_100));
    assert!(pauses(u32::MAX, Ended::Lost)[9_999] < Duration::from_secs(6), "whatever a node asks for");
    assert!(
        pauses(3_000, Ended::NotReached)[9_999] <= Duration::from_millis(100),
        "the next is tried at once"
    );
}

#[test]
fn pauses_grow_with_rounds_through_the_list() {
    let config = Config::new(vec![]);
    let mut servers = Servers::new(vec!["a:1".into(), "b:1".into(), "c:1".into()]);
    let now = Instant::now();
    let pauses: Vec<u128> =
        (0..7).map(|_| servers.next(Ended::NotReached, now, &config, 0).as_millis()).collect();
    assert_eq!(pauses, [50, 50, 100, 100, 100, 200, 200]);
    servers.next(Ended::Lost, now, &config, 0);
    assert_eq!(servers.next(Ended::NotReached, now, &config, 0).as_millis(), 50);
}

#[test]
fn servers_that_are_late_one_after_another_are_given_time() {
    let config = Config::new(vec![]);
    let mut servers = Servers::new(vec!["a:1".into(), "b:1".into(), "c:1".into()]);
    let now = Instant::now();
    let mut next = |ended| servers.next(ended, now, &config, 0).as_millis();
    let pauses: Vec<u128> = (0..8).map(|_| next(Ended::Late)).collect();
    assert_eq!(pauses, [50, 500, 1_000, 2_000, 4_000, 8_000, 15_000, 15_000], "one alone costs no time");
    assert!(next(Ended::NotReached) < 1_000, "who is not there is not busy");
    assert_eq!(next(Ended::Lost), 50, "it was served");
    assert_eq!([next(Ended::Late), next(Ended::Late)], [50, 500]);
}

#[test]
fn pauses_grow_to_their_limit_with_jitter() {
    let (min, max) = (Duration::from_millis(100), Duration::from_secs(5));
    for (failures, least, most) in
        [(0, 50, 100), (1, 100, 200), (3, 400, 800), (10, 2_500, 5_000), (60, 2_500, 5_000)]
    {
        for random in [0, 12_345_678_901, u64::MAX] {
            let pause = backoff(failures, min, max, random).as_millis();
            assert!((least..=most).contains(&pause), "{failures}: {pause}");
        }
    }
}

#[test]
fn an_agent_that_belongs_elsewhere_leaves_when_what_it_sent_is_stored() {
    let directory = TempDir::new().unwrap();
    let mut spool = Spool::open(spool::Config::new(directory.path().to_owned(), 1 << 30), 1).unwrap().0;
    let first = spool.append(batch(1), 1).unwrap();
    spool.append(batch(1), 1).unwrap();
    spool.flush().unwrap();
    let now = Instant::now();
    let mut servers = Servers::new(vec!["here:1".into()]);
    servers.welcome("here:1", &["home:1".into()]);
    let config = Config::new(vec![]);
    let mut session = Session::new(now);
    assert_eq!(session.next_batch(&mut spool, now).unwrap().map(|batch| batch.seq), Some(first));
    assert!(!session.goes(&spool, now), "it stays where it may stay");
    session.plan_move(&servers, now, &config, 0);
    assert!(!session.goes(&spool, now), "a batch is under way");
    assert!(session.next_batch(&mut spool, now).unwrap().is_none(), "no more is sent");
    let received = vec![metaflow_wire::SeqRange { first, last: first }];
    session.take_ack(
        metaflow_wire::IngestAck { received: received.clone(), ..Default::default() },
        &mut spool,
        now,
    );
    assert!(!session.goes(&spool, now), "the node still has it in its log");
    assert!(session.goes(&spool, now + Duration::from_secs(60)), "but not for ever");
    session.take_ack(metaflow_wire::IngestAck { committed: received, ..Default::default() }, &mut spool, now);
    assert!(session.goes(&spool, now), "what was never sent goes with it");
}
