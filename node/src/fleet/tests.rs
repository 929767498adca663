//! Nodes that keep what operators set, and answer for one another, over real connections.

use std::collections::BTreeMap;

use metaflow_actors::{
    controller::{self, Introduction},
    dictionary::Config,
    disk::Disk,
    groups::{Matches, ROOT, Scope, Share, Who},
    labeler::{Input, Snapshot},
    rows::{BatchId, Rows},
};
use metaflow_schema::enums::Kind;
use metaflow_wire::{
    Columns, Endpoints, Heartbeat, Hello, PROTOCOL_VERSION, Table, columns,
    fleet_service_server::FleetServiceServer,
};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    grpc::{Secret, Trust, fleet::Service},
    node::Guide,
    observe::{Filter, Part},
};

struct Member {
    fleet: Fleet,
    guides: watch::Sender<Arc<Guide>>,
    address: SocketAddr,
    tasks: Vec<JoinHandle<()>>,
    _folder: tempfile::TempDir,
}

impl Member {
    async fn start(number: u16, secret: Option<Secret>) -> Self {
        let own = NodeId::new(number).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::open(folder.path()).unwrap();
        let dictionary = Dictionary::open(disk.clone(), Config::new(own), &Default::default()).unwrap();
        let (controller, _) =
            Controller::start(controller::Config::default(), disk.clone(), dictionary.clone()).await.unwrap();
        let (guides, receiver) = watch::channel(Arc::default());
        let fleet = Fleet {
            own,
            registry: Registry::open(disk, own).unwrap(),
            controller,
            dictionary,
            tap: Arc::default(),
            peers: Peers::new(own, receiver, None, None),
            events: Events::default(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service =
            Service { fleet: fleet.clone(), trust: Trust::new(secret, true), stop: CancellationToken::new() };
        let serving = tonic::transport::Server::builder()
            .add_service(FleetServiceServer::new(service))
            .serve_with_incoming(TcpListenerStream::new(listener));
        let tasks = vec![
            tokio::spawn(async move { serving.await.unwrap() }),
            tokio::spawn(fleet.clone().keep_alike()),
        ];
        Self { fleet, guides, address, tasks, _folder: folder }
    }

    fn group_of(&self, host: &str) -> String {
        let who = Who { hostname: host.to_owned(), ..Who::default() };
        self.fleet.registry.groups().wanted(&who).config.toml.clone()
    }

    async fn set(&self, settings: &str) -> Changed {
        let change = Change::Set {
            group: ROOT.to_owned(),
            settings: settings.to_owned(),
            share: None,
            note: String::new(),
        };
        self.fleet.change(change, false).await.unwrap()
    }

    async fn agent(&self, machine: &str, agent_id: u32, config_version: u64) -> u32 {
        let hello = Hello {
            protocol_version: PROTOCOL_VERSION,
            machine_id: machine.to_owned(),
            hostname: machine.to_owned(),
            agent_id,
            ..Hello::default()
        };
        // What the door says of an id that a node gave.
        let introduction = Introduction { hello, is_proven: true };
        let agent_id = self.fleet.controller.hello(introduction).await.unwrap().welcome.agent_id;
        let heartbeat = Heartbeat { config_version, ..Heartbeat::default() };
        self.fleet.controller.heartbeat(agent_id, heartbeat).await.unwrap();
        agent_id
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn members<const N: usize>() -> [Member; N] {
    let members = futures::future::join_all((1..=N).map(|at| Member::start(at as u16, None))).await;
    let members: [Member; N] = members.try_into().ok().unwrap();
    meet(&members, &(0..N).collect::<Vec<_>>());
    members
}

/// Those of `side` see each other alone.
fn meet(members: &[Member], side: &[usize]) {
    let nodes: Vec<_> = side.iter().map(|at| (members[*at].fleet.own, members[*at].address)).collect();
    let guide = Arc::new(Guide::of(&nodes));
    for at in side {
        members[*at].guides.send_replace(Arc::clone(&guide));
    }
}

async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting).await.unwrap_or_else(|_| panic!("no {what}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_node_is_told_counts_on_all_and_after_a_split_all_agree() {
    let nodes: [Member; 3] = members().await;
    let changed = nodes[0].set("enabled = false").await;
    assert_eq!(changed.missing, []);
    let (events, _) = nodes[0].fleet.events.after(0, Some(events::Kind::Config), 9);
    assert!(events[0].text.contains("default@1") && events.len() == 1, "{events:?}");
    for node in &nodes {
        assert!(node.group_of("a").contains("enabled = false"), "told before the operator has the answer");
    }
    // Apart: both sides change the same group, and each makes one that the other does not know.
    meet(&nodes, &[0]);
    meet(&nodes, &[1, 2]);
    nodes[0].set("[guard]\ncpu_percent_max = 10").await;
    nodes[1].set("[guard]\ncpu_percent_max = 20").await;
    let make = |name: &str| Change::Group {
        name: name.to_owned(),
        parent: String::new(),
        matches: Matches { hostname: vec![format!("{name}-*")], ..Matches::default() },
    };
    nodes[0].fleet.change(make("web"), false).await.unwrap();
    nodes[2].fleet.change(make("db"), false).await.unwrap();
    assert!(nodes[2].group_of("a").contains("20") && nodes[0].group_of("a").contains("10"));
    meet(&nodes, &[0, 1, 2]);
    let digests = |node: &Member| node.fleet.registry.documents().digests();
    let names = |node: &Member| {
        let groups = node.fleet.registry.groups();
        groups.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>()
    };
    // Both wrote second: the higher node wins, on every node.
    let is_agreed = |node: &Member| {
        node.group_of("a").contains("20")
            && names(node) == ["db", "default", "web"]
            && digests(node) == digests(&nodes[0])
    };
    until("agreement", async || nodes.iter().all(is_agreed)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_show_the_secret_sets_nothing_and_sees_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    std::fs::write(&file, "1".repeat(32)).unwrap();
    let nodes = [Member::start(1, None).await, Member::start(2, Some(Secret::load(file).unwrap())).await];
    meet(&nodes, &[0, 1]);
    let changed = nodes[0].set("enabled = false").await;
    assert!(changed.missing.iter().all(|node| node.reason.contains("secret")) && changed.missing.len() == 1);
    assert!(nodes[0].fleet.agents().await.unwrap().missing[0].reason.contains("secret"));
    let mut client = nodes[0].fleet.peers.fleet(nodes[1].address).unwrap();
    let code = |status: Status| status.code();
    let observed = client.observe(Filter::default().to_wire()).await.map(drop).map_err(code);
    let compared = client.compare_documents(metaflow_wire::CompareDocumentsRequest::default()).await;
    let refused = Err(tonic::Code::Unauthenticated);
    assert_eq!((observed, compared.map(drop).map_err(code)), (refused, refused));
    assert!(!nodes[1].group_of("a").contains("enabled"));
}

#[tokio::test(flavor = "multi_thread")]
async fn any_node_answers_for_all_agents_and_names_the_node_that_does_not_answer() {
    let nodes: [Member; 2] = members().await;
    let first = nodes[0].agent("machine-1", 0, 0).await;
    let second = nodes[1].agent("machine-2", 0, 0).await;
    // It moved: both know it, the one that heard it last counts.
    until("a moment later", async || {
        let silent = nodes[0].fleet.own_agents().await.unwrap()[0].silent_ms;
        silent.is_some_and(|silent| silent > 5)
    })
    .await;
    nodes[1].agent("machine-1", first, 0).await;
    let gathered = nodes[0].fleet.agents().await.unwrap();
    let seen: Vec<_> = gathered.agents.iter().map(|agent| (agent.agent_id, agent.node_id)).collect();
    assert_eq!(seen, BTreeMap::from([(first, 2), (second, 2)]).into_iter().collect::<Vec<_>>());
    assert!(gathered.agents.iter().all(|agent| (agent.status, agent.config_state) == ("ok", "applied")));

    // A dry run says whom it would reach, and reaches nobody.
    let off = Change::Switch { on: false, scope: Scope::Agent("machine-2".to_owned()) };
    let dry = nodes[0].fleet.change(off.clone(), true).await.unwrap();
    assert_eq!((dry.agents, dry.is_done), (1, false));
    assert!(!nodes[1].group_of("machine-2").contains("enabled"));
    assert_eq!(nodes[0].fleet.change(off, false).await.unwrap().agents, 1);
    let agents = nodes[1].fleet.agents().await.unwrap().agents;
    let states: Vec<_> = agents.iter().map(|agent| (agent.machine_id.as_str(), agent.config_state)).collect();
    assert!(
        states.contains(&("machine-2", "waiting")) && states.contains(&("machine-1", "applied")),
        "{states:?}"
    );

    // The other node is gone: nobody listens there.
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let guide = Guide::of(&[(nodes[0].fleet.own, nodes[0].address), (nodes[1].fleet.own, nobody)]);
    nodes[0].guides.send_replace(Arc::new(guide));
    let gathered = nodes[0].fleet.agents().await.unwrap();
    let missing: Vec<_> = gathered.missing.iter().map(|node| (node.node_id, node.address)).collect();
    assert_eq!((missing, gathered.agents.len()), (vec![(2, nobody)], 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_whose_agents_shed_stops_by_itself_on_every_node() {
    let nodes: [Member; 2] = members().await;
    let watching: Vec<_> =
        nodes.iter().map(|node| tokio::spawn(node.fleet.clone().watch_rollouts())).collect();
    let group = ROOT.to_owned();
    let settings = "[guard]\ncpu_percent_max = 1".to_owned();
    let share = Some(Share(5_000));
    let change = Change::Set { group, settings, share, note: String::new() };
    nodes[1].fleet.change(change, false).await.unwrap();
    let groups = nodes[0].fleet.registry.groups();
    for at in 0..20 {
        let machine = format!("machine-{at}");
        let who = Who { machine_id: machine.clone(), hostname: machine.clone(), ..Who::default() };
        let wanted = groups.wanted(&who);
        let node = &nodes[at % 2];
        let agent_id = node.agent(&machine, 0, wanted.config.version).await;
        let shedding = u32::from(!wanted.trials.is_empty());
        let heartbeat = Heartbeat { config_version: wanted.config.version, shedding, ..Heartbeat::default() };
        node.fleet.controller.heartbeat(agent_id, heartbeat).await.unwrap();
    }
    let stopped = |node: &Member| {
        let groups = node.fleet.registry.groups();
        groups.group(ROOT).and_then(|group| group.rollout.clone()?.stopped)
    };
    until("stop", async || nodes.iter().all(|node| stopped(node).is_some())).await;
    assert!(stopped(&nodes[1]).unwrap().contains("shed load"));
    assert!(!nodes[1].group_of("a").contains("cpu_percent_max"));
    watching.iter().for_each(JoinHandle::abort);
}

/// Three of them, the last without an error.
fn requests(names: &Dictionary) -> Rows {
    let log = metaflow_wire::L7FlowLog {
        endpoints: Some(Endpoints { server_port: vec![6379; 3], ..Endpoints::default() }),
        response_status: vec![3, 3, 0],
        ..Default::default()
    };
    let columns = Columns {
        addresses: vec![vec![10, 0, 0, 1]],
        rows: Some(columns::Rows::L7FlowLog(log)),
        strings: vec![String::new()],
    };
    let id = BatchId { agent_id: 9 << 22 | 7, seq: 1 };
    Input { snapshot: &Snapshot::default(), names, id }.label_columns(Table::L7FlowLog, 3, columns).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_every_node_come_to_who_watches_one_with_names_and_what_is_lost_is_counted() {
    let nodes: [Member; 2] = members().await;
    let service = nodes[1].fleet.dictionary.id(Kind::Service, "redis").unwrap();
    let Rows::L7FlowLog(mut block) = requests(&nodes[1].fleet.dictionary) else { panic!("other rows") };
    block.tags_1.auto_service_type = vec![Kind::Service as u8; 3];
    block.tags_1.auto_service_id = vec![service, 0, service];
    let rows = Rows::L7FlowLog(block);
    let show = || nodes[1].fleet.tap.show(7, &rows);
    assert!(!nodes[1].fleet.tap.is_open());
    show();
    let wrong = nodes[0].fleet.calls(Filter { protocol: Some("htp".to_owned()), ..Filter::default() });
    assert!(wrong.unwrap_err().message().contains("HTTP"));
    let filter =
        Filter { to: Some("Redis".to_owned()), status: Some("error".to_owned()), ..Filter::default() };
    let mut parts = nodes[0].fleet.calls(filter).unwrap();
    until("an open tap", async || nodes[1].fleet.tap.is_open()).await;
    show();
    let part = tokio::time::timeout(Duration::from_secs(30), parts.recv()).await.unwrap().unwrap();
    let Part::Calls { node, calls, dropped } = part else { panic!("{part:?}") };
    assert_eq!((node.get(), dropped), (2, 0));
    let seen: Vec<_> = calls.iter().map(|call| (call.agent_id, call.server.as_str(), call.status)).collect();
    assert_eq!(seen, [(7, "redis", 3)]);
    // Nobody reads: batches pass all the same, and are counted.
    for _ in 0..10_000 {
        show();
    }
    until("a count of what was lost", async || {
        let Some(Part::Calls { dropped, .. }) = parts.recv().await else { return false };
        dropped > 0
    })
    .await;
    drop(parts);
    until("a closed tap", async || !nodes.iter().any(|node| node.fleet.tap.is_open())).await;
}
