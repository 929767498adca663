//! Captures made by others, replayed through conversations, against the results that their own parser published.
//!
//! The captures are found through `METAFLOW_CORPUS` (default `../shared/corpus` beside the workspace). Redaction is off: the published
//! results are not redacted. Where a field differs on purpose the reason stands next to it.

#[path = "corpus_protocols/replay.rs"]
mod replay;

#[path = "corpus_protocols/properties.rs"]
mod properties;

use metaflow_agent::session::{Config, Session};
use metaflow_schema::enums::{L7Protocol, L7Type, ResponseStatus};
use replay::{debug_field, expected_lines, replay};
use serde_json::Value;

fn plain() -> Config {
    Config { redact: false, ..Config::default() }
}

/// Requests, responses, client errors, server errors, and number, sum and maximum of the response times.
#[test]
fn counts_and_response_times_are_those_of_the_oracle() {
    #[track_caller]
    fn check(capture: &str, expected: [u64; 7]) {
        let sessions = replay(capture, plain());
        let count =
            |accept: fn(&Session) -> bool| sessions.iter().filter(|session| accept(session)).count() as u64;
        let times: Vec<u64> = sessions.iter().filter_map(|session| session.response_duration).collect();
        let found = [
            count(|session| session.l7_type != L7Type::Response),
            count(|session| session.l7_type != L7Type::Request),
            count(|session| session.status == ResponseStatus::ClientError),
            count(|session| session.status == ResponseStatus::ServerError),
            times.len() as u64,
            times.iter().sum(),
            times.iter().copied().max().unwrap_or(0),
        ];
        assert_eq!(found, expected, "{capture}");
    }
    check("dns/dns.pcap", [2, 2, 1, 0, 2, 181_558, 176_754]);
    check("http/httpv1.pcap", [1, 1, 0, 0, 1, 84_051, 84_051]);
    check("http/h2c_ascii.pcap", [1, 1, 0, 0, 1, 2_023, 2_023]);
    check("http/grpc-server-stream.pcap", [2, 5, 0, 0, 1, 2_506_326, 2_506_326]);
    check("mysql/171-mysql.pcap", [390, 390, 0, 0, 390, 127_090, 5_355]);
    check("redis/redis.pcap", [10, 10, 0, 0, 10, 592, 96]);
    check("redis/redis-debug.pcap", [1, 1, 0, 0, 1, 1_209, 1_209]);
    check("postgre/prepare_stat.pcap", [1, 1, 0, 0, 1, 477, 477]);
    check("postgre/error.pcap", [1, 1, 1, 0, 1, 103, 103]);
}

/// The call of each capture. Theirs prints a line for each packet, with the fields of whatever frames are in it.
#[test]
fn http2_results() {
    for (name, answer) in [("h2c_ascii", 1), ("grpc-unary", 1), ("grpc-server-stream", 7)] {
        let name = format!("http/{name}");
        let lines = expected_lines(&name);
        let sessions = replay(&format!("{name}.pcap"), plain());
        let call = sessions.iter().find(|session| session.response_duration.is_some()).expect("a call");
        let asked = |field: &str| debug_field(&lines[0], field);
        assert_eq!((call.protocol, call.version), (L7Protocol::Grpc, "2"), "{name}");
        assert_eq!(call.request_resource, asked("path"));
        assert_eq!(call.endpoint, asked("endpoint"));
        assert_eq!(call.request_domain, asked("host"));
        assert_eq!(call.request_id.to_string(), asked("stream_id"));
        assert_eq!(asked("path").rsplit('/').next(), Some(&*call.request_type));
        let answered = |field: &str| debug_field(&lines[answer], field);
        assert_eq!((answered("status"), call.status), ("Ok".to_owned(), ResponseStatus::Normal));
        assert!(["0", ""].contains(&&*answered("grpc_status_code")));
        assert_eq!(call.response_code, 0);
        // Where two packets make the request theirs counts each of them.
        assert!(
            u64::from(call.captured_request_byte)
                >= asked("captured_request_byte").parse::<u64>().expect("a number") - 30
        );
    }
}

/// HTTP/2 is another protocol.
#[test]
fn http2_is_not_taken_for_http1() {
    for capture in ["http/h2c_ascii.pcap", "http/grpc-unary.pcap", "http/grpc-server-stream.pcap"] {
        let sessions = replay(capture, plain());
        assert!(sessions.iter().all(|session| session.protocol != L7Protocol::Http1), "{capture}");
    }
}

#[test]
fn http1_results() {
    for name in ["http/httpv1", "http/client-ip", "http/istio-tcp-frag"] {
        let lines = expected_lines(name);
        let sessions = replay(&format!("{name}.pcap"), plain());
        assert_eq!(sessions.len() * 2, lines.len(), "{name}");
        for (session, pair) in sessions.iter().zip(lines.chunks(2)) {
            check_http(session, &pair[0], &pair[1]);
        }
    }
}

#[track_caller]
fn check_http(session: &Session, request: &str, response: &str) {
    let asked = |name: &str| debug_field(request, name);
    assert_eq!(session.request_type, asked("method").to_uppercase());
    assert_eq!(session.request_resource, asked("path"));
    assert_eq!(session.request_domain, asked("host"));
    assert_eq!(session.version, asked("version").trim_start_matches('V').replace('_', "."));
    // Theirs keeps two segments of a path; ours all of them, with what looks like an id replaced.
    let path = asked("path").split('?').next().unwrap_or_default().to_owned();
    assert_eq!(session.endpoint, path);
    assert!(path.starts_with(&asked("endpoint")));
    // Theirs shows the whole list of addresses; ours the first, which is the client.
    assert_eq!(session.http_proxy_client, asked("client_ip").split(',').next().unwrap_or_default());
    // Theirs prints trace ids of SkyWalking alone, and neither user agents nor X-Request-IDs: switched off where the results were made.
    let theirs = asked("trace_ids");
    let other = ["744a02a3033b7d5960cd96456ba069a0", ""].contains(&session.trace_id.as_str());
    assert!(
        if theirs.is_empty() { other } else { session.trace_id == theirs },
        "{} {theirs}",
        session.trace_id
    );
    if !asked("span_id").is_empty() {
        assert_eq!(session.span_id, asked("span_id"));
    }
    assert_eq!(session.captured_request_byte.to_string(), asked("captured_request_byte"));

    let answered = |name: &str| debug_field(response, name);
    assert_eq!(session.l7_type, L7Type::Session);
    assert_eq!(session.response_code.to_string(), answered("status_code"));
    assert_eq!(answered("status"), "Ok");
    assert_eq!(session.status, ResponseStatus::Normal);
    assert_eq!(session.captured_response_byte.to_string(), answered("captured_response_byte"));
}

/// What theirs leaves out, read from the captures.
#[test]
fn http1_headers() {
    let session = &replay("http/client-ip.pcap", plain())[0];
    assert_eq!(session.user_agent, "ALIYUN-ANDROID-DEMO");
    assert_eq!(session.x_request_id_request, "b3ce82fc-3b95-971d-9e88-206ddc1bb0e6");
    let session = &replay("http/istio-tcp-frag.pcap", plain())[0];
    assert_eq!(session.user_agent, "curl/7.81.0-DEV");
    assert_eq!(session.x_request_id_request, "46364834-4fb8-9692-a5d6-ab638447a787");
    assert_eq!(session.trace_id, "744a02a3033b7d5960cd96456ba069a0");
    assert_eq!((&*session.span_id, &*session.parent_span_id), ("03df9f227df14072", "60cd96456ba069a0"));
}

#[test]
fn dns_results() {
    // The results were made with search domains of Kubernetes as names that need not exist.
    let config = Config { expected_nxdomain_suffixes: vec![".svc.cluster.local".to_owned()], ..plain() };
    for name in ["dns/a-and-ns", "dns/dns", "dns/nxdomain"] {
        let lines: Vec<Value> = expected_lines(name).iter().map(|line| replay::json(line)).collect();
        let sessions = replay(&format!("{name}.pcap"), config.clone());
        assert_eq!(sessions.len() * 2, lines.len(), "{name}");
        for (session, pair) in sessions.iter().zip(lines.chunks(2)) {
            let (request, response) = (&pair[0], &pair[1]);
            assert_eq!(request["opcode"], "StandardQuery");
            assert_eq!(session.request_id, request["request_id"]);
            assert_eq!(session.request_type, request["request_type"]);
            assert_eq!(session.request_resource, request["request_resource"]);
            assert_eq!(session.request_domain, request["request_resource"]);
            assert_eq!(session.captured_request_byte, request["captured_request_byte"]);
            assert_eq!(session.response_result, response["response_result"].as_str().unwrap_or_default());
            assert_eq!(replay::status(session.status), response["response_status"]);
            assert_eq!(session.response_code, response["response_code"]);
            assert_eq!(session.captured_response_byte, response["captured_response_byte"]);
            assert_eq!(session.response_duration, response["rrt"].as_u64());
        }
    }
}

#[test]
fn redis_results() {
    for name in ["redis/redis", "redis/redis-debug"] {
        let sessions = replay(&format!("{name}.pcap"), plain());
        // Payloads in the middle of a long reply have a line of their own, which says nothing.
        let lines: Vec<String> =
            expected_lines(name).into_iter().filter(|line| line.ends_with("is_redis: true")).collect();
        assert_eq!(sessions.len() * 2, lines.len(), "{name}");
        for (session, pair) in sessions.iter().zip(lines.chunks(2)) {
            assert_eq!(session.request_resource, debug_field(&pair[0], "request"));
            assert_eq!(session.request_type, debug_field(&pair[0], "request_type"));
            assert_eq!(session.endpoint, session.request_type);
            assert_eq!(session.response_result, debug_field(&pair[1], "response_result"));
            assert_eq!(session.response_exception, debug_field(&pair[1], "error"));
            assert_eq!(session.status, ResponseStatus::Normal);
        }
    }
}

/// What the two captures say; no results were published for them.
#[test]
fn postgresql_fields() {
    let session = &replay("postgre/prepare_stat.pcap", plain())[0];
    assert_eq!(session.request_resource, "delete from test where id=$1 returning id");
    assert_eq!((&*session.endpoint, &*session.response_result), ("DELETE test", "DELETE 0"));
    let session = &replay("postgre/error.pcap", plain())[0];
    assert_eq!((session.response_code, &*session.request_resource), (42_601, "asdsdfdsf;"));
    assert_eq!(session.response_exception, "42601: syntax error at or near \"asdsdfdsf\"");
}

#[test]
fn mysql_results() {
    for name in [
        "large-response",
        "mysql-database",
        "mysql-exec",
        "mysql-statement-id",
        "mysql-table-alter",
        "mysql-table-delete",
        "mysql-table-destroy",
        "mysql-table-select",
        "mysql-use",
        "partial-packet-compressed",
    ] {
        let name = format!("mysql/{name}");
        let lines: Vec<Value> = expected_lines(&name).iter().map(|line| replay::json(line)).collect();
        let sessions = replay(&format!("{name}.pcap"), plain());
        let mut left = sessions.iter();
        let mut current: Option<&Session> = None;
        for line in &lines {
            match line["msg_type"].as_str() {
                // A greeting is no request and no response.
                Some("Other") => {}
                Some("Request" | "Session") => {
                    let session = left.next().unwrap_or_else(|| panic!("{name}: no session for {line}"));
                    check_mysql_request(session, line);
                    current = Some(session);
                }
                Some("Response") => check_mysql_response(current.expect("a request before it"), line),
                other => panic!("{name}: {other:?}"),
            }
        }
        assert_eq!(left.next(), None, "{name}");
    }
}

#[track_caller]
fn check_mysql_request(session: &Session, line: &Value) {
    let request_type = match line["request_type"].as_u64() {
        Some(0) => "LOGIN",
        Some(1) => "COM_QUIT",
        Some(3) => "COM_QUERY",
        Some(22) => "COM_STMT_PREPARE",
        Some(23) => "COM_STMT_EXECUTE",
        other => panic!("{other:?}"),
    };
    assert_eq!(session.request_type, request_type);
    let resource = line["request_resource"].as_str().unwrap_or_default();
    assert_eq!(session.request_resource, resource);
    // Theirs forgets the statement that an execution refers to.
    if request_type == "COM_STMT_EXECUTE" {
        assert_eq!(session.endpoint, "INSERT controller");
        assert_eq!(session.request_id, line["statement_id"]);
    } else {
        assert_eq!(session.endpoint, line["endpoint"].as_str().unwrap_or_default());
    }
    assert_eq!(session.captured_request_byte, line["captured_request_byte"]);
    if line["msg_type"] == "Session" {
        // Ours calls a request that has no response a request.
        assert_eq!((session.l7_type, session.status), (L7Type::Request, ResponseStatus::Normal));
    }
}

#[track_caller]
fn check_mysql_response(session: &Session, line: &Value) {
    assert_eq!(session.l7_type, L7Type::Session);
    assert_eq!(replay::status(session.status), line["response_status"]);
    // Theirs shows the marker byte of the last packet (0 or 254); ours the error's number, 0 without one.
    assert_eq!(session.response_code, 0);
    if let Some(affected) = line["sql_affected_rows"].as_u64() {
        assert_eq!(session.response_result, format!("affected rows: {affected}"));
    }
    // Theirs reads a statement's number from every OK; ours from the reply to a preparation.
    if session.request_type == "COM_STMT_PREPARE" {
        assert_eq!(session.request_id, line["statement_id"]);
    }
    // Theirs looks at 1,024 bytes of a payload at most, and prints a line for each payload of a long reply.
    let theirs = line["captured_response_byte"].as_u64().unwrap_or_default();
    assert!(
        u64::from(session.captured_response_byte) >= theirs,
        "{} < {theirs}",
        session.captured_response_byte
    );
}
