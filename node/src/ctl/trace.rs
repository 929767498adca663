//! `metaflow ctl trace`: a trace as a tree, with what each span took and why it stands where it does.

use std::time::Duration;

use axum::http::Method;
use clap::Args;
use serde_json::{Value, json};

use super::{
    Client, Failure,
    arguments::Output,
    output::{Format, csv_line, document, text},
    print, table,
};
use crate::clock;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A trace id, or a row's id as the tree shows it with -o wide.
    id: String,
    /// How long ago the trace ended at most.
    #[arg(long, default_value = "1h", value_name = "DURATION", value_parser = humantime::parse_duration)]
    since: Duration,
    #[command(flatten)]
    output: Output,
}

const HEADER: [&str; 9] = ["at", "took", "own", "gap", "span", "seen", "by", "link", "answer"];

pub(super) async fn run(client: &Client, arguments: Arguments) -> Result<(), Failure> {
    let Arguments { id, since, output: Output { format } } = arguments;
    let now = u64::from(clock::seconds());
    let asked = json!({
        "_id": id,
        "time_start": now.saturating_sub(since.as_secs()),
        "time_end": now + 1,
    });
    let answer: Value = client.send(Method::POST, "/v1/stats/querier/L7FlowTracing", Some(&asked)).await?;
    let data = &answer["DATA"];
    let spans = data["tracing"].as_array().map_or(&[][..], Vec::as_slice);
    if spans.is_empty() {
        let since = humantime::format_duration(since);
        return Err(Failure::Degraded(format!(
            "no trace {id} ended within {since}; --since looks further back"
        )));
    }
    match format {
        Format::Json | Format::Yaml => print(&document(data, format)?),
        Format::Csv => {
            let rows =
                spans.iter().flat_map(|span| csv_line(cells(span, spans, false).into_iter()).into_bytes());
            let body: Vec<u8> = rows.collect();
            let header = csv_line(HEADER.iter().map(ToString::to_string));
            print(&format!("{header}{}", String::from_utf8_lossy(&body)))
        }
        Format::Table => print(&tree(data, spans, false)),
        Format::Wide => print(&tree(data, spans, true)),
    }
}

fn tree(data: &Value, spans: &[Value], wide: bool) -> String {
    let mut header: Vec<&str> = HEADER.to_vec();
    if wide {
        header.push("row");
    }
    let rows: Vec<Vec<String>> = spans.iter().map(|span| cells(span, spans, wide)).collect();
    let first = number(&spans[0], "start_time_us");
    let last = spans.iter().map(|span| number(span, "end_time_us")).max().unwrap_or(first);
    let cut = if data["cut"] == true { "; there may be more" } else { "" };
    format!(
        "{}\n{} spans in {}, {} rounds of look-ups{cut}\n",
        table::aligned(&header, &rows),
        spans.len(),
        time(last.saturating_sub(first)),
        data["rounds"],
    )
}

fn cells(span: &Value, spans: &[Value], wide: bool) -> Vec<String> {
    let level = number(span, "level") as usize;
    let [protocol, kind, resource] =
        ["l7_protocol", "request_type", "request_resource"].map(|field| text(&span[field]));
    // Statements and commands begin with their type.
    let kind = if resource.starts_with(&kind) { String::new() } else { kind };
    let name =
        [protocol, kind, resource].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ");
    let name: String = name.chars().take(80).collect();
    let status = ["normal", "", "timeout", "server error", "client error", "unknown"];
    let status = status.get(number(span, "response_status") as usize).copied().unwrap_or_default();
    let code = number(span, "response_code");
    let mut cells = vec![
        time(number(span, "start_time_us").saturating_sub(number(&spans[0], "start_time_us"))),
        time(number(span, "duration")),
        time(number(span, "selftime")),
        time(number(span, "gap")),
        format!("{}{name}", "  ".repeat(level)),
        text(&span["tap_side"]),
        text(&span["service_uname"]),
        text(&span["reason"]),
        if code == 0 { status.to_owned() } else { format!("{status} {code}") },
    ];
    if wide {
        cells.push(text(&span["_id"]));
    }
    cells
}

fn number(span: &Value, field: &str) -> u64 {
    span[field].as_u64().unwrap_or(0)
}

/// Microseconds, in what is read best.
fn time(us: u64) -> String {
    match us {
        0..1_000 => format!("{us}us"),
        1_000..1_000_000 => format!("{}.{:02}ms", us / 1_000, us % 1_000 / 10),
        _ => format!("{}.{:03}s", us / 1_000_000, us % 1_000_000 / 1_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_shows_what_took_how_long_and_why_it_is_there() {
        let span = |level: u64, name: &str, start: u64, took: u64, reason: Value| {
            json!({
                "level": level, "l7_protocol": "HTTP", "request_type": "GET", "request_resource": name,
                "start_time_us": start, "end_time_us": start + took, "duration": took, "selftime": 7, "gap": 1_500,
                "tap_side": "s", "service_uname": "shop", "reason": reason, "response_status": 3, "response_code": 500,
            })
        };
        let spans = [
            span(0, "/a", 5_000_000, 2_000_000, Value::Null),
            span(1, "GET b", 5_000_999, 1_000, "syscall".into()),
        ];
        let expected = "\
at     took    own  gap     span             seen  by    link     answer
0us    2.000s  7us  1.50ms  HTTP GET /a      s     shop           server error 500
999us  1.00ms  7us  1.50ms    HTTP GET b     s     shop  syscall  server error 500

2 spans in 2.000s, 3 rounds of look-ups
";
        let shown = tree(&json!({ "rounds": 3, "cut": false }), &spans, false);
        assert_eq!(
            shown.split_whitespace().collect::<Vec<_>>(),
            expected.split_whitespace().collect::<Vec<_>>()
        );
        assert!(shown.contains("    HTTP GET b"), "{shown}");
    }
}
