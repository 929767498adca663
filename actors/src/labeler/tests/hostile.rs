//! Columns of any length with any content: an error that names the column, or whole rows; never a panic.

use metaflow_schema::encode_native;
use proptest::prelude::*;
use wire::Table;

use super::*;

fn label(table: Table, rows: usize, columns: Columns) -> Result<Rows, Malformed> {
    let numbers = Numbers::default();
    let snapshot = two_hosts(&numbers);
    let input = Input { snapshot: &snapshot, names: &numbers, id: ID };
    match input.label_columns(table, rows, columns) {
        Ok(rows) => Ok(rows),
        Err(Error::Malformed(malformed)) => Err(malformed),
    }
}

fn requests(edit: impl FnOnce(&mut Columns, &mut wire::L7FlowLog)) -> String {
    let mut rows = wire::L7FlowLog::default();
    let mut columns = Columns {
        strings: vec![String::new(), "a".into()],
        addresses: vec![vec![10, 0, 0, 1]],
        ..Default::default()
    };
    edit(&mut columns, &mut rows);
    columns.rows = Some(WireRows::L7FlowLog(rows));
    label(Table::L7FlowLog, 2, columns).unwrap_err().to_string()
}

#[test]
fn every_defect_is_named() {
    let cases = [
        (requests(|_, rows| rows.flow_id = vec![1]), "column flow_id has 1 cells, the batch has 2 rows"),
        (requests(|_, rows| rows.version = vec![0; 3]), "column version has 3 cells, the batch has 2 rows"),
        (
            requests(|_, rows| rows.endpoint = vec![0, 2]),
            "column endpoint holds 2, which is out of its range",
        ),
        (
            requests(|_, rows| rows.trace_id = vec![9, 0]),
            "column trace_id holds 9, which is out of its range",
        ),
        (
            requests(|_, rows| rows.l7_protocol = vec![0, 256]),
            "column l7_protocol holds 256, which is out of its range",
        ),
        (
            requests(|_, rows| rows.client_port = vec![65_536, 0]),
            "column client_port holds 65536, which is out of its range",
        ),
        (
            requests(|_, rows| rows.end_time = vec![u64::MAX, 0]),
            "column end_time holds 18446744073709551615, which is out of its range",
        ),
        (
            requests(|_, rows| {
                rows.endpoints = Some(wire::Endpoints { server_ip: vec![0, 1], ..Default::default() })
            }),
            "column server_ip holds 1, which is out of its range",
        ),
        (
            requests(|columns, _| columns.strings = vec!["x".into()]),
            "the first string of the batch is not empty",
        ),
        (requests(|columns, _| columns.addresses = vec![vec![1; 5]]), "an address of the batch has 5 bytes"),
        (
            requests(|columns, rows| {
                columns.strings[1] = "x".repeat(40 << 20);
                rows.trace_id = vec![1; 2];
            }),
            "with column trace_id the texts of the rows exceed the limit of 4194304 bytes for such a batch",
        ),
    ];
    for (actual, expected) in cases {
        assert_eq!(actual, expected);
    }
}

#[test]
fn columns_of_another_table_are_refused() {
    let columns = Columns { rows: Some(WireRows::Network(wire::Network::default())), ..Default::default() };
    assert_eq!(label(Table::L7FlowLog, 0, columns.clone()).unwrap_err(), Malformed::Table("L7_FLOW_LOG"));
    assert_eq!(label(Table::Unspecified, 0, columns).unwrap_err(), Malformed::Table("TABLE_UNSPECIFIED"));
}

#[test]
fn an_agent_id_that_no_node_gave_is_refused() {
    let numbers = Numbers::default();
    let input =
        Input { snapshot: &Snapshot::default(), names: &numbers, id: BatchId { agent_id: 0, seq: 1 } };
    let columns = Columns { rows: Some(WireRows::Network(wire::Network::default())), ..Default::default() };
    let error = input.label_columns(Table::Network1s, 0, columns).unwrap_err();
    assert_eq!(error.to_string(), "no node gave the agent id 0");
}

/// A column that is mostly sound: absent or of the right length, with small values; sometimes neither.
fn column() -> impl Strategy<Value = Vec<u32>> {
    let cell = prop_oneof![8 => 0..3_u32, 1 => any::<u32>()];
    prop_oneof![
        3 => Just(vec![]),
        8 => prop::collection::vec(cell.clone(), 3),
        1 => prop::collection::vec(cell, 0..6),
    ]
}

prop_compose! {
    fn endpoints()(columns in prop::collection::vec(column(), 8)) -> wire::Endpoints {
        let mut columns = columns.into_iter();
        let mut next = || columns.next().unwrap_or_default();
        wire::Endpoints {
            client_ip: next(),
            server_ip: next(),
            server_port: next(),
            client_pid: next(),
            server_pid: next(),
            ip_protocol: next(),
            observation_point: next(),
            interface_index: next(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn any_columns_are_rows_or_an_error(
        endpoints in prop::option::of(endpoints()),
        columns in prop::collection::vec(column(), 8),
        strings in prop::collection::vec("[a-c]{0,2}", 0..4),
        addresses in prop::collection::vec(prop::collection::vec(any::<u8>(), 4..5), 0..4),
        table in 0..14_i32,
    ) {
        let table = Table::try_from(table).unwrap();
        let mut columns = columns.into_iter();
        let mut next = || columns.next().unwrap_or_default();
        let wide = |column: Vec<u32>| column.into_iter().map(|cell| u64::from(cell) << 29).collect::<Vec<u64>>();
        let rows = match table {
            Table::L4FlowLog => WireRows::L4FlowLog(wire::L4FlowLog {
                endpoints, client_port: next(), start_time: wide(next()), close_type: next(), vlan: next(),
                tcp_flags_rx: next(), byte_tx: wide(next()), l7_rrt_max: next(), ..Default::default()
            }),
            Table::L7FlowLog => WireRows::L7FlowLog(wire::L7FlowLog {
                endpoints, client_port: next(), end_time: wide(next()), endpoint: next(), trace_id: next(),
                user_agent: next(), request_resource: next(), syscall_thread_1: next(), ..Default::default()
            }),
            Table::Application1s | Table::ApplicationMap1m => WireRows::Application(wire::Application {
                endpoints, time: next(), l7_protocol: next(), endpoint: next(), request: next(),
                rrt_sum: wide(next()), request_domain: next(), ..Default::default()
            }),
            Table::InProcess => WireRows::InProcess(wire::InProcess {
                pid: next(), end_time: wide(next()), app_service: next(), profile_location_str: next(),
                profile_value: wide(next()), ..Default::default()
            }),
            Table::FileEvent => WireRows::FileEvent(wire::FileEvent {
                pid: next(), end_time: wide(next()), file_dir: next(), duration: wide(next()), ..Default::default()
            }),
            Table::ProcessEvent => WireRows::ProcessEvent(wire::ProcessEvent {
                pid: next(), time: wide(next()), signal: next(), executable: next(), ..Default::default()
            }),
            _ => WireRows::Network(wire::Network {
                endpoints, time: next(), packet_tx: wide(next()), l7_protocol: next(),
                performance: Some(wire::NetworkPerformance { cit_max: next(), ..Default::default() }),
                ..Default::default()
            }),
        };
        let columns = Columns { strings, addresses, rows: Some(rows) };
        if let Ok(rows) = label(table, 3, columns) {
            let encoded = match &rows {
                Rows::L4FlowLog(block) => encode_native(block.as_ref(), 3),
                Rows::L7FlowLog(block) => encode_native(block.as_ref(), 3),
                Rows::Network(_, block) => encode_native(block.as_ref(), 3),
                Rows::NetworkMap(_, block) => encode_native(block.as_ref(), 3),
                Rows::Application(_, block) => encode_native(block.as_ref(), 3),
                Rows::ApplicationMap(_, block) => encode_native(block.as_ref(), 3),
                Rows::InProcess(block) => encode_native(block.as_ref(), 3),
                Rows::FileEvent(block) => encode_native(block.as_ref(), 3),
                Rows::ProcessEvent(block) => encode_native(block.as_ref(), 3),
            };
            prop_assert!(encoded.is_ok());
        }
    }
}
