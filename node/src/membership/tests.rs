//! Tests with real gossip over UDP on loopback, and with what others may send to its port.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio::net::UdpSocket;

use super::{
    forge::Forged,
    gossip::{Gossip, Settings},
    screen::{Identity, Refusal, Screen},
    stats::Restart,
    *,
};

/// Far more than anything here takes; other builds may have the machine's cores.
const PATIENCE: Duration = Duration::from_secs(20);

fn config(folder: &Path, node_id: u16, seeds: &[String]) -> Config {
    Config {
        cluster: "test".to_owned(),
        node_id,
        facts: Facts { name: format!("n{node_id}"), zone: format!("z{node_id}"), ..Facts::default() },
        seeds: seeds.to_vec(),
        interval: None,
        phi_threshold: 5.0,
        generation_file: folder.join(format!("generation-{node_id}")),
    }
}

async fn listening(config: Config, port: u16) -> anyhow::Result<Membership> {
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    Membership::start(config, Transport::Udp { listen, advertise: None }).await
}

/// Ready nodes, numbered from 1; all but the first have the first as seed.
async fn cluster(folder: &TempDir, size: u16) -> Vec<Membership> {
    let mut members = Vec::new();
    for node_id in 1..=size {
        let member = join(folder, node_id, &members).await;
        members.push(member);
    }
    everyone(&members, |view| {
        view.live().filter(|member| member.word() == "ready").count() == usize::from(size)
    })
    .await;
    members
}

async fn join(folder: &TempDir, node_id: u16, members: &[Membership]) -> Membership {
    let seeds: Vec<String> = members.first().map(|first| first.address().to_string()).into_iter().collect();
    let member = listening(config(folder.path(), node_id, &seeds), 0).await.unwrap();
    member.set_state(State::Ready);
    member
}

/// Waits until the view is as told.
async fn until(membership: &Membership, mut told: impl FnMut(&View) -> bool) -> Arc<View> {
    let mut views = membership.view();
    let waiting = async { views.wait_for(|view| told(view)).await.map(|view| Arc::clone(&view)) };
    match tokio::time::timeout(PATIENCE, waiting).await {
        Ok(view) => view.expect("the membership runs"),
        Err(_) => panic!("not so in time: {:#?}", membership.view().borrow()),
    }
}

async fn everyone(members: &[Membership], told: impl Fn(&View) -> bool) {
    for member in members {
        until(member, &told).await;
    }
}

/// Waits until something outside of the view is so.
async fn eventually(mut so: impl FnMut() -> bool) {
    let waiting = async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("it becomes so");
}

fn word(view: &View, node_id: u16) -> &'static str {
    view.member(node_id).map_or("unknown", Member::word)
}

/// What a member is in gossip.
fn identity(member: &Membership) -> Identity {
    let view = Arc::clone(&member.view().borrow());
    let own = view.member(view.own).unwrap();
    Identity { node: own.node_id.to_string().into(), generation: own.generation, address: own.gossip }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_find_each_other_one_more_joins_and_a_death_is_noticed_by_all() {
    let folder = tempfile::tempdir().unwrap();
    let began = Instant::now();
    let mut members = cluster(&folder, 3).await;
    eprintln!("three nodes formed in {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(3));

    let fourth = join(&folder, 4, &members).await;
    members.push(fourth);
    everyone(&members, |view| view.live().count() == 4 && word(view, 4) == "ready").await;
    let view = Arc::clone(&members[0].view().borrow());
    assert_eq!(view.member(4).unwrap().facts.zone, "z4");
    // The failure detector has seen how often they speak.
    members[3].set_load(Load { agents: 7, ..Load::default() });
    everyone(&members, |view| view.member(4).unwrap().facts.load.agents == 7).await;

    let died = Instant::now();
    drop(members.pop());
    everyone(&members, |view| word(view, 4) == "dead").await;
    eprintln!("a death was noticed by all in {:?}", died.elapsed());
    assert!(died.elapsed() < Duration::from_secs(3));
    assert!(members.iter().all(|member| member.view().borrow().live().count() == 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_leaves_is_never_dead() {
    let folder = tempfile::tempdir().unwrap();
    let mut members = cluster(&folder, 3).await;
    let last = members.pop().unwrap();
    last.set_state(State::Draining);
    everyone(&members, |view| word(view, 3) == "draining").await;
    let flaps: Vec<u32> =
        members.iter().map(|member| member.view().borrow().member(3).unwrap().flaps).collect();
    let leaving = tokio::spawn(async move { last.leave().await });
    for (member, flaps) in members.iter().zip(flaps) {
        let mut words = vec![];
        let view = until(member, |view| {
            words.push(word(view, 3));
            word(view, 3) == "left"
        })
        .await;
        assert!(!words.contains(&"dead"), "{words:?}");
        assert_eq!(view.member(3).unwrap().flaps, flaps);
    }
    leaving.await.unwrap();
    let again = join(&folder, 3, &members).await;
    everyone(&members, |view| word(view, 3) == "ready").await;
    assert_eq!(again.crashes(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_comes_back_with_a_higher_generation() {
    let folder = tempfile::tempdir().unwrap();
    let mut members = cluster(&folder, 2).await;
    let seeds = [members[0].address().to_string()];
    let second = members.pop().unwrap();
    let (port, before) = (second.address().port(), identity(&second).generation);
    drop(second);
    // The port is free when the tasks have ended.
    let mut again = None;
    let deadline = Instant::now() + PATIENCE;
    while again.is_none() && Instant::now() < deadline {
        again = listening(config(folder.path(), 2, &seeds), port).await.ok();
        tokio::task::yield_now().await;
    }
    let again = again.expect("the port is free again");
    again.set_state(State::Ready);
    let view =
        until(&members[0], |view| word(view, 2) == "ready" && view.member(2).unwrap().generation > before)
            .await;
    assert!(view.member(2).unwrap().flaps >= 1);
    assert_eq!(again.crashes(), 1);
    assert_eq!(view.duplicates, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_with_one_id_are_seen_by_all() {
    let folder = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let mut members = cluster(&folder, 2).await;
    let seeds = [members[0].address().to_string()];
    members.push(listening(config(elsewhere.path(), 2, &seeds), 0).await.unwrap());
    everyone(&members, |view| view.duplicates.len() == 1).await;
    let mut addresses = vec![members[1].address(), members[2].address()];
    addresses.sort_unstable();
    for (member, shared) in members.iter().zip([false, true, true]) {
        let view = Arc::clone(&member.view().borrow());
        assert_eq!(view.duplicates, [Duplicate { node_id: 2, addresses: addresses.clone() }]);
        assert_eq!(view.own_id_is_shared(), shared);
    }
    drop(members.pop());
    everyone(&members, |view| view.duplicates.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seed_that_cannot_be_resolved_stops_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let first = join(&folder, 1, &[]).await;
    let seeds = ["no-such-host.invalid:20037".to_owned(), first.address().to_string()];
    let second = listening(config(folder.path(), 2, &seeds), 0).await.unwrap();
    until(&second, |view| view.live().count() == 2).await;
    eventually(|| second.server.stats.seeds_unresolved.load(std::sync::atomic::Ordering::Relaxed) > 0).await;
}

#[tokio::test]
async fn a_cluster_of_one_opens_no_socket_and_shows_itself() {
    let folder = tempfile::tempdir().unwrap();
    let alone = Membership::start(config(folder.path(), 9, &[]), Transport::Alone).await.unwrap();
    assert_eq!(word(&alone.view().borrow(), 9), "starting");
    alone.set_state(State::Ready);
    let view = Arc::clone(&alone.view().borrow());
    assert_eq!((word(&view, 9), view.members.len(), view.own_id_is_shared()), ("ready", 1, false));
    assert!(view.member(9).unwrap().ready_since.is_some());
    assert!(lock(&alone.task).is_none());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    alone.leave().await;
}

/// Datagrams that would end, fill or mislead the library, with the reason by which each is refused.
fn hostile(target: &Identity) -> Vec<(Vec<u8>, Refusal)> {
    let other = Identity { node: "500".into(), generation: 1, address: "127.0.0.1:9".parse().unwrap() };
    let announced = Forged::message(1).stream(&Forged::default().entry(&other, 1, 0));
    let key_beyond_ascii = Forged::default().of(&other).value("\u{e9}", "x", 1);
    let going_back = Forged::default().of(&other).value("a", "x", 9).u8(2).number(1);
    let own = Forged::default().of(target).value("state", "drained", 1 << 40);
    let crowd = (0..1023).fold(Forged::default(), |digest, generation| {
        digest.entry(&Identity { generation, ..other.clone() }, 1, 1)
    });
    let zeros = vec![0; usize::from(u16::MAX)];
    let bomb = (0..2000).fold(Forged::message(0), |bomb, _| bomb.compressed(&zeros));
    vec![
        (b"garbage".to_vec(), Refusal::Foreign),
        (vec![0xa5; 65_507], Refusal::Foreign),
        (Forged::message(0).stream(&Forged::default()).text("another").0, Refusal::Cluster),
        (announced.clone().stream(&key_beyond_ascii).0, Refusal::Keys),
        (announced.stream(&going_back).0, Refusal::Malformed),
        (Forged::message(2).stream(&own).0, Refusal::OwnState),
        (Forged::message(0).stream(&crowd).text("test").0, Refusal::Members),
        (bomb.u8(0).text("test").0, Refusal::Malformed),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_datagrams_change_nothing_and_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let members = cluster(&folder, 2).await;
    let before = identity(&members[0]);
    let attacker = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for (datagram, reason) in hostile(&before) {
        let stats = &members[0].server.stats;
        let refused = stats.refused(reason);
        attacker.send_to(&datagram, members[0].address()).await.unwrap();
        eventually(|| stats.refused(reason) > refused).await;
    }
    // Still the same start, and still heard: what it says now arrives.
    members[0].set_load(Load { agents: 42, ..Load::default() });
    until(&members[1], |view| view.member(1).unwrap().facts.load.agents == 42).await;
    assert_eq!(identity(&members[0]), before);
    assert!(members.iter().all(|member| member.view().borrow().members.len() == 2));
    let mut readings = vec![];
    members[0].readings(&mut readings);
    let total = |name: &str| readings.iter().filter(|r| r.name == name).map(|r| r.value).sum::<f64>();
    assert!(total("gossip_refused") >= 8.0);
    assert_eq!((total("gossip_restarts"), total("cluster_members")), (0.0, 2.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_in_whose_name_others_spoke_is_heard_again() {
    let folder = tempfile::tempdir().unwrap();
    let members = cluster(&folder, 2).await;
    let before = identity(&members[0]);
    let attacker = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    // The second is told that the first has spoken more often than it ever will: it would be deaf to it.
    let forged = Forged::message(0).stream(&Forged::default().entry(&before, 1 << 40, 1)).text("test");
    attacker.send_to(&forged.0, members[1].address()).await.unwrap();
    until(&members[1], |view| {
        view.member(1).is_some_and(|first| first.generation > before.generation && first.word() == "ready")
    })
    .await;
    assert!(members[0].server.stats.restarts(Restart::Impersonated) > 0);
    members[0].set_load(Load { agents: 42, ..Load::default() });
    until(&members[1], |view| view.member(1).unwrap().facts.load.agents == 42).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_of_the_library_is_survived() {
    // In memory nothing is screened, so that a key can end the library's task.
    let folder = tempfile::tempdir().unwrap();
    let network = Network::default();
    let address = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let start = |node_id: u16| {
        let config = config(folder.path(), node_id, &[address(1).to_string()]);
        Membership::start(config, Transport::Memory(network.clone(), address(node_id)))
    };
    let members = [start(1).await.unwrap(), start(2).await.unwrap()];
    everyone(&members, |view| view.live().count() == 2).await;

    let own = Identity { node: "3".into(), generation: 1, address: address(3) };
    let settings = Settings {
        cluster: "test".to_owned(),
        own: own.clone(),
        pace: Pace::of_members(1, None),
        phi_threshold: 5.0,
        dead_grace: Duration::from_secs(60),
    };
    let screen = Arc::new(Mutex::new(Screen::new("test".to_owned(), own)));
    let wire = Wire::Memory(network.clone());
    let attacker = Gossip::start(settings, &wire, screen, Arc::default(), vec![]).await.unwrap();
    let attacker = Arc::new(attacker);
    let poisoned = Arc::clone(&attacker);
    let publish =
        tokio::spawn(async move { poisoned.publish(vec![("\u{e9}".to_owned(), String::new())]).await });
    assert!(publish.await.unwrap_err().is_panic());
    attacker.greet(address(1));
    eventually(|| members[0].server.stats.restarts(Restart::Ended) > 0).await;
    drop(attacker);
    members[0].set_load(Load { agents: 42, ..Load::default() });
    everyone(&members, |view| view.live().count() >= 2 && view.member(1).unwrap().facts.load.agents == 42)
        .await;
    let second = members[0].view().borrow().member(2).cloned().unwrap();
    assert_eq!((second.flaps, &*second.facts.name), (0, "n2"), "the second was there all the time");
}
