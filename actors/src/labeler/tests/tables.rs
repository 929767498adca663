//! Every table: columns come through whole, totals are conserved, names are asked for once.

use metaflow_schema::{Block, encode_native};
use wire::Table;

use super::*;

fn endpoints(rows: u32) -> Option<wire::Endpoints> {
    Some(wire::Endpoints {
        client_ip: (0..rows).map(|row| row % 2).collect(),
        server_ip: vec![1; rows as usize],
        server_port: vec![80; rows as usize],
        client_pid: (0..rows).map(|row| if row % 2 == 0 { 14 } else { 0 }).collect(),
        server_pid: vec![],
        ip_protocol: vec![6; rows as usize],
        observation_point: vec![5; rows as usize],
        interface_index: vec![],
    })
}

fn columns(rows: WireRows) -> Columns {
    let strings = ["", "GET", "/a", "/b", "shop", "text \u{e9}"].map(str::to_owned).to_vec();
    Columns { strings, addresses: vec![vec![10, 1, 0, 5], vec![10, 1, 0, 6]], rows: Some(rows) }
}

fn label(table: Table, rows: usize, columns: WireRows) -> (Rows, Numbers) {
    let numbers = Numbers::default();
    let snapshot = two_hosts(&numbers);
    let rows = {
        let input = Input { snapshot: &snapshot, names: &numbers, id: ID };
        input.label_columns(table, rows, self::columns(columns)).unwrap()
    };
    (rows, numbers)
}

#[test]
fn requests_keep_every_column_and_get_both_ends() {
    let rows = wire::L7FlowLog {
        endpoints: endpoints(4),
        client_port: vec![1, 2, 3, 65_535],
        end_time: vec![1_700_000_000_000_000; 4],
        response_status: vec![0, 3, 4, 0],
        request_type: vec![1, 1, 1, 0],
        endpoint: vec![2, 3, 2, 2],
        request_domain: vec![4; 4],
        request_resource: vec![2, 3, 5, 0],
        response_code: vec![200, -1, 404, 200],
        request_length: vec![10, 20, 30, 40],
        ..Default::default()
    };
    let (labelled, numbers) = label(Table::L7FlowLog, 4, WireRows::L7FlowLog(rows));
    assert_eq!(*numbers.questions.borrow(), 1);
    let Rows::L7FlowLog(block) = labelled else { panic!("{labelled:?}") };
    assert_eq!(block.rows(), 4);
    assert_eq!((block.agent_id[3], block.batch_seq[3]), (71, 9));
    assert_eq!(block.client_port, [1, 2, 3, 65_535]);
    assert_eq!(block.response_code, [200, -1, 404, 200]);
    assert_eq!(block.request_length.iter().sum::<u64>(), 100);
    assert_eq!(block.request_resource.iter().collect::<Vec<_>>(), ["/a", "/b", "text \u{e9}", ""]);
    let endpoints: Vec<_> = block.endpoint_id.iter().map(|id| numbers.name(Kind::Endpoint, *id)).collect();
    assert_eq!(endpoints, ["/a", "/b", "/a", "/a"]);
    assert_eq!(numbers.name(Kind::RequestType, block.request_type_id[0]), "GET");
    assert_eq!((block.request_type_id[3], &block.version_id[..]), (0, &[0; 4][..]));
    assert_eq!(numbers.name(Kind::RequestDomain, block.request_domain_id[3]), "shop");
    // Clients alternate between a known process and a plain host; the server is nginx.
    let client = |row: usize| numbers.name(Kind::Process, block.tags_0.process_id[row]);
    assert_eq!([client(0), client(1), client(2)], ["curl", "", "curl"]);
    assert_eq!(block.tags_0.ip[1], cell("10.1.0.6"));
    assert!(block.tags_1.unit_id.iter().all(|id| numbers.name(Kind::Unit, *id) == "nginx"));
    encode_native(block.as_ref(), 4).unwrap();
}

#[test]
fn flows_keep_every_figure() {
    let performance =
        wire::NetworkPerformance { rtt_sum: vec![7, 8], ooo_rx: vec![1, 2], ..Default::default() };
    let rows = wire::L4FlowLog {
        endpoints: endpoints(2),
        start_time: vec![5, 6],
        is_new_flow: vec![true, false],
        tcp_flags_tx: vec![2, 16],
        client_mac: vec![1 << 47, 0],
        vlan: vec![4_095, 0],
        byte_tx: vec![100, 200],
        l7_rrt_max: vec![9, 3],
        performance: Some(performance),
        ..Default::default()
    };
    let (labelled, numbers) = label(Table::L4FlowLog, 2, WireRows::L4FlowLog(rows));
    let Rows::L4FlowLog(block) = labelled else { panic!("{labelled:?}") };
    assert_eq!((&block.start_time[..], &block.is_new_flow[..]), (&[5, 6][..], &[1, 0][..]));
    assert_eq!((&block.tcp_flags_bit_0[..], &block.vlan[..]), (&[2, 16][..], &[4_095, 0][..]));
    assert_eq!((block.mac_0[0], block.figures.byte_tx[1], block.rrt_max[0]), (1 << 47, 200, 9));
    assert_eq!((&block.figures.rtt_sum[..], &block.figures.ooo_rx[..]), (&[7, 8][..], &[1, 2][..]));
    assert_eq!(block.figures.art_max, [0, 0]);
    assert_eq!(numbers.name(Kind::Host, block.tags_1.host_id[0]), "web-1");
    encode_native(block.as_ref(), 2).unwrap();
}

/// The name of the table that rows were labelled for, its totals, and whether it encodes.
fn summary(rows: &Rows) -> (&'static str, u64, bool) {
    match rows {
        Rows::Network(table, block) => {
            (table.name, block.figures.packet_tx.iter().sum(), encode_native(block.as_ref(), 3).is_ok())
        }
        Rows::NetworkMap(table, block) => {
            (table.name, block.figures.packet_tx.iter().sum(), encode_native(block.as_ref(), 3).is_ok())
        }
        Rows::Application(table, block) => {
            let total = block.interval.request.iter().map(|cell| u64::from(*cell)).sum();
            (table.name, total, encode_native(block.as_ref(), 3).is_ok())
        }
        Rows::ApplicationMap(table, block) => {
            let total = block.interval.request.iter().map(|cell| u64::from(*cell)).sum();
            (table.name, total, encode_native(block.as_ref(), 3).is_ok())
        }
        other => panic!("not a metrics table: {other:?}"),
    }
}

#[test]
fn metrics_go_to_their_tables_with_their_totals() {
    let network = || {
        WireRows::Network(wire::Network {
            endpoints: endpoints(3),
            time: vec![60; 3],
            packet_tx: vec![1, 2, 3],
            ..Default::default()
        })
    };
    let application = || {
        WireRows::Application(wire::Application {
            endpoints: endpoints(3),
            time: vec![60; 3],
            request: vec![1, 2, 3],
            endpoint: vec![2, 2, 3],
            ..Default::default()
        })
    };
    let cases = [
        (Table::Network1s, network(), "network.1s"),
        (Table::Network1m, network(), "network.1m"),
        (Table::NetworkMap1s, network(), "network_map.1s"),
        (Table::NetworkMap1m, network(), "network_map.1m"),
        (Table::Application1s, application(), "application.1s"),
        (Table::Application1m, application(), "application.1m"),
        (Table::ApplicationMap1s, application(), "application_map.1s"),
        (Table::ApplicationMap1m, application(), "application_map.1m"),
    ];
    for (table, columns, name) in cases {
        let (rows, _) = label(table, 3, columns);
        assert_eq!(summary(&rows), (name, 6, true));
    }
}

#[test]
fn a_batch_without_rows_or_columns_is_an_empty_block() {
    let (rows, _) = label(Table::L7FlowLog, 0, WireRows::L7FlowLog(wire::L7FlowLog::default()));
    let Rows::L7FlowLog(block) = rows else { panic!("{rows:?}") };
    assert_eq!(block.rows(), 0);
}
