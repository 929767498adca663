//! What a node says of itself, as the key-values that gossip carries, and back.
//!
//! A value that cannot be read is left out and counted: a newer or foreign node must not disturb this one.

use std::net::SocketAddr;

use metaflow_actors::placement::view::WEIGHT_MAX;
use serde::Serialize;

/// Ids that a node may have.
pub(super) const NODE_IDS: std::ops::RangeInclusive<u16> = 1..=1023;
/// Longest name of a node, zone or region.
pub(crate) const LABEL_BYTES_MAX: usize = 64;
/// Weights are relative, and placement tells them apart up to this.
pub(crate) const WEIGHTS: std::ops::RangeInclusive<u8> = 1..=WEIGHT_MAX;

/// Where a node is in its life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Takes nothing yet.
    #[default]
    Starting,
    Ready,
    /// Hands over what it has and takes nothing new.
    Draining,
    /// Has nothing any more: its silence is no failure.
    Drained,
}

impl State {
    pub(crate) const ALL: [Self; 4] = [Self::Starting, Self::Ready, Self::Draining, Self::Drained];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Drained => "drained",
        }
    }
}

/// How much a node has to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Load {
    pub agents: u64,
    /// Bytes in the write-ahead log.
    pub wal_bytes: u64,
    /// Age of the oldest batch that waits for the store.
    pub store_lag_ms: u64,
}

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    pub name: String,
    pub zone: String,
    pub region: String,
    /// Share of the work, relative to the others.
    pub weight: u8,
    pub grpc: Option<SocketAddr>,
    pub http: Option<SocketAddr>,
    pub state: State,
    /// Whether it has been ready for long enough to be given work. A node decides this of itself, because clocks of others would
    /// disagree about it.
    pub eligible: bool,
    /// The generation with which the process began: another one is another process.
    pub start: u64,
    /// Oldest and newest version of the wire protocol that it speaks.
    pub protocol: (u32, u32),
    /// Of the software.
    pub version: String,
    pub load: Load,
    /// Its wall clock when it last said something, in milliseconds since 1970; 0: it did not say.
    pub clock_ms: u64,
}

impl Default for Facts {
    fn default() -> Self {
        Self {
            name: String::new(),
            zone: String::new(),
            region: String::new(),
            weight: 1,
            grpc: None,
            http: None,
            state: State::Starting,
            eligible: false,
            start: 0,
            protocol: (0, 0),
            version: String::new(),
            load: Load::default(),
            clock_ms: 0,
        }
    }
}

/// Keys, which are also the reasons by which malformed values are counted. Each begins with an ASCII letter, as gossip needs.
pub(super) const KEYS: [&str; 15] = [
    "name",
    "zone",
    "region",
    "weight",
    "grpc",
    "http",
    "state",
    "eligible",
    "start",
    "protocol",
    "version",
    "load_agents",
    "load_wal_bytes",
    "load_store_lag_ms",
    "clock_ms",
];

impl Facts {
    /// In the order of [`KEYS`].
    pub(super) fn key_values(&self) -> Vec<(String, String)> {
        let Self {
            name,
            zone,
            region,
            weight,
            grpc,
            http,
            state,
            eligible,
            start,
            protocol: (oldest, newest),
            version,
            load: Load { agents, wal_bytes, store_lag_ms },
            clock_ms,
        } = self;
        let address = |address: &Option<SocketAddr>| address.map(|a| a.to_string()).unwrap_or_default();
        let values = [
            name.clone(),
            zone.clone(),
            region.clone(),
            weight.to_string(),
            address(grpc),
            address(http),
            state.name().to_owned(),
            eligible.to_string(),
            start.to_string(),
            format!("{oldest}-{newest}"),
            version.clone(),
            agents.to_string(),
            wal_bytes.to_string(),
            store_lag_ms.to_string(),
            clock_ms.to_string(),
        ];
        KEYS.iter().map(|key| (*key).to_owned()).zip(values).collect()
    }

    /// Reads key-values; `malformed` is told the key of each value that could not be read. Unknown keys are a newer node's.
    pub(super) fn parse<'a>(
        values: impl IntoIterator<Item = (&'a str, &'a str)>,
        mut malformed: impl FnMut(&'static str),
    ) -> Self {
        let mut facts = Self::default();
        for (key, value) in values {
            let Some(key) = KEYS.iter().find(|known| **known == key) else { continue };
            if facts.take(key, value).is_none() {
                malformed(key);
            }
        }
        facts
    }

    fn take(&mut self, key: &str, value: &str) -> Option<()> {
        match key {
            "name" => self.name = label(value)?,
            "zone" => self.zone = label(value)?,
            "region" => self.region = label(value)?,
            "version" => self.version = label(value)?,
            "weight" => self.weight = value.parse().ok().filter(|weight| WEIGHTS.contains(weight))?,
            "grpc" => self.grpc = address(value)?,
            "http" => self.http = address(value)?,
            "state" => self.state = State::ALL.into_iter().find(|state| state.name() == value)?,
            "eligible" => self.eligible = value.parse().ok()?,
            "start" => self.start = value.parse().ok()?,
            "protocol" => {
                let (oldest, newest) = value.split_once('-')?;
                let range = (oldest.parse().ok()?, newest.parse().ok()?);
                self.protocol = Some(range).filter(|(oldest, newest)| oldest <= newest)?;
            }
            "load_agents" => self.load.agents = value.parse().ok()?,
            "load_wal_bytes" => self.load.wal_bytes = value.parse().ok()?,
            "load_store_lag_ms" => self.load.store_lag_ms = value.parse().ok()?,
            _ => self.clock_ms = value.parse().ok()?,
        }
        Some(())
    }
}

/// A name that can stand in a table, a metric's label and a log line.
pub(crate) fn is_label(text: &str) -> bool {
    text.len() <= LABEL_BYTES_MAX && text.chars().all(|c| c.is_alphanumeric() || "._-+:/".contains(c))
}

fn label(value: &str) -> Option<String> {
    is_label(value).then(|| value.to_owned())
}

/// Empty: not served.
fn address(value: &str) -> Option<Option<SocketAddr>> {
    if value.is_empty() { Some(None) } else { value.parse().ok().map(Some) }
}

/// The number in a node's id in gossip.
pub(super) fn node_id(text: &str) -> Option<u16> {
    // One spelling a number, so that one node has one id.
    text.parse().ok().filter(|id: &u16| NODE_IDS.contains(id) && id.to_string() == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            name: "n7".to_owned(),
            zone: "fra-1".to_owned(),
            region: "eu".to_owned(),
            weight: 12,
            grpc: Some("10.0.0.7:20035".parse().unwrap()),
            http: Some("[fd00::7]:20416".parse().unwrap()),
            state: State::Draining,
            eligible: true,
            start: 12,
            protocol: (1, 2),
            version: "0.2.0".to_owned(),
            load: Load { agents: 3, wal_bytes: 4, store_lag_ms: 5 },
            clock_ms: 1_700_000_000_123,
        }
    }

    fn parse(values: &[(&str, &str)]) -> (Facts, Vec<&'static str>) {
        let mut malformed = Vec::new();
        let facts = Facts::parse(values.iter().copied(), |key| malformed.push(key));
        (facts, malformed)
    }

    #[test]
    fn what_is_written_is_read() {
        let written = facts().key_values();
        let borrowed: Vec<(&str, &str)> = written.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(parse(&borrowed), (facts(), vec![]));
        let empty = Facts::default().key_values();
        let borrowed: Vec<(&str, &str)> = empty.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(parse(&borrowed), (Facts::default(), vec![]));
    }

    #[test]
    fn malformed_values_are_left_out_and_named_and_unknown_keys_are_no_error() {
        let long = "x".repeat(LABEL_BYTES_MAX + 1);
        let cases: [(&str, &str); 13] = [
            ("name", "a\nb"),
            ("zone", &long),
            ("region", "\u{202e}"),
            ("weight", "0"),
            ("weight", "17"),
            ("grpc", "example.com"),
            ("state", "Ready"),
            ("eligible", "yes"),
            ("start", "-1"),
            ("protocol", "2-1"),
            ("protocol", "1"),
            ("load_agents", "18446744073709551616"),
            ("clock_ms", ""),
        ];
        for (key, value) in cases {
            assert_eq!(parse(&[(key, value), ("zone", "z")]).1, [key], "{key} {value}");
        }
        let (facts, malformed) = parse(&[("colour", "red"), ("\u{e9}", ""), ("weight", "7")]);
        assert_eq!((facts.weight, malformed), (7, vec![]));
    }

    #[test]
    fn node_ids_have_one_spelling() {
        assert_eq!(node_id("17"), Some(17));
        for text in ["0", "1024", "017", "+17", " 17", "", "x", "99999"] {
            assert_eq!(node_id(text), None, "{text:?}");
        }
    }
}
