//! Facts under gaps and limits; agents and names over restarts.

mod claims;

use std::collections::HashMap;

use metaflow_schema::enums::Kind;

use super::{facts::*, *};
use crate::{
    dictionary::NodeId,
    labeler::{Input, Names},
    rows::{BatchId, Rows},
};

fn process(pid: u32, name: &str) -> wire::Process {
    wire::Process { pid, name: name.to_owned(), unit: name.to_owned(), ..Default::default() }
}

fn listener(port: u32, pid: u32) -> wire::Listener {
    wire::Listener { ip: vec![0; 4], port, ip_protocol: 6, pid }
}

fn interface(ip: [u8; 4]) -> wire::Interface {
    let address = wire::Address { ip: ip.to_vec(), prefix_length: 24 };
    wire::Interface { addresses: vec![address], ..Default::default() }
}

fn full(version: u64, processes: Vec<wire::Process>) -> wire::Facts {
    wire::Facts { version, full: true, processes, ..Default::default() }
}

fn names(facts: &Facts) -> Vec<&str> {
    let mut names: Vec<_> = facts.processes().map(|process| process.name.as_str()).collect();
    names.sort_unstable();
    names
}

#[test]
fn changes_apply_in_sequence_and_a_gap_asks_for_all() {
    let mut facts = Facts::default();
    let delta = |version, processes| wire::Facts { version, processes, ..Default::default() };
    assert_eq!(facts.apply(delta(1, vec![process(1, "early")])), Err(Gap));
    facts.apply(full(5, vec![process(1, "init"), process(2, "nginx")])).unwrap();
    assert_eq!(facts.apply(delta(6, vec![process(3, "redis")])), Ok(vec![Edit::Process(3)]));
    assert_eq!(names(&facts), ["init", "nginx", "redis"]);
    assert_eq!(facts.apply(delta(8, vec![])), Err(Gap));
    // Once a version is missed, later ones do not help either.
    assert_eq!(facts.apply(delta(7, vec![])), Err(Gap));
    // All facts again: only what differs is an edit; who is missing ended.
    let edits = facts.apply(full(9, vec![process(1, "init"), process(2, "apache")])).unwrap();
    assert_eq!((edits, facts.running(), facts.version()), (vec![Edit::Process(2)], 2, 9));
}

#[test]
fn ended_processes_keep_their_names_until_others_push_them_out() {
    let mut facts = Facts::default();
    facts.apply(full(1, (1..=10).map(|pid| process(pid, "worker")).collect())).unwrap();
    let gone = |version, gone_pids| wire::Facts { version, gone_pids, ..Default::default() };
    assert_eq!(facts.apply(gone(2, vec![3, 3, 99])), Ok(vec![]));
    assert_eq!((facts.running(), facts.process(3).is_some()), (9, true));
    // The pid comes back as another process, which does not age.
    let back = wire::Facts { version: 3, processes: vec![process(3, "new")], ..Default::default() };
    assert_eq!(facts.apply(back), Ok(vec![Edit::Process(3)]));
    assert_eq!((facts.running(), names(&facts)[0]), (10, "new"));

    facts.apply(gone(4, vec![5])).unwrap();
    let many = 1_000..1_000 + u32::try_from(GONE_MAX).unwrap();
    let started = many.clone().map(|pid| process(pid, "short")).collect();
    facts.apply(wire::Facts { version: 5, processes: started, ..Default::default() }).unwrap();
    let edits = facts.apply(gone(6, many.collect())).unwrap();
    assert_eq!(edits, [Edit::NoProcess(5)]);
    assert_eq!((facts.process(5), facts.running()), (None, 9));
}

#[test]
fn what_exceeds_a_limit_or_makes_no_sense_is_left_out_and_counted() {
    let mut facts = Facts::default();
    let over = u32::try_from(PROCESSES_MAX).unwrap() + 5;
    let sockets = u32::try_from(LISTENERS_MAX).unwrap() + 3;
    let mut message = full(1, (0..over + 1).map(|pid| process(pid, "p")).collect());
    message.listeners = (0..sockets).map(|port| listener(port, 1)).collect();
    message.listeners.push(listener(70_000, 1));
    message.interfaces = vec![interface([10, 0, 0, 1]); ADDRESSES_MAX + 2];
    message.processes[1].name = "\u{e9}".repeat(1_000);
    facts.apply(message).unwrap();
    assert_eq!((facts.running(), facts.listeners().len()), (PROCESSES_MAX, LISTENERS_MAX));
    assert_eq!(facts.addresses().len(), ADDRESSES_MAX);
    // Pid 0 and five more processes, three listeners and one without a port, two addresses.
    assert_eq!(facts.refused(), 6 + 4 + 2);
    assert_eq!(facts.process(1).unwrap().name.len(), 256);
}

fn dictionary(disk: &Disk) -> Dictionary {
    let config = dictionary::Config::new(NodeId::new(1).unwrap());
    Dictionary::open(disk.clone(), config, &HashMap::new()).unwrap()
}

fn hello(machine: &str) -> wire::Hello {
    wire::Hello {
        protocol_version: wire::PROTOCOL_VERSION,
        machine_id: machine.to_owned(),
        hostname: format!("host-{machine}"),
        ..Default::default()
    }
}

/// The name of the service behind 10.0.0.1:80 as the snapshot has it.
fn service(snapshot: &Snapshot, names: &Dictionary, agent_id: u32) -> Option<String> {
    let endpoints = wire::Endpoints {
        server_ip: vec![0],
        server_port: vec![80],
        ip_protocol: vec![6],
        ..Default::default()
    };
    let rows = wire::Application { endpoints: Some(endpoints), ..Default::default() };
    let columns = wire::Columns {
        addresses: vec![vec![10, 0, 0, 1]],
        rows: Some(wire::columns::Rows::Application(rows)),
        ..Default::default()
    };
    let input = Input { snapshot, names, id: BatchId { agent_id, seq: 1 } };
    let Ok(Rows::Application(_, block)) = input.label_columns(wire::Table::Application1s, 1, columns) else {
        panic!("the row is not labelled");
    };
    let kind = Kind::from_number(block.tags.auto_service_type[0]).unwrap();
    names.resolve(kind, block.tags.auto_service_id[0]).unwrap()
}

#[tokio::test]
async fn an_agent_keeps_the_id_of_another_node_and_none_gets_that_of_another_agent() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::open(folder.path()).unwrap();
    let names = dictionary(&disk);
    let (controller, task) = Controller::start(Config::default(), disk, names.clone()).await.unwrap();
    let elsewhere = 9 << 22 | 3;
    let greet = async |machine: &str, agent_id: u32, is_proven: bool| {
        let hello = wire::Hello { agent_id, ..hello(machine) };
        controller.hello(Introduction { hello, is_proven }).await.unwrap().welcome
    };
    let come = async |machine: &str, agent_id: u32| greet(machine, agent_id, true).await.agent_id;
    assert_eq!(come("a", elsewhere).await, elsewhere);
    let own = come("b", 0).await;
    assert_eq!(own >> 22, 1);
    assert_eq!(come("b", elsewhere).await, own, "this id is that of another machine");
    assert_eq!(come("b", 17).await, own, "no node gives such an id");
    assert_eq!(come("c", own + 1_000_000).await, own + 1, "this node never gave it, and its counter stays");
    // Its canonical id is the smaller one of this node; its batches have the other one.
    let alias = 9 << 22 | 8;
    let refused = greet("b", alias, false).await;
    assert_eq!((refused.agent_id, refused.agent_id_unknown), (own, true), "anybody could say so");
    assert_eq!(names.resolve(Kind::Agent, alias).unwrap(), None);
    assert_eq!(come("b", alias).await, alias);
    let known = greet("b", alias, false).await;
    assert_eq!((known.agent_id, known.agent_id_unknown), (alias, false), "by now it is known");
    assert!(!greet("b", elsewhere, false).await.agent_id_unknown, "it is another machine's");
    assert_eq!(names.lookup(Kind::Agent, "b"), Some(own));
    controller.stop();
    task.await.unwrap();
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting)
        .await
        .unwrap_or_else(|_| panic!("waited for {what}"));
}

fn web_facts() -> wire::Facts {
    wire::Facts {
        version: 1,
        full: true,
        processes: vec![process(7, "nginx")],
        listeners: vec![listener(80, 7)],
        interfaces: vec![interface([10, 0, 0, 1])],
        ..Default::default()
    }
}

#[tokio::test]
async fn facts_become_names_and_survive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::open(folder.path()).unwrap();
    let names = dictionary(&disk);
    let (controller, handle) =
        Controller::start(Config::default(), disk.clone(), names.clone()).await.unwrap();
    let agent_id = controller.hello(hello("m1")).await.unwrap().welcome.agent_id;
    assert_eq!(names.lookup(Kind::Agent, "m1"), Some(agent_id));
    assert_eq!(controller.facts(agent_id, web_facts()).await.unwrap(), FactsReply::Kept);
    let snapshot = controller.snapshot();
    until("the service", || service(&snapshot.load(), &names, agent_id).as_deref() == Some("nginx")).await;

    let stop = wire::Facts {
        version: 2,
        gone_listeners: vec![listener(80, 7)],
        interfaces: vec![interface([10, 0, 0, 1])],
        ..Default::default()
    };
    assert_eq!(controller.facts(agent_id, stop).await.unwrap(), FactsReply::Kept);
    until("the host", || service(&snapshot.load(), &names, agent_id).as_deref() == Some("host-m1")).await;
    let again = wire::Facts {
        version: 3,
        listeners: vec![listener(80, 7)],
        interfaces: vec![interface([10, 0, 0, 1])],
        ..Default::default()
    };
    controller.facts(agent_id, again).await.unwrap();
    controller.stop();
    handle.await.unwrap();

    let (controller, _) = Controller::start(Config::default(), disk, names.clone()).await.unwrap();
    let snapshot = controller.snapshot();
    assert_eq!(service(&snapshot.load(), &names, agent_id).as_deref(), Some("nginx"));
    let listed = controller.agents().await.unwrap();
    assert_eq!((listed.len(), listed[0].processes, listed[0].silent_for), (1, 1, None));
    // The same machine is the same agent; after a new Hello, changes need all facts first.
    assert_eq!(controller.hello(hello("m1")).await.unwrap().welcome.agent_id, agent_id);
    let delta = wire::Facts { version: 4, ..Default::default() };
    assert_eq!(controller.facts(agent_id, delta).await.unwrap(), FactsReply::Resend);
    assert_eq!(controller.facts(424_242, web_facts()).await.unwrap(), FactsReply::Resend);
}

#[tokio::test]
async fn an_agent_shows_its_state_within_bounds() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::open(folder.path()).unwrap();
    let names = dictionary(&disk);
    let config = Config { agents_max: 1, ..Config::default() };
    let (controller, _) = Controller::start(config, disk, names.clone()).await.unwrap();
    let admission = controller.hello(hello("m1")).await.unwrap();
    assert_eq!(Some(admission.welcome.vpc_id), names.lookup(Kind::Vpc, "default"));
    let agent_id = admission.welcome.agent_id;
    let losses = vec![wire::Loss { reason: "spool full".into(), rows: 3 }];
    let beat = |config_version| wire::Heartbeat {
        config_version,
        spool_bytes: 9,
        losses: losses.clone(),
        ..Default::default()
    };
    let failed = wire::Heartbeat {
        last_error: "\u{e9}".repeat(1_000),
        config_pending: vec![String::new(); 99],
        ..beat(0)
    };
    controller.heartbeat(agent_id, failed).await.unwrap();
    assert_eq!(controller.agents().await.unwrap()[0].config_pending.len(), 16);
    controller.heartbeat(agent_id, beat(7)).await.unwrap();
    let agent = controller.agents().await.unwrap().remove(0);
    assert_eq!((agent.host.as_str(), agent.spool_bytes, agent.config_version), ("host-m1", 9, 7));
    assert_eq!(agent.losses, [("spool full".to_owned(), 3)]);
    assert_eq!((agent.last_error.len(), agent.connections), (256, 1), "the last error stays");
    assert!(agent.silent_for.is_some());

    let refused = |result: Result<Admission, Error>| match result {
        Err(Error::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(controller.hello(hello("m2")).await), Refusal::Full(1));
    assert_eq!(refused(controller.hello(hello("")).await), Refusal::MachineId);
    let old = wire::Hello { protocol_version: 99, ..hello("m1") };
    assert_eq!(refused(controller.hello(old).await), Refusal::Version(99));
}

#[tokio::test]
async fn a_full_controller_forgets_who_was_not_heard_since_its_start() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::open(folder.path()).unwrap();
    let names = dictionary(&disk);
    let config = Config { agents_max: 1, ..Config::default() };
    let (controller, handle) = Controller::start(config.clone(), disk.clone(), names.clone()).await.unwrap();
    let first = controller.hello(hello("m1")).await.unwrap().welcome.agent_id;
    controller.facts(first, web_facts()).await.unwrap();
    controller.stop();
    handle.await.unwrap();
    let (controller, handle) = Controller::start(config.clone(), disk.clone(), names.clone()).await.unwrap();
    let second = controller.hello(hello("m2")).await.unwrap().welcome.agent_id;
    assert_ne!(first, second);
    controller.stop();
    handle.await.unwrap();
    let (controller, _) = Controller::start(config, disk, names).await.unwrap();
    let machines: Vec<_> =
        controller.agents().await.unwrap().into_iter().map(|agent| agent.machine_id).collect();
    assert_eq!(machines, ["m2"]);
}

#[tokio::test]
async fn very_many_agents_are_listed_in_parts_each_once() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::open(folder.path()).unwrap();
    let names = dictionary(&disk);
    let (controller, _) = Controller::start(Config::default(), disk, names).await.unwrap();
    assert_eq!(controller.agents().await.unwrap(), []);
    let machines: Vec<String> = (0..600).map(|at| format!("m{at:03}")).collect();
    let mut greetings = tokio::task::JoinSet::new();
    for machine in machines.clone() {
        let controller = controller.clone();
        greetings.spawn(async move { controller.hello(hello(&machine)).await.unwrap() });
    }
    greetings.join_all().await;
    let mut listed: Vec<String> =
        controller.agents().await.unwrap().into_iter().map(|agent| agent.machine_id).collect();
    listed.sort_unstable();
    assert_eq!(listed, machines);
}

/// Names are asked for in one question, so that new ones cost one sync.
#[test]
fn a_view_asks_the_dictionary_once() {
    struct Counting(std::cell::Cell<usize>);
    impl Names for Counting {
        type Error = std::convert::Infallible;
        fn ids(&self, wanted: &[(Kind, &str)]) -> Result<Vec<u32>, Self::Error> {
            self.0.set(self.0.get() + 1);
            assert!(wanted.contains(&(Kind::Subnet, "10.0.0.0/24")), "{wanted:?}");
            Ok(vec![1; wanted.len()])
        }
        fn may_exist(&self, _kind: Kind, _id: u32) -> bool {
            true
        }
    }
    let mut facts = Facts::default();
    facts.apply(web_facts()).unwrap();
    let names = Counting(0.into());
    view::build(&facts, crate::labeler::HostTags::default(), &names).unwrap();
    assert_eq!(names.0.get(), 1);
}
