//! Tests of the table of services: what is joined, what counts once, how it is shown.

use serde_json::json;

use super::*;

fn answer(values: Value) -> Answer {
    Answer { values: serde_json::from_value(values).unwrap(), ..Answer::default() }
}

fn sample() -> BTreeMap<Key, Service> {
    let rates = answer(json!([
        ["nginx", "HTTP", "c", 70, 7],
        ["nginx", "HTTP", "s", 60, 3],
        ["nginx", "HTTP", "local", 60, 3],
        ["redis", "Redis", "c", 30, 0],
        ["10.0.0.1", "DNS", "c", 6, 0],
        ["idle", "HTTP", "s", 0, 0],
    ]));
    let delays = answer(json!([
        ["nginx", "HTTP", "s", 250.0, 1500.4],
        ["nginx", "HTTP", "local", 200.0, 2500.0],
        ["nginx", "HTTP", "c", 9e9, 9e9],
        ["redis", "Redis", "c", null, 2_000_000],
        ["unseen", "HTTP", "s", 1, 1],
    ]));
    let callers = answer(json!([
        ["nginx", "HTTP", "local", "curl", 5],
        ["nginx", "HTTP", "s", "curl", 5],
        ["nginx", "HTTP", "s", "a", 5],
        ["nginx", "HTTP", "s", "b", 5],
        ["nginx", "HTTP", "s", "e", 5],
        ["redis", "Redis", "c", "", 5],
        ["redis", "Redis"],
    ]));
    join(&rates, &delays, &callers)
}

#[test]
fn a_request_seen_at_both_ends_counts_once() {
    let services = sample();
    let nginx = &services[&("nginx".to_owned(), "HTTP".to_owned())];
    assert_eq!((nginx.requests, nginx.errors), (120.0, 6.0));
    assert_eq!((nginx.p50, nginx.p95), (Some(250.0), Some(2500.0)));
    assert_eq!(nginx.callers.len(), 4);
}

#[test]
fn the_table_is_sorted_by_requests_and_leaves_out_the_idle() {
    let expected = "\
SERVICE   PROTOCOL  REQ/S  ERRORS    P50    P95    CALLERS
nginx     HTTP      2.0    5.0% (6)  250us  2.5ms  a, b, curl, +1
redis     Redis     0.5    0         -      2.00s  -
10.0.0.1  DNS       0.1    0         -      -      -
";
    assert_eq!(render(&sample(), 60, false), expected);
}

#[test]
fn an_empty_table_says_so_and_addresses_are_no_names() {
    assert!(render(&BTreeMap::new(), 60, true).contains("(no requests yet)"));
    for (name, expected) in [("nginx", true), ("", false), ("::1", false), ("10.1.2.3", false)] {
        assert_eq!(is_named(name), expected, "{name}");
    }
}

#[test]
fn the_statements_are_of_the_dialect() {
    for sql in statements(60) {
        let request = metaflow_query::Request { database: None, now_seconds: 1_700_000_000, shards: None };
        metaflow_query::compile(&sql, &request).unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
}
