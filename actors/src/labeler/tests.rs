//! Labelling as data: facts and columns in, names of tags out; and columns of a hostile sender.

mod actor;
mod hostile;
mod tables;

use std::{cell::RefCell, collections::HashMap, convert::Infallible, net::IpAddr};

use metaflow_schema::{
    enums::{Kind, TagSource},
    tags::Tags,
    types::ip_cell,
};
use metaflow_wire::{self as wire, Columns, columns::Rows as WireRows};

use super::*;
use crate::rows::BatchId;

pub(super) const ID: BatchId = BatchId { agent_id: 71, seq: 9 };

/// A dictionary that only counts, and remembers what it gave.
#[derive(Default)]
pub(super) struct Numbers {
    ids: RefCell<HashMap<(Kind, String), u32>>,
    pub questions: RefCell<usize>,
}

impl Names for Numbers {
    type Error = Infallible;

    fn ids(&self, wanted: &[(Kind, &str)]) -> Result<Vec<u32>, Infallible> {
        *self.questions.borrow_mut() += 1;
        Ok(wanted.iter().map(|(kind, name)| self.id(*kind, name)).collect())
    }

    fn may_exist(&self, _kind: Kind, id: u32) -> bool {
        id != 0
    }
}

impl Numbers {
    pub(super) fn id(&self, kind: Kind, name: &str) -> u32 {
        if name.is_empty() {
            return 0;
        }
        let mut ids = self.ids.borrow_mut();
        let next = 100 + u32::try_from(ids.len()).unwrap();
        *ids.entry((kind, name.to_owned())).or_insert(next)
    }

    /// The name of an id; a number that was never given is the defect that D3 forbids.
    pub(super) fn name(&self, kind: Kind, id: u32) -> String {
        if id == 0 {
            return String::new();
        }
        let ids = self.ids.borrow();
        let found = ids.iter().find(|(entry, given)| entry.0 == kind && **given == id);
        found.unwrap_or_else(|| panic!("id {id} names no {}", kind.name())).0.1.clone()
    }
}

fn cell(ip: &str) -> [u8; 16] {
    ip_cell(ip.parse::<IpAddr>().unwrap())
}

/// pid, name, unit, container.
type Fact = (u32, &'static str, &'static str, &'static str);
/// Address, port, protocol, pid.
type Socket = (&'static str, u16, u8, u32);

fn view(
    numbers: &Numbers,
    host: &str,
    processes: &[Fact],
    sockets: &[Socket],
    addresses: &[&str],
    subnet: (&str, u8),
) -> AgentView {
    let unit_id = |unit| if names_service(unit) { numbers.id(Kind::Unit, unit) } else { 0 };
    AgentView::new(
        HostTags { host_id: numbers.id(Kind::Host, host), vpc_id: numbers.id(Kind::Vpc, "default") },
        processes.iter().map(|(pid, name, unit, container)| ProcessTags {
            pid: *pid,
            process_id: numbers.id(Kind::Process, name),
            unit_id: if container.is_empty() { unit_id(unit) } else { 0 },
            container_id: numbers.id(Kind::Container, container),
        }),
        sockets.iter().map(|(ip, port, ip_protocol, pid)| Listening {
            ip: cell(ip),
            port: *port,
            ip_protocol: *ip_protocol,
            pid: *pid,
        }),
        addresses.iter().map(|ip| cell(ip)).collect(),
        vec![Subnet {
            ip: cell(subnet.0),
            prefix_length: subnet.1 + 96,
            subnet_id: numbers.id(Kind::Subnet, &format!("{}/{}", subnet.0, subnet.1)),
        }],
    )
}

/// Two hosts in one subnet; both have the bridge address 172.17.0.1.
pub(super) fn two_hosts(numbers: &Numbers) -> Snapshot {
    let web = view(
        numbers,
        "web-1",
        &[
            (10, "nginx", "nginx", ""),
            (11, "redis-server", "", ""),
            (12, "python3 worker.py", "session-4.scope", ""),
            (13, "java", "docker-1234.scope", "abcdef"),
            (14, "curl", "user@1000", ""),
        ],
        &[
            ("0.0.0.0", 80, 6, 10),
            ("127.0.0.1", 6379, 6, 11),
            ("10.1.0.5", 8080, 6, 13),
            ("::", 53, 17, 10),
            ("0.0.0.0", 8080, 6, 11),
            ("0.0.0.0", 99, 6, 4_000),
        ],
        &["10.1.0.5", "127.0.0.1", "172.17.0.1", "10.1.0.6"],
        ("10.1.0.0", 24),
    );
    let db = view(
        numbers,
        "db-1",
        &[(10, "mariadbd", "mariadb", "")],
        &[("0.0.0.0", 3306, 6, 10), ("127.0.0.1", 80, 6, 10)],
        &["10.1.0.9", "127.0.0.1", "172.17.0.1", "203.0.113.9"],
        ("203.0.113.0", 28),
    );
    let agents = [(71, Arc::new(web)), (72, Arc::new(db))];
    Snapshot::default().with(agents)
}

/// Address, pid, port, protocol.
type Server = (&'static str, u32, u16, u8);

/// Labels one row's server end for agent `agent_id`: `service kind:service | instance kind:instance | source | host | subnet | vpc`.
fn server_tags(
    snapshot: &Snapshot,
    numbers: &Numbers,
    agent_id: u32,
    (ip, pid, port, protocol): Server,
) -> String {
    let octets = match ip.parse::<IpAddr>().unwrap() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let endpoints = wire::Endpoints {
        server_ip: vec![0],
        server_port: vec![port.into()],
        server_pid: vec![pid],
        ip_protocol: vec![protocol.into()],
        ..Default::default()
    };
    let columns = Columns {
        strings: vec![],
        addresses: vec![octets],
        rows: Some(WireRows::Application(wire::Application {
            endpoints: Some(endpoints),
            ..Default::default()
        })),
    };
    let input = Input { snapshot, names: numbers, id: BatchId { agent_id, seq: 1 } };
    match input.label_columns(wire::Table::Application1s, 1, columns).unwrap() {
        Rows::Application(_, block) => describe(numbers, &block.tags),
        other => panic!("labelled as {other:?}"),
    }
}

fn describe(numbers: &Numbers, tags: &Tags) -> String {
    let typed = |kind: u8, id| {
        let kind = Kind::from_number(kind).unwrap();
        format!("{}:{}", kind.name(), numbers.name(kind, id))
    };
    let vpc = match tags.l3_epc_id[0] {
        metaflow_schema::tags::INTERNET_EPC => "internet".to_owned(),
        vpc => numbers.name(Kind::Vpc, vpc),
    };
    format!(
        "{} | {} | {} | {} | {} | {vpc}",
        typed(tags.auto_service_type[0], tags.auto_service_id[0]),
        typed(tags.auto_instance_type[0], tags.auto_instance_id[0]),
        TagSource::from_number(tags.tag_source[0]).unwrap().name(),
        numbers.name(Kind::Host, tags.host_id[0]),
        numbers.name(Kind::Subnet, tags.subnet_id[0]),
    )
}

#[test]
fn every_rule_of_tagging_gives_its_names() {
    let numbers = Numbers::default();
    let snapshot = two_hosts(&numbers);
    #[rustfmt::skip]
    let cases: &[(u32, Server, &str)] = &[
        // The process that the agent names: unit, else process; generic units and containers give the process.
        (71, ("10.1.0.5", 10, 80, 6), "unit:nginx | process:nginx | process | web-1 | 10.1.0.0/24 | default"),
        (71, ("127.0.0.1", 11, 6379, 6), "process:redis-server | process:redis-server | process | web-1 |  | default"),
        (71, ("10.1.0.5", 12, 1, 6), "process:python3 worker.py | process:python3 worker.py | process | web-1 | 10.1.0.0/24 | default"),
        (71, ("172.18.0.2", 13, 1, 6), "process:java | process:java | process | web-1 |  | default"),
        (71, ("10.1.0.5", 14, 1, 6), "process:curl | process:curl | process | web-1 | 10.1.0.0/24 | default"),
        // The listener: of the own host, by exact address first, of another host, over UDP on every address.
        (71, ("10.1.0.5", 0, 80, 6), "unit:nginx | process:nginx | listener | web-1 | 10.1.0.0/24 | default"),
        (71, ("10.1.0.5", 0, 8080, 6), "process:java | process:java | listener | web-1 | 10.1.0.0/24 | default"),
        (71, ("10.1.0.6", 0, 8080, 6), "process:redis-server | process:redis-server | listener | web-1 | 10.1.0.0/24 | default"),
        (71, ("10.1.0.9", 0, 3306, 6), "unit:mariadb | process:mariadbd | listener | db-1 |  | default"),
        (72, ("10.1.0.5", 0, 53, 17), "unit:nginx | process:nginx | listener | web-1 | 10.1.0.0/24 | default"),
        // A pid that is not known falls back to the listener; a listener without a known process to the host.
        (71, ("10.1.0.5", 999, 80, 6), "unit:nginx | process:nginx | listener | web-1 | 10.1.0.0/24 | default"),
        (71, ("10.1.0.5", 0, 99, 6), "host:web-1 | host:web-1 | address | web-1 | 10.1.0.0/24 | default"),
        // Loopback is the host of the agent that saw the row.
        (72, ("127.0.0.1", 0, 80, 6), "unit:mariadb | process:mariadbd | listener | db-1 |  | default"),
        (71, ("127.0.0.1", 0, 80, 6), "unit:nginx | process:nginx | listener | web-1 |  | default"),
        (71, ("127.0.0.53", 0, 53, 6), "host:web-1 | host:web-1 | address | web-1 |  | default"),
        // Another protocol is another listener.
        (71, ("10.1.0.5", 0, 80, 17), "host:web-1 | host:web-1 | address | web-1 | 10.1.0.0/24 | default"),
        // An address that both hosts have means the own one; public addresses of known hosts are known.
        (72, ("172.17.0.1", 0, 3306, 6), "unit:mariadb | process:mariadbd | listener | db-1 |  | default"),
        (71, ("203.0.113.9", 0, 1, 6), "host:db-1 | host:db-1 | address | db-1 | 203.0.113.0/28 | default"),
        // Nobody's: within the subnet, private, internet, none.
        (71, ("10.1.0.77", 0, 80, 6), "ip: | ip: | subnet |  | 10.1.0.0/24 | default"),
        (72, ("203.0.113.3", 0, 80, 6), "ip: | ip: | subnet |  | 203.0.113.0/28 | default"),
        (71, ("192.168.7.7", 0, 80, 6), "ip: | ip: | none |  |  | default"),
        (71, ("fd00::1", 0, 80, 6), "ip: | ip: | none |  |  | default"),
        (71, ("0.0.0.0", 0, 80, 6), "ip: | ip: | none |  |  | default"),
        (71, ("8.8.8.8", 0, 53, 17), "internet: | internet: | none |  |  | internet"),
        (71, ("2001:4860::8888", 0, 53, 17), "internet: | internet: | none |  |  | internet"),
        // An agent without facts still sees addresses.
        (99, ("10.1.0.5", 10, 80, 6), "ip: | ip: | none |  |  | "),
        (99, ("8.8.8.8", 10, 80, 6), "internet: | internet: | none |  |  | internet"),
    ];
    for (agent_id, server, expected) in cases {
        assert_eq!(server_tags(&snapshot, &numbers, *agent_id, *server), *expected, "{agent_id} {server:?}");
    }
}

#[test]
fn an_address_of_several_hosts_names_none_to_a_third() {
    let numbers = Numbers::default();
    let third = view(&numbers, "other", &[], &[], &["10.9.0.1"], ("10.9.0.0", 24));
    let snapshot = two_hosts(&numbers).with([(73, Arc::new(third))]);
    let tags = server_tags(&snapshot, &numbers, 73, ("172.17.0.1", 0, 80, 6));
    assert_eq!(tags, "ip: | ip: | none |  |  | default");
    let moved = view(&numbers, "db-1", &[], &[], &["10.1.0.10"], ("10.9.0.0", 24));
    let snapshot = snapshot.with([(72, Arc::new(moved))]);
    // The bridge is one host's now, and the old address of the other is nobody's.
    let tags = server_tags(&snapshot, &numbers, 73, ("172.17.0.1", 0, 80, 6));
    assert!(tags.starts_with("unit:nginx"), "{tags}");
    let tags = server_tags(&snapshot, &numbers, 73, ("10.1.0.9", 0, 3306, 6));
    assert!(tags.starts_with("ip:"), "{tags}");
}

#[test]
fn units_that_only_start_things_name_no_service() {
    for unit in ["", "session-3.scope", "user@0", "init.scope", "init", "run-r1a2b", "cron", "system.slice"] {
        assert!(!names_service(unit), "{unit}");
    }
    for unit in ["nginx", "redis-server", "postgresql@15-main", "init-db", "sshd-proxy"] {
        assert!(names_service(unit), "{unit}");
    }
}
