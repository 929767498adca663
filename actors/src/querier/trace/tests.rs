//! Assembly by small cases, and against the truth of many traces at a time.

mod crowd;

use metaflow_schema::enums::{L7Type, ObservationPoint as At, SignalSource, SyscallTraceSource};

use super::*;

/// A request of `name`, seen at a point by an agent; times in milliseconds.
fn row(name: &str, at: At, agent: u32, (start, end): (u64, u64), seq: (u32, u32)) -> Row {
    Row {
        request_resource: name.into(),
        observation_point: at as u8,
        agent_id: agent,
        start_time: start * 1_000,
        end_time: end * 1_000,
        req_tcp_seq: seq.0,
        resp_tcp_seq: seq.1,
        l7_type: L7Type::Session as u8,
        ..Row::default()
    }
}

fn ends(row: Row, client: &str, server: &str) -> Row {
    Row { ip_0: client.into(), ip_1: server.into(), ..row }
}

fn traced(row: Row, trace: &str, span: &str, parent: &str) -> Row {
    Row { trace_id: trace.into(), span_id: span.into(), parent_span_id: parent.into(), ..row }
}

fn syscalls(row: Row, request: u64, response: u64) -> Row {
    Row { syscall_trace_id_request: request, syscall_trace_id_response: response, ..row }
}

/// Spans as lines: levels, name, point, reason.
#[track_caller]
fn check(rows: &[Row], expected: &[&str]) -> Vec<Span> {
    let spans = assemble(rows.to_vec());
    let line = |span: &Span| {
        let reason = span.parent.map_or(String::new(), |(_, reason)| format!(" {}", reason.name()));
        let Row { request_resource, .. } = &span.row;
        format!("{}{request_resource} {}{reason}", "  ".repeat(span.depth), span.row.observed_at())
    };
    assert_eq!(spans.iter().map(line).collect::<Vec<_>>(), expected);
    // The order of rows says nothing.
    let mut turned = rows.to_vec();
    turned.reverse();
    assert_eq!(assemble(turned), spans);
    spans
}

#[test]
fn a_request_is_ordered_from_its_client_to_its_server() {
    check(
        &[
            row("a", At::ServerProcess, 2, (13, 17), (7, 9)),
            row("a", At::Client, 1, (11, 19), (7, 9)),
            row("a", At::Rest, 3, (12, 18), (7, 9)),
            row("a", At::ClientProcess, 1, (10, 20), (7, 9)),
            row("a", At::Server, 2, (12, 18), (7, 9)),
            // Another request on the same connection.
            row("b", At::Client, 1, (30, 31), (8, 10)),
        ],
        &[
            "a c-p",
            "  a c tcp_seq",
            "    a rest tcp_seq",
            "      a s tcp_seq",
            "        a s-p tcp_seq",
            "b c",
        ],
    );
}

#[test]
fn a_row_without_a_response_belongs_to_its_connection_only() {
    let of = |name: &str, at, seq, port| Row {
        client_port: port,
        ..ends(row(name, at, 1, (1, 9), seq), "c", "s")
    };
    check(
        &[of("a", At::Client, (7, 9), 1), of("a", At::Server, (7, 0), 1), of("b", At::Client, (7, 0), 2)],
        &["b c", "a c", "  a s tcp_seq"],
    );
}

#[test]
fn ends_of_tls_that_share_one_number_are_one_request() {
    let of = |name: &str, at, time, seq, port| Row {
        client_port: port,
        ..ends(row(name, at, 1, time, seq), "c", "s")
    };
    let client = |seq| of("a", At::ClientProcess, (1, 9), seq, 1);
    let server = |seq| of("a", At::ServerProcess, (2, 8), seq, 1);
    check(&[client((7, 9)), server((6, 9))], &["a c-p", "  a s-p tcp_seq"]);
    check(&[client((7, 9)), server((7, 8))], &["a c-p", "  a s-p tcp_seq"]);
    check(&[client((7, 9)), server((6, 8))], &["a c-p", "a s-p"]);
    // On another connection, at another time, of another stream, or one of two.
    let other = of("b", At::ServerProcess, (2, 8), (6, 9), 2);
    check(&[client((7, 9)), other], &["a c-p", "b s-p"]);
    check(&[client((7, 9)), of("b", At::ServerProcess, (10, 12), (6, 9), 1)], &["a c-p", "b s-p"]);
    check(&[client((7, 9)), Row { request_id: 3, ..server((6, 9)) }], &["a c-p", "a s-p"]);
    let second = of("b", At::ServerProcess, (3, 8), (5, 9), 1);
    check(&[client((7, 9)), server((6, 9)), second], &["a c-p", "a s-p", "b s-p"]);
}

#[test]
fn system_calls_link_what_a_process_sends_to_what_it_serves() {
    let served = |name: &str, time, ids: (u64, u64), seq| {
        syscalls(row(name, At::ServerProcess, 2, time, (seq, seq)), ids.0, ids.1)
    };
    let sent = |name: &str, time, ids: (u64, u64), seq| {
        syscalls(row(name, At::ClientProcess, 2, time, (seq, seq)), ids.0, ids.1)
    };
    check(
        &[
            // The second call carries the id that the first one's response allocated.
            served("front", (10, 50), (1, 3), 1),
            sent("db", (12, 20), (1, 2), 2),
            sent("cache", (21, 30), (2, 3), 3),
            // The same ids on another host, and the same process at another time.
            Row { agent_id: 9, ..sent("elsewhere", (12, 20), (1, 2), 4) },
            sent("before", (5, 6), (1, 0), 5),
            served("other", (11, 60), (8, 8), 6),
        ],
        &["before c-p", "front s-p", "  db c-p syscall", "  cache c-p syscall", "other s-p", "elsewhere c-p"],
    );
    let of = |pid_1, pid_0| {
        [
            Row { pid_1, ..served("front", (10, 50), (1, 1), 1) },
            Row { pid_0, ..sent("db", (12, 20), (1, 1), 2) },
        ]
    };
    check(&of(77, 77), &["front s-p", "  db c-p syscall"]);
    check(&of(77, 78), &["front s-p", "db c-p"]);
}

#[test]
fn a_guess_is_named_as_one_and_gives_way_to_what_programs_say() {
    let guess = |row| Row { syscall_trace_source: SyscallTraceSource::EventLoop as u8, ..row };
    let served = |name: &str, time, id, seq| {
        guess(syscalls(ends(row(name, At::ServerProcess, 2, time, (seq, seq)), "u", "p"), id, id))
    };
    let sent = |name: &str, time, id, seq| {
        guess(syscalls(ends(row(name, At::ClientProcess, 2, time, (seq, seq)), "p", "d"), id, id))
    };
    let [one, two] = [served("one", (10, 50), 1, 1), served("two", (11, 51), 2, 2)];
    check(
        &[one.clone(), two.clone(), sent("asked", (12, 20), 2, 3)],
        &["one s-p", "two s-p", "  asked c-p event_loop"],
    );
    // It goes on when the request is answered.
    check(&[one.clone(), sent("asked", (12, 60), 1, 3)], &["one s-p", "asked c-p"]);
    // Came in together.
    check(
        &[one.clone(), served("two", (11, 51), 1, 2), sent("asked", (12, 20), 1, 3)],
        &["one s-p", "two s-p", "asked c-p"],
    );
    let [one, two] = [(one, "a"), (two, "b")].map(|(row, id)| Row { x_request_id_0: id.into(), ..row });
    let asked = Row { x_request_id_0: "a".into(), ..sent("asked", (12, 20), 2, 3) };
    check(&[one.clone(), two, asked], &["one s-p", "  asked c-p x_request_id", "two s-p"]);
    check(
        &[traced(one, "t", "", ""), traced(sent("asked", (12, 20), 1, 3), "other", "", "")],
        &["one s-p", "asked c-p"],
    );
}

#[test]
fn a_proxy_is_known_by_its_x_request_id() {
    let front =
        Row { x_request_id_1: "r".into(), ..ends(row("front", At::Server, 1, (10, 50), (1, 1)), "u", "p") };
    let back = |name: &str, time, ip: &str| Row {
        x_request_id_0: "r".into(),
        ..ends(row(name, At::Client, 1, time, (time.0 as u32, 2)), ip, "s")
    };
    check(
        &[front, back("back", (12, 40), "p"), back("late", (45, 55), "p"), back("alien", (13, 40), "q")],
        &["front s", "  back c x_request_id", "alien c", "late c"],
    );
}

#[test]
fn a_trace_id_links_neighbours_that_lie_within_each_other() {
    let of = |name: &str, at, time, seq, from: &str, to: &str| {
        traced(ends(row(name, at, 1, time, (seq, seq)), from, to), "t", "", "")
    };
    let front = of("front", At::Server, (10, 50), 1, "u", "a");
    let back = of("back", At::Client, (20, 40), 2, "a", "b");
    check(&[front.clone(), back.clone()], &["front s", "  back c trace_id"]);
    // Served beside each other: either could have sent it.
    let beside = of("beside", At::Server, (15, 60), 3, "u", "a");
    check(&[front.clone(), beside, back.clone()], &["front s", "beside s", "back c"]);
    // Another trace, another service.
    let other = Row { trace_id: "o".into(), ..front };
    check(&[other, back.clone()], &["front s", "back c"]);
    check(&[of("front", At::Server, (10, 50), 1, "u", "z"), back], &["front s", "back c"]);
}

#[test]
fn spans_of_programs_stand_between_what_the_network_saw() {
    let app = |name: &str, time, span: &str, parent: &str| Row {
        signal_source: SignalSource::Otel as u8,
        ..traced(row(name, At::Rest, 0, time, (0, 0)), "t", span, parent)
    };
    let seen =
        |name: &str, at, time, seq, span: &str| traced(row(name, at, 1, time, (seq, seq)), "t", span, "");
    check(
        &[
            app("client span", (9, 61), "c1", ""),
            seen("front", At::Client, (10, 60), 1, "c1"),
            seen("front", At::Server, (11, 59), 1, "c1"),
            app("server span", (12, 58), "s1", "c1"),
            app("work", (13, 57), "w1", "s1"),
            app("call", (20, 30), "c2", "w1"),
            seen("db", At::Client, (21, 29), 2, "c2"),
        ],
        &[
            "client span rest",
            "  front c span_id",
            "    front s tcp_seq",
            "      server span rest parent_span_id",
            "        work rest parent_span_id",
            "          call rest parent_span_id",
            "            db c span_id",
        ],
    );
}

#[test]
fn a_sender_may_name_its_parent() {
    let of = |name: &str, time, seq, span: &str, parent: &str| {
        traced(row(name, At::Server, 1, time, (seq, seq)), "t", span, parent)
    };
    check(
        &[of("a", (10, 50), 1, "aa", ""), of("b", (12, 40), 2, "bb", "aa"), of("c", (13, 20), 3, "cc", "zz")],
        &["a s", "  b s parent_span_id", "c s"],
    );
    // Two that name each other: one of the links is not made.
    let mut circle = [of("a", (10, 50), 1, "aa", "bb"), of("b", (10, 50), 2, "bb", "aa")];
    assert_eq!(assemble(circle.to_vec()).iter().filter(|span| span.parent.is_some()).count(), 1);
    circle.reverse();
    assert_eq!(assemble(circle.to_vec()).len(), 2);
}

#[test]
fn clocks_of_hosts_are_brought_together() {
    // The second host is 500 ms ahead, the third 500 ms behind that one.
    let spans = check(
        &[
            row("a", At::Client, 1, (1_000, 1_100), (1, 1)),
            row("a", At::Server, 2, (1_510, 1_590), (1, 1)),
            syscalls(row("a", At::ServerProcess, 2, (1_511, 1_589), (1, 1)), 5, 5),
            syscalls(row("b", At::ClientProcess, 2, (1_520, 1_580), (2, 2)), 5, 5),
            row("b", At::Server, 3, (1_030, 1_070), (2, 2)),
        ],
        &["a c", "  a s tcp_seq", "    a s-p tcp_seq", "      b c-p syscall", "        b s tcp_seq"],
    );
    let starts: Vec<_> = spans.iter().map(|span| span.start / 1_000).collect();
    assert_eq!(starts, [1_000, 1_010, 1_011, 1_020, 1_030]);
}

#[test]
fn only_trees_that_are_asked_for_are_kept() {
    let spans = assemble(vec![
        row("a", At::Client, 1, (10, 20), (1, 1)),
        row("b", At::Client, 1, (11, 20), (2, 2)),
        row("b", At::Server, 2, (12, 19), (2, 2)),
    ]);
    let kept = trees_with(spans, |row| row.request_resource == "b" && row.agent_id == 2);
    let places: Vec<_> = kept.iter().map(|span| span.parent.map(|(above, _)| above)).collect();
    assert_eq!(places, [None, Some(0)]);
}

#[test]
fn seeds_are_told_apart_and_nonsense_is_refused() {
    let id = row("a", At::Client, 1, (10, 20), (1, 2)).id();
    assert_eq!(Seed::parse(&format!(" {id} ")).unwrap(), Seed::Row(id));
    let trace = "0af7651916cd43dd8448eb211c80319c";
    assert_eq!(Seed::parse(trace).unwrap(), Seed::TraceId(trace.into()));
    for text in ["", "it's", "a\\b", "caf\u{e9}"] {
        assert!(matches!(Seed::parse(text), Err(Error::NoSeed(_))), "{text}");
    }
}
