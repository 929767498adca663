//! Many traces at the same time through the same processes: links may be missing where nothing tells, and none may be false.

use proptest::prelude::*;

use super::*;

/// Traces that run within the same two seconds.
const TRACES: u64 = 10_000;

fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A user asks a gateway, the gateway a shop, and the shop a cache and a database. Every process serves all traces; the shop's host has a
/// clock of its own. `headers`: with trace ids instead of ids of system calls.
fn rows_of(trace: u64, seed: u64, headers: bool) -> Vec<Row> {
    let draw = |salt: u64, among: u64| mix(seed ^ (trace << 8) ^ salt) % among;
    let mut rows = Vec::new();
    let start = 10_000_000 + draw(0, 2_000_000);
    let ahead = [0, 0, 300_000, 0];
    let mut seen =
        |name: &str, at: At, agent: usize, time: (u64, u64), ends: (&str, &str), pids, calls: (u64, u64)| {
            let salt = name.bytes().map(u64::from).sum::<u64>() << 32;
            let (request, response) =
                (draw(salt | 1, 1 << 32) as u32 | 1, draw(salt | 2, 1 << 32) as u32 | 1);
            rows.push(Row {
                request_resource: format!("{trace} {name}"),
                observation_point: at as u8,
                agent_id: agent as u32,
                flow_id: draw(salt | 3, 64),
                start_time: start + time.0 + ahead[agent],
                end_time: start + time.1 + ahead[agent],
                req_tcp_seq: request,
                resp_tcp_seq: response,
                client_port: 1_024 + draw(salt | 4, 60_000) as u16,
                ip_0: ends.0.to_owned(),
                ip_1: ends.1.to_owned(),
                pid_0: pids,
                pid_1: pids,
                l7_type: L7Type::Session as u8,
                syscall_trace_id_request: if headers { 0 } else { calls.0 },
                syscall_trace_id_response: if headers { 0 } else { calls.1 },
                trace_id: if headers { format!("trace-{trace}") } else { String::new() },
                ..Row::default()
            });
        };
    let own = |nth: u64| trace * 8 + nth + 1;
    let (user, gateway, shop) = (("user", "gw"), ("gw", "shop"), ("shop", "data"));
    seen("get", At::Server, 1, (0, 90_000), user, 0, (0, 0));
    seen("get", At::ServerProcess, 1, (100, 89_900), user, 10, (own(0), own(1)));
    seen("buy", At::ClientProcess, 1, (1_000, 80_000), gateway, 10, (own(0), own(1)));
    seen("buy", At::Client, 1, (1_100, 79_900), gateway, 0, (0, 0));
    seen("buy", At::Server, 2, (1_300, 79_700), gateway, 0, (0, 0));
    seen("buy", At::ServerProcess, 2, (1_400, 79_600), gateway, 20, (own(2), own(4)));
    seen("cache", At::ClientProcess, 2, (2_000, 20_000), shop, 20, (own(2), own(3)));
    seen("cache", At::Client, 2, (2_100, 19_900), shop, 0, (0, 0));
    seen("db", At::ClientProcess, 2, (21_000, 60_000), shop, 20, (own(3), own(4)));
    seen("db", At::Server, 3, (21_500, 59_500), shop, 0, (0, 0));
    rows
}

fn parent_of(name: &str) -> Option<&'static str> {
    match name {
        "buy" => Some("get"),
        "cache" | "db" => Some("buy"),
        _ => None,
    }
}

/// Links between requests that are missing; a false one fails.
fn missing(seed: u64, headers: bool) -> Result<usize, TestCaseError> {
    let spans = assemble((0..TRACES).flat_map(|trace| rows_of(trace, seed, headers)).collect());
    prop_assert_eq!(spans.len(), TRACES as usize * 10);
    let mut missing = 0;
    for span in &spans {
        let (trace, name) = span.row.request_resource.split_once(' ').unwrap_or_default();
        let Some((above, reason)) = span.parent else {
            missing += usize::from(parent_of(name).is_some());
            continue;
        };
        let (other, parent) = spans[above].row.request_resource.split_once(' ').unwrap_or_default();
        prop_assert_eq!(trace, other, "{:?} {:?}", span, &spans[above]);
        let expected = if reason == Reason::TcpSequence { Some(name) } else { parent_of(name) };
        prop_assert_eq!(Some(parent), expected, "{:?}", span);
    }
    Ok(missing)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn ten_thousand_traces_at_a_time_have_no_false_link(seed in any::<u64>()) {
        prop_assert_eq!(missing(seed, false)?, 0);
        prop_assert_eq!(missing(seed, true)?, 0);
    }
}
