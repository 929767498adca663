//! `metaflow observe`: requests of the whole cluster as they come.

use std::{ops::ControlFlow, time::Duration};

use clap::{Args, ValueEnum};
use serde::Deserialize;

use super::{Access, Client, Failure, agent::path, print, table::clean};

/// Without `--follow`: so many calls, or what comes within this time.
const CALLS: usize = 20;
const TIME: Duration = Duration::from_secs(10);

/// Show requests as they come, from the whole cluster.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    access: Access,
    /// Go on until the program is stopped; without it, the next 20 calls or 10 seconds.
    #[arg(short, long)]
    follow: bool,
    /// Name or address of the server.
    #[arg(long, value_name = "SERVICE")]
    to: Option<String>,
    /// Name or address of the client.
    #[arg(long, value_name = "SERVICE")]
    from: Option<String>,
    /// http, dns, redis, mysql and so on.
    #[arg(long)]
    protocol: Option<String>,
    /// ok, error, timeout, "server error" or "client error".
    #[arg(long)]
    status: Option<String>,
    /// What this agent sees, by its number.
    #[arg(long, value_name = "ID")]
    agent: Option<u32>,
    /// text, or a JSON object a line with everything.
    #[arg(short, long, value_enum, default_value = "text", value_name = "FORMAT")]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// A line of the stream; what a newer node says beside it is left out.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Note {
    Dropped { node_id: u16, calls: u64 },
    Missing { node_id: u16, address: String, reason: String },
    Alive {},
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Call {
    time: u64,
    from: String,
    to: String,
    protocol: String,
    request_type: String,
    request_domain: String,
    endpoint: String,
    resource: String,
    status: String,
    code: i32,
    exception: String,
    duration_us: u64,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments { access, follow, to, from, protocol, status, agent, output } = arguments;
    let client = Client::new(&access)?;
    let filters = [
        ("to", to),
        ("from", from),
        ("protocol", protocol),
        ("status", status),
        ("agent", agent.map(|agent| agent.to_string())),
    ];
    let path = path("/v1/observe", &filters)?;
    let mut left = if follow { usize::MAX } else { CALLS };
    let reading = client.lines(&path, |line| {
        let note = serde_json::from_str::<Note>(line);
        if matches!(note, Ok(Note::Alive {})) {
            return Ok(ControlFlow::Continue(()));
        }
        let is_call = note.is_err();
        let text = match (output, note) {
            (Output::Json, _) => format!("{line}\n"),
            (Output::Text, Ok(note)) => told(&note),
            (Output::Text, Err(_)) => shown(&serde_json::from_str(line).unwrap_or_default()),
        };
        print(&text)?;
        left = left.saturating_sub(usize::from(is_call));
        Ok(if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    });
    if follow {
        return reading.await;
    }
    tokio::time::timeout(TIME, reading).await.unwrap_or(Ok(()))
}

fn told(note: &Note) -> String {
    match note {
        Note::Dropped { node_id, calls } => {
            format!("# {calls} calls of node {node_id} came too fast and are not shown\n")
        }
        Note::Missing { node_id, address, reason } => {
            clean(&format!("# node {node_id} ({address}) is not heard: {reason}")) + "\n"
        }
        Note::Alive {} => String::new(),
    }
}

/// `14:02:11.123 nginx -> redis  redis GET  ok 0.3ms`, in UTC.
fn shown(call: &Call) -> String {
    let Call { time, from, to, protocol, request_type, request_domain, endpoint, resource, .. } = call;
    let of_day = time / 1_000 % 86_400_000;
    let (hours, minutes) = (of_day / 3_600_000, of_day / 60_000 % 60);
    let (seconds, milliseconds) = (of_day / 1_000 % 60, of_day % 1_000);
    let what = [endpoint, resource, request_domain].into_iter().find(|text| !text.is_empty());
    let request: Vec<String> = [protocol.to_lowercase()]
        .into_iter()
        .chain(
            [request_type, what.unwrap_or(&String::new())]
                .into_iter()
                .filter(|text| !text.is_empty())
                .cloned(),
        )
        .collect();
    let outcome = outcome(call);
    let line = format!(
        "{hours:02}:{minutes:02}:{seconds:02}.{milliseconds:03} {from} -> {to}  {}  {outcome}",
        request.join(" ")
    );
    clean(&line) + "\n"
}

fn outcome(call: &Call) -> String {
    let Call { status, code, exception, duration_us, .. } = call;
    let delay = format!("{:.1}ms", *duration_us as f64 / 1_000.0);
    let mut words = vec![if status == "normal" { "ok".to_owned() } else { status.clone() }];
    if *code != 0 {
        words.push(code.to_string());
    }
    words.push(delay);
    if !exception.is_empty() {
        words.push(exception.clone());
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_one_line_each_and_cannot_drive_a_terminal() {
        let check = |json: &str, expected: &str| {
            assert_eq!(shown(&serde_json::from_str(json).unwrap()), format!("{expected}\n"));
        };
        check(
            r#"{"time":50531123456,"from":"nginx","to":"redis","protocol":"Redis","request_type":"GET","status":"normal","duration_us":300}"#,
            "14:02:11.123 nginx -> redis  redis GET  ok 0.3ms",
        );
        check(
            r#"{"time":0,"from":"a\u001b[2J","to":"b","protocol":"HTTP","request_type":"POST","endpoint":"/cart","request_domain":"shop",
                "status":"server error","code":503,"exception":"no\nroom","duration_us":12345,"new":1}"#,
            "00:00:00.000 a?[2J -> b  http POST /cart  server error 503 12.3ms no?room",
        );
        let note = serde_json::from_str(r#"{"dropped":{"node_id":2,"calls":7}}"#).unwrap();
        assert!(told(&note).contains("7 calls of node 2"));
    }
}
