//! `metaflow ctl top`: the services that answer requests now.
//!
//! Three statements a refresh: rates and errors from the metrics, delays from the request log (a percentile needs the single delays), callers
//! from the map. A request may be seen at several points of its path; each service is shown from one kind of point, so nothing counts twice.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use clap::Args;
use serde_json::Value;

use super::{Answer, Client, Failure, arguments::repeat, print, table};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Print the table once, as text. Exit code 3 when no named service had requests.
    #[arg(long)]
    once: bool,
    /// Time between two refreshes.
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
    interval: Duration,
    /// Seconds that the figures cover.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(2..=3600))]
    seconds: u32,
}

const HEADER: [&str; 7] = ["SERVICE", "PROTOCOL", "REQ/S", "ERRORS", "P50", "P95", "CALLERS"];
/// Rows that fit a usual terminal.
const ROWS_MAX: usize = 40;
/// Callers that are named; of the others only their number is shown.
const CALLERS_NAMED: usize = 3;

/// Service and protocol.
type Key = (String, String);

/// Where a request was seen, the best place first: at the server's side, then at the client's. Of one host's points the metrics count a
/// request at one alone, so those of a rank can be added.
const POINTS: [&[&str]; 3] = [&["s-p", "s", "local"], &["c-p", "c"], &["rest"]];

/// What is known of a service.
#[derive(Debug, Clone, Default, PartialEq)]
struct Service {
    requests: f64,
    errors: f64,
    /// Microseconds.
    p50: Option<f64>,
    p95: Option<f64>,
    callers: BTreeSet<String>,
}

/// Shows the table, once or until the process is stopped.
pub(super) async fn run(client: &Client, arguments: Arguments) -> Result<(), Failure> {
    let Arguments { once, interval, seconds } = arguments;
    if !once {
        return repeat(interval, async || Ok(render(&ask(client, seconds).await?, seconds, true))).await;
    }
    let services = ask(client, seconds).await?;
    print(&render(&services, seconds, false))?;
    let named = services.iter().any(|((name, _), service)| is_named(name) && service.requests > 0.0);
    if named {
        return Ok(());
    }
    Err(Failure::Degraded(format!("no named service had requests in the last {seconds} s")))
}

async fn ask(client: &Client, seconds: u32) -> Result<BTreeMap<Key, Service>, Failure> {
    let [rates, delays, callers] = statements(seconds);
    let (rates, delays, callers) = tokio::try_join!(
        client.query(&rates, Some("flow_metrics")),
        client.query(&delays, Some("flow_log")),
        client.query(&callers, Some("flow_metrics")),
    )?;
    Ok(join(&rates, &delays, &callers))
}

fn statements(seconds: u32) -> [String; 3] {
    let service = "auto_service_1, Enum(l7_protocol)";
    let by = "Enum(observation_point)";
    let range = format!("time > now() - {seconds}");
    [
        format!(
            "SELECT {service}, {by}, Sum(request), Sum(error) FROM `application_map.1s` WHERE {range} \
             GROUP BY {service}, {by} LIMIT 10000"
        ),
        format!(
            "SELECT {service}, {by}, Percentile(rrt, 0.5), Percentile(rrt, 0.95) FROM l7_flow_log WHERE {range} \
             GROUP BY {service}, {by} LIMIT 10000"
        ),
        format!(
            "SELECT {service}, {by}, auto_service_0, Sum(request) FROM `application_map.1s` WHERE {range} \
             GROUP BY {service}, {by}, auto_service_0 LIMIT 10000"
        ),
    ]
}

/// Index into [`POINTS`].
fn rank(point: &str) -> usize {
    POINTS.iter().position(|points| points.contains(&point)).unwrap_or(POINTS.len())
}

/// Joins the three answers by service and protocol.
fn join(rates: &Answer, delays: &Answer, callers: &Answer) -> BTreeMap<Key, Service> {
    let mut services: BTreeMap<Key, (usize, Service)> = BTreeMap::new();
    for row in &rates.values {
        let Some((key, rank, [requests, errors])) = figures(row) else { continue };
        let entry = services.entry(key).or_insert_with(|| (rank, Service::default()));
        if rank < entry.0 {
            *entry = (rank, Service::default());
        }
        if rank == entry.0 {
            entry.1.requests += requests.unwrap_or(0.0);
            entry.1.errors += errors.unwrap_or(0.0);
        }
    }
    for row in &delays.values {
        let Some((key, rank, [p50, p95])) = figures(row) else { continue };
        let Some((_, service)) = services.get_mut(&key).filter(|(best, _)| *best == rank) else { continue };
        // Points of one rank are disjoint sets of requests; of two percentiles the higher is the careful answer.
        service.p50 = service.p50.into_iter().chain(p50).reduce(f64::max);
        service.p95 = service.p95.into_iter().chain(p95).reduce(f64::max);
    }
    for row in &callers.values {
        let Some((key, rank, _)) = figures::<2>(row) else { continue };
        let Some((_, service)) = services.get_mut(&key).filter(|(best, _)| *best == rank) else { continue };
        if let Some(caller) = row.get(3).and_then(Value::as_str).filter(|caller| !caller.is_empty()) {
            service.callers.insert(caller.to_owned());
        }
    }
    services.into_iter().map(|(key, (_, service))| (key, service)).collect()
}

/// Service, protocol, point, and the figures behind them.
fn figures<const N: usize>(row: &[Value]) -> Option<(Key, usize, [Option<f64>; N])> {
    let [service, protocol, point, rest @ ..] = row else { return None };
    let key = (service.as_str()?.to_owned(), protocol.as_str()?.to_owned());
    let figures = std::array::from_fn(|at| rest.get(at).and_then(Value::as_f64));
    Some((key, rank(point.as_str()?), figures))
}

/// A service that has a name, and not only an address.
fn is_named(name: &str) -> bool {
    !name.is_empty() && name.parse::<std::net::IpAddr>().is_err()
}

fn render(services: &BTreeMap<Key, Service>, seconds: u32, with_head: bool) -> String {
    let mut busiest: Vec<_> = services.iter().filter(|(_, service)| service.requests > 0.0).collect();
    busiest.sort_by(|a, b| b.1.requests.total_cmp(&a.1.requests).then_with(|| a.0.cmp(b.0)));
    let hidden = busiest.len().saturating_sub(ROWS_MAX);
    let rows: Vec<Vec<String>> = busiest
        .into_iter()
        .take(ROWS_MAX)
        .map(|((name, protocol), service)| {
            vec![
                if name.is_empty() { "(unknown)".to_owned() } else { name.clone() },
                protocol.clone(),
                format!("{:.1}", service.requests / f64::from(seconds)),
                errors(service),
                delay(service.p50),
                delay(service.p95),
                callers(&service.callers),
            ]
        })
        .collect();
    let mut out = String::new();
    if with_head {
        out.push_str(&format!("MetaFlow: services in the last {seconds} s\n\n"));
    }
    out.push_str(&table::aligned(&HEADER, &rows));
    if rows.is_empty() {
        out.push_str("(no requests yet)\n");
    }
    if hidden > 0 {
        out.push_str(&format!("... and {hidden} more\n"));
    }
    out
}

fn errors(service: &Service) -> String {
    if service.errors > 0.0 {
        format!("{:.1}% ({:.0})", service.errors * 100.0 / service.requests, service.errors)
    } else {
        "0".to_owned()
    }
}

fn delay(micros: Option<f64>) -> String {
    match micros {
        None => "-".to_owned(),
        Some(micros) if micros < 1_000.0 => format!("{micros:.0}us"),
        Some(micros) if micros < 1_000_000.0 => format!("{:.1}ms", micros / 1e3),
        Some(micros) => format!("{:.2}s", micros / 1e6),
    }
}

fn callers(names: &BTreeSet<String>) -> String {
    let mut text: Vec<String> = names.iter().take(CALLERS_NAMED).cloned().collect();
    if names.len() > CALLERS_NAMED {
        text.push(format!("+{}", names.len() - CALLERS_NAMED));
    }
    if text.is_empty() { "-".to_owned() } else { text.join(", ") }
}
