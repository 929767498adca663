//! `metaflow ctl profile`: where processes spend their time, by function.

use std::time::Duration;

use axum::http::Method;
use clap::{Args, ValueEnum};
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
    /// Name of the process; without it all together.
    process: Option<String>,
    /// Time that functions compute, or wait.
    #[arg(long, value_enum, default_value = "on-cpu")]
    event: Event,
    /// How much of the past.
    #[arg(long, default_value = "15m", value_name = "DURATION", value_parser = humantime::parse_duration)]
    since: Duration,
    /// A condition on further tags, as in SQL: "host = 'web-1' AND pid = 17".
    #[arg(long = "where", value_name = "CONDITION", default_value = "")]
    filter: String,
    /// Print stacks with their microseconds, a line each, as flame graph programs read them.
    #[arg(long)]
    folded: bool,
    /// Functions that are listed, those with most time of their own first.
    #[arg(long, default_value_t = 30, value_name = "N")]
    top: usize,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Event {
    OnCpu,
    OffCpu,
}

impl Event {
    fn name(self) -> &'static str {
        match self {
            Self::OnCpu => "on-cpu",
            Self::OffCpu => "off-cpu",
        }
    }
}

const HEADER: [&str; 5] = ["self", "self%", "total", "total%", "function"];

pub(super) async fn run(client: &Client, arguments: Arguments) -> Result<(), Failure> {
    let Arguments { process, event, since, filter, folded, top, output: Output { format } } = arguments;
    let now = u64::from(clock::seconds());
    let asked = json!({
        "app_service": process.as_deref().unwrap_or(""),
        "profile_event_type": event.name(),
        "tag_filter": filter,
        "time_start": now.saturating_sub(since.as_secs()),
        "time_end": now + 1,
    });
    let answer: Value = client.send(Method::POST, "/v1/profile/ProfileTracing", Some(&asked)).await?;
    let data = &answer["DATA"];
    let total = number(&data["node_values"]["values"][0][3]);
    if total == 0 {
        let whose = process.unwrap_or_else(|| "any process".to_owned());
        return Err(Failure::Degraded(format!(
            "no {} time of {whose} within {}; `metaflow ctl query \"SHOW TAG app_service VALUES FROM in_process\"` lists processes, \
             [profile] of the agent says what is sampled",
            event.name(),
            humantime::format_duration(since)
        )));
    }
    if folded {
        return print(&lines(data));
    }
    let rows = functions(data, total, top);
    match format {
        Format::Json | Format::Yaml => print(&document(data, format)?),
        Format::Csv => {
            let mut out = csv_line(HEADER.iter().map(ToString::to_string));
            rows.into_iter().for_each(|row| out.push_str(&csv_line(row.into_iter())));
            print(&out)
        }
        Format::Table | Format::Wide => print(&table::aligned(&HEADER, &rows)),
    }
}

/// The functions with most time of their own.
fn functions(data: &Value, total: u64, top: usize) -> Vec<Vec<String>> {
    let names = data["functions"].as_array().map_or(&[][..], Vec::as_slice);
    let values = data["function_values"]["values"].as_array().map_or(&[][..], Vec::as_slice);
    let mut rows: Vec<(u64, u64, String)> = names
        .iter()
        .zip(values)
        .skip(1)
        .map(|(name, values)| (number(&values[0]), number(&values[1]), text(name)))
        .collect();
    rows.sort_by(|a, b| (b.0, b.1, &a.2).cmp(&(a.0, a.1, &b.2)));
    let percent = |time: u64| format!("{:.1}", time as f64 * 100.0 / total as f64);
    let shown = rows.into_iter().take(top);
    shown.map(|(own, all, name)| vec![time(own), percent(own), time(all), percent(all), name]).collect()
}

/// Stacks and their time of their own.
fn lines(data: &Value) -> String {
    let names = data["functions"].as_array().map_or(&[][..], Vec::as_slice);
    let nodes = data["node_values"]["values"].as_array().map_or(&[][..], Vec::as_slice);
    // A node stands behind its parent, so the parent's path is known.
    let mut paths: Vec<String> = Vec::with_capacity(nodes.len());
    let mut out = String::new();
    for node in nodes {
        let name = names.get(number(&node[0]) as usize).map(text).unwrap_or_default();
        let above = node[1].as_i64().and_then(|at| paths.get(usize::try_from(at).ok()?));
        let path = above.map_or_else(|| name.clone(), |above| format!("{above};{name}"));
        let own = number(&node[2]);
        if own > 0 {
            out.push_str(&format!("{path} {own}\n"));
        }
        paths.push(path);
    }
    out
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

/// Microseconds, in what is read best.
fn time(us: u64) -> String {
    match us {
        0..1_000_000 => format!("{}ms", us / 1_000),
        _ => format!("{}.{:02}s", us / 1_000_000, us % 1_000_000 / 10_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data() -> Value {
        json!({
            "functions": ["app", "main", "work", "idle"],
            "function_values": { "values": [[0, 4_000_000], [0, 4_000_000], [3_000_000, 3_000_000], [1_000_000, 1_000_000]] },
            "node_values": {
                "values": [[0, -1, 0, 4_000_000], [1, 0, 0, 4_000_000], [2, 1, 3_000_000, 3_000_000], [3, 1, 1_000_000, 1_000_000]]
            },
        })
    }

    #[test]
    fn functions_are_listed_by_their_own_time() {
        let rows = functions(&data(), 4_000_000, 2);
        assert_eq!(
            rows,
            [["3.00s", "75.0", "3.00s", "75.0", "work"], ["1.00s", "25.0", "1.00s", "25.0", "idle"]]
        );
    }

    #[test]
    fn stacks_are_lines_that_flame_graph_programs_read() {
        assert_eq!(lines(&data()), "app;main;work 3000000\napp;main;idle 1000000\n");
        assert_eq!(lines(&json!({})), "");
    }
}
