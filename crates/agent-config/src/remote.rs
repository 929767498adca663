//! What nodes may set: any part of the file but what only the host can know. It is laid over the file, key by key.

use serde::Deserialize as _;
use toml::{Table, Value};

use crate::Config;

/// Keys that say where the host is and whom it trusts: no node decides that.
pub const LOCAL: [&str; 8] =
    ["servers", "machine_id", "data_dir", "insecure", "tls", "region", "zone", "labels"];

/// Keys, or whole sections, that a running agent takes. Everything else waits for its next start.
pub const HOT: [&str; 8] = [
    "enabled",
    "guard",
    "session",
    "profile",
    "events",
    "ebpf.only_ports",
    "ebpf.only_processes",
    "ebpf.excluded_processes",
];

/// Text of one document; what a group says and what an agent gets are bounded by it.
pub const TEXT_BYTES_MAX: usize = 16 << 10;

/// Why a document is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("the configuration is larger than {TEXT_BYTES_MAX} bytes")]
    Size,
    #[error("the configuration is not TOML: {0}")]
    Syntax(String),
    #[error("{0} is set on each host alone and cannot come from a node; what can: {allowed}", allowed = allowed())]
    Local(String),
    #[error("{key}: {reason}")]
    Key { key: String, reason: String },
    #[error("the configuration does not hold together: {0}")]
    Whole(String),
}

/// A part of a configuration.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Remote {
    table: Table,
}

impl Remote {
    /// Reads a document, and refuses what no agent would take: keys that are not known or not a node's to set, values out of range.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(Problem::Size);
        }
        let table: Table = text.parse().map_err(|error: toml::de::Error| Problem::Syntax(told(&error)))?;
        if let Some(key) = LOCAL.iter().find(|key| table.contains_key(**key)) {
            return Err(Problem::Local((*key).to_owned()));
        }
        for (key, alone) in leaves(&table) {
            Config::deserialize(alone).map_err(|error| Problem::Key { key, reason: told(&error) })?;
        }
        let remote = Self { table };
        remote.over(&Config::default())?;
        Ok(remote)
    }

    /// The kill switch.
    pub fn off() -> Self {
        Self { table: Table::from_iter([("enabled".to_owned(), Value::Boolean(false))]) }
    }

    /// Whether a document of [`Remote::to_toml`] switches agents off. Cheap: keys of no section come first.
    pub fn is_off(toml: &str) -> bool {
        toml.lines().take_while(|line| !line.starts_with('[')).any(|line| line == "enabled = false")
    }

    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// What a child says wins, key by key.
    pub fn with(&self, child: &Self) -> Self {
        let mut table = self.table.clone();
        lay_over(&mut table, &child.table);
        Self { table }
    }

    /// The file's settings with these over them.
    pub fn over(&self, file: &Config) -> Result<Config, Problem> {
        let mut table = Table::try_from(file).map_err(|error| Problem::Whole(error.to_string()))?;
        lay_over(&mut table, &self.table);
        let config = Config::deserialize(table).map_err(|error| Problem::Whole(told(&error)))?;
        config.check().map_err(|error| Problem::Whole(format!("{error:#}")))?;
        Ok(config)
    }

    /// As a document that reads back the same, in one order whoever wrote it.
    pub fn to_toml(&self) -> String {
        self.table.to_string()
    }

    /// What a child would set, one line a key: `guard.cpu_percent_max = 50`.
    pub fn lines(&self) -> Vec<String> {
        leaves(&self.table)
            .into_iter()
            .map(|(key, alone)| {
                let value =
                    key.split('.').try_fold(&Value::Table(alone), |value, part| value.get(part)).cloned();
                format!("{key} = {}", value.map_or_else(String::new, |value| value.to_string()))
            })
            .collect()
    }
}

/// What an agent that runs with `running` makes of `wanted` without a restart, and the keys that wait for one.
pub fn take_hot(running: &Config, wanted: &Config) -> (Config, Vec<String>) {
    let (Ok(mut next), Ok(wanted)) = (Table::try_from(running), Table::try_from(wanted)) else {
        return (running.clone(), vec![]);
    };
    for key in HOT {
        match key.split_once('.') {
            Some((section, name)) => {
                let value = wanted.get(section).and_then(|section| section.get(name));
                if let (Some(value), Some(Value::Table(section))) = (value, next.get_mut(section)) {
                    section.insert(name.to_owned(), value.clone());
                }
            }
            None => {
                if let Some(value) = wanted.get(key) {
                    next.insert(key.to_owned(), value.clone());
                }
            }
        }
    }
    let now: Vec<_> = leaves(&next);
    let pending =
        leaves(&wanted).into_iter().filter(|leaf| !now.contains(leaf)).map(|(key, _)| key).collect();
    (Config::deserialize(next).unwrap_or_else(|_| running.clone()), pending)
}

/// Each key of a table, of its sections too, in a table that holds it alone.
fn leaves(table: &Table) -> Vec<(String, Table)> {
    let mut leaves = Vec::new();
    for (key, value) in table {
        match value {
            Value::Table(section) => {
                for (name, value) in section {
                    let alone = Table::from_iter([(name.clone(), value.clone())]);
                    leaves.push((format!("{key}.{name}"), Table::from_iter([(key.clone(), alone.into())])));
                }
            }
            _ => leaves.push((key.clone(), Table::from_iter([(key.clone(), value.clone())]))),
        }
    }
    leaves
}

fn lay_over(table: &mut Table, over: &Table) {
    for (key, value) in over {
        match (table.get_mut(key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => lay_over(below, above),
            _ => {
                table.insert(key.clone(), value.clone());
            }
        }
    }
}

fn allowed() -> String {
    let keys = Table::try_from(Config::default()).unwrap_or_default();
    let keys: Vec<&str> = keys.keys().map(String::as_str).filter(|key| !LOCAL.contains(key)).collect();
    keys.join(", ")
}

/// On one line, without the picture of the text.
fn told(error: &toml::de::Error) -> String {
    error.message().replace('\n', ", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_agent_would_take_is_refused_with_its_key_and_what_is_allowed() {
        let check = |text: &str, parts: &[&str]| {
            let error = Remote::parse(text).unwrap_err().to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{text}: {error}");
        };
        check("a = ", &["not TOML"]);
        check("servers = []", &["servers", "each host alone", "guard"]);
        check("watch = 1", &["watch", "unknown field", "`guard`"]);
        check("[guard]\ncpu_max = 1", &["guard.cpu_max", "unknown field", "`cpu_percent_max`"]);
        check("[guard]\ncpu_percent_max = \"all\"", &["guard.cpu_percent_max", "u32"]);
        check("[guard]\nmemory_max = \"1 lot\"", &["guard.memory_max", "\"64 MiB\""]);
        check("[guard]\nmemory_max = \"1 MiB\"", &["guard.memory_max", "below 64 MiB"]);
        check("[session]\ntrace_headers = [\"a b\"]", &["session.trace_headers", "x-trace-id"]);
        check("[log]\nformat = \"xml\"", &["log.format", "`text`", "`json`"]);
        check(&format!("# {}", "x".repeat(TEXT_BYTES_MAX)), &["larger"]);
    }

    #[test]
    fn children_win_key_by_key_and_the_file_keeps_what_nobody_sets() {
        let parent =
            Remote::parse("enabled = false\n[guard]\ncpu_percent_max = 50\nmemory_max = \"128 MiB\"")
                .unwrap();
        let child = Remote::parse("[guard]\ncpu_percent_max = 20").unwrap();
        let file = Config::parse("machine_id = \"m\"\n[guard]\ndisk_free_min = \"1 GiB\"").unwrap();
        let config = parent.with(&child).over(&file).unwrap();
        assert_eq!((config.enabled, config.machine_id.as_str()), (false, "m"));
        let guard = &config.guard;
        assert_eq!(
            (guard.cpu_percent_max, guard.memory_max.0, guard.disk_free_min.0),
            (20, 128 << 20, 1 << 30)
        );
        let again = Remote::parse(&parent.with(&child).to_toml()).unwrap();
        assert_eq!(again, parent.with(&child));
        assert_eq!(child.lines(), ["guard.cpu_percent_max = 20"]);
        assert!(Remote::is_off(&parent.with(&child).to_toml()) && !Remote::is_off(&child.to_toml()));
        assert!(Remote::is_off(&child.with(&Remote::off()).to_toml()));
        assert!(Remote::parse("# nothing").unwrap().is_empty());
    }

    #[test]
    fn only_what_is_hot_is_taken_and_the_rest_is_named() {
        let running = Config::default();
        let text = "enabled = false\n[guard]\ncpu_percent_max = 20\n[session]\nrequest_id_headers = [\"x-id\"]\n[capture]\nflows_max = 9\n[log]\nfilter = \"debug\"\n\
                    [ebpf]\ntls = false\nonly_ports = [80]\nexcluded_processes = [\"curl\"]";
        let wanted = Remote::parse(text).unwrap().over(&running).unwrap();
        let (next, pending) = take_hot(&running, &wanted);
        assert_eq!((next.enabled, next.guard.cpu_percent_max), (false, 20));
        assert_eq!(next.capture, running.capture);
        assert_eq!(next.session.request_id_headers, ["x-id"]);
        assert_eq!((&next.ebpf.only_ports[..], next.ebpf.tls), (&[80][..], true));
        assert_eq!(next.ebpf.excluded_processes, ["curl"]);
        assert_eq!(pending, ["capture.flows_max", "ebpf.tls", "log.filter"]);
        assert_eq!(take_hot(&next, &next), (next.clone(), vec![]));
    }
}
