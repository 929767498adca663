//! The chains that are judged, and what each must reach.

use anyhow::{Context as _, Result};

use super::{Chain, Load, Observer, Verdict, judge};
use crate::process::free_port;

/// A chain with what it must reach.
pub struct Case {
    pub name: &'static str,
    /// Adds its programs; gives the port of the first.
    build: fn(&mut Chain) -> Result<u16>,
    /// Least hundredths of traces that are complete and right: one at a time, and many.
    least: [f64; 2],
    /// Whether each link is certain: where one thread works for several requests, some are guesses.
    is_certain: bool,
}

/// Event loops among them: 100 % one at a time, 95 % of many.
const LOOPS: ([f64; 2], bool) = ([100.0, 95.0], false);
const THREADS: ([f64; 2], bool) = ([100.0, 100.0], true);

const fn case(
    name: &'static str,
    build: fn(&mut Chain) -> Result<u16>,
    (least, is_certain): ([f64; 2], bool),
) -> Case {
    Case { name, build, least, is_certain }
}

pub const CASES: [Case; 8] = [
    case(
        "nginx, haproxy, Python (threads), Redis + MariaDB",
        |chain| {
            let (proxy, server) = (free_port(), free_port());
            let front = chain.nginx(proxy, None)?;
            let (redis, sql) = (chain.redis(server, 2)?, chain.mariadb(server, 1)?);
            chain.threads(server, Some(proxy), redis, Some(sql))?;
            chain.haproxy(proxy, server, Some(front))?;
            Ok(front)
        },
        LOOPS,
    ),
    case(
        "TLS: nginx, Python (threads), Redis",
        |chain| {
            chain.encrypt()?;
            let server = free_port();
            let front = chain.nginx(server, None)?;
            let redis = chain.redis(server, 2)?;
            chain.threads(server, Some(front), redis, None)?;
            Ok(front)
        },
        LOOPS,
    ),
    case(
        "Python (threads), Redis",
        |chain| {
            let port = free_port();
            let redis = chain.redis(port, 2)?;
            chain.threads(port, None, redis, None)?;
            Ok(port)
        },
        THREADS,
    ),
    case(
        "Go (goroutines), PostgreSQL",
        |chain| {
            let port = free_port();
            let database = chain.postgresql(port, 3)?;
            chain.go(port, database)?;
            Ok(port)
        },
        THREADS,
    ),
    case(
        "TLS: Go (goroutines), PostgreSQL",
        |chain| {
            chain.encrypt()?;
            let port = free_port();
            let database = chain.postgresql(port, 3)?;
            chain.go(port, database)?;
            Ok(port)
        },
        THREADS,
    ),
    case(
        "Node, Redis",
        |chain| {
            let port = free_port();
            let redis = chain.redis(port, 2)?;
            chain.node(port, redis)?;
            Ok(port)
        },
        LOOPS,
    ),
    case(
        "Java (pool of threads), HTTP",
        |chain| {
            let port = free_port();
            let backend = chain.leaf(port, 1)?;
            chain.java(port, backend)?;
            Ok(port)
        },
        THREADS,
    ),
    case(
        "tokio: axum, tonic (gRPC)",
        |chain| {
            let port = free_port();
            chain.tokio(port)?;
            Ok(port)
        },
        // What is on its way when the probes come is not linked.
        ([99.0, 95.0], false),
    ),
];

impl Case {
    pub fn named(name: &str) -> Result<&'static Self> {
        CASES.iter().find(|case| case.name == name).with_context(|| format!("no chain {name}"))
    }

    /// Builds the chain, asks it and judges what was seen.
    pub fn run(&self, load: Load) -> Result<Verdict> {
        let folder = tempfile::tempdir()?;
        let mut chain = Chain::new(folder.path());
        let port = (self.build)(&mut chain)?;
        let observer = Observer::start(&chain)?;
        chain.drive(port, load)?;
        let views = load.traces * chain.parts.iter().map(|part| part.asked * 2).sum::<usize>();
        let seen = observer.finish(|calls| calls.len() >= views)?;
        let name = format!("{}; {} at a time", self.name, load.connections);
        Ok(judge(&name, &chain, load.traces, seen))
    }

    /// Whether it is as it must be.
    pub fn is_met(&self, verdict: &Verdict, connections: usize) -> bool {
        let least = self.least[usize::from(connections > 1)];
        let false_links = if self.is_certain { verdict.false_links } else { verdict.false_certain };
        verdict.recall() >= 100.0 && verdict.share() >= least && false_links == 0
    }
}
