//! One agent as operators see it.

use std::collections::{BTreeMap, HashMap};

use metaflow_actors::{
    controller::AgentSummary,
    dictionary::NodeId,
    groups::{Groups, Who},
};
use metaflow_wire::{AgentState, Heartbeat, Hello, Loss};
use serde::Serialize;

/// Heartbeats come every second; who is not heard for so long is gone, or cannot reach any node.
const SILENT_AFTER_MS: u64 = 10_000;
/// The guard's highest level: nothing is captured.
const STOPPED: u32 = 3;

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Agent {
    pub(crate) agent_id: u32,
    pub(crate) host: String,
    pub(crate) machine_id: String,
    /// ok, shedding, stopped, disabled or silent.
    pub(crate) status: &'static str,
    pub(crate) version: String,
    /// The node that heard it last.
    pub(crate) node_id: u16,
    pub(crate) group: String,
    pub(crate) region: String,
    pub(crate) zone: String,
    pub(crate) labels: BTreeMap<String, String>,
    /// What it is to run with, e.g. `web@4`.
    pub(crate) config: String,
    /// applied, waiting, refused, or restart: some keys wait for one.
    pub(crate) config_state: &'static str,
    pub(crate) config_pending: Vec<String>,
    pub(crate) config_error: String,
    /// None: nobody heard of it since its node started.
    pub(crate) silent_seconds: Option<u64>,
    pub(crate) cpu_percent: f64,
    pub(crate) memory_bytes: u64,
    pub(crate) spool_bytes: u64,
    pub(crate) shedding: u32,
    pub(crate) lost_rows: u64,
    pub(crate) losses: BTreeMap<String, u64>,
    pub(crate) last_error: String,
    pub(crate) processes: u32,
    pub(crate) listeners: u32,
    pub(crate) connections: u64,
    pub(crate) kernel: String,
    pub(crate) architecture: String,
    /// Groups of whose rollouts it is part, with the version.
    pub(crate) rollouts: Vec<(String, u64)>,
}

impl Agent {
    fn new(node: NodeId, state: AgentState, groups: &Groups) -> Self {
        let hello = state.hello.unwrap_or_default();
        let heartbeat = state.heartbeat.unwrap_or_default();
        let who = Who::from(&hello);
        let wanted = groups.wanted(&who);
        let is_silent = state.silent_ms.is_none_or(|silent| silent >= SILENT_AFTER_MS);
        let status = match heartbeat.shedding {
            _ if is_silent => "silent",
            STOPPED.. if wanted.is_off => "disabled",
            STOPPED.. => "stopped",
            1.. => "shedding",
            0 => "ok",
        };
        let has_it = heartbeat.config_version == wanted.config.version;
        let config_state =
            match (has_it, heartbeat.config_error.is_empty(), heartbeat.config_pending.is_empty()) {
                (true, _, true) => "applied",
                (true, _, false) => "restart",
                (false, false, _) => "refused",
                (false, true, _) => "waiting",
            };
        Self {
            agent_id: state.agent_id,
            host: hello.hostname,
            machine_id: hello.machine_id,
            status,
            version: hello.agent_version,
            node_id: node.get(),
            group: wanted.group.to_string(),
            region: hello.region,
            zone: hello.zone,
            labels: who.labels,
            config: wanted.version,
            config_state,
            config_pending: heartbeat.config_pending,
            config_error: heartbeat.config_error,
            silent_seconds: state.silent_ms.map(|silent| silent / 1_000),
            cpu_percent: f64::from(heartbeat.cpu_percent) / 100.0,
            memory_bytes: heartbeat.memory_bytes,
            spool_bytes: heartbeat.spool_bytes,
            shedding: heartbeat.shedding,
            lost_rows: heartbeat.losses.iter().map(|loss| loss.rows).sum(),
            losses: heartbeat.losses.into_iter().map(|loss| (loss.reason, loss.rows)).collect(),
            last_error: heartbeat.last_error,
            processes: state.processes,
            listeners: state.listeners,
            connections: state.connections,
            kernel: hello.kernel_release,
            architecture: hello.architecture,
            rollouts: wanted.trials.iter().map(|(group, version)| (group.to_string(), *version)).collect(),
        }
    }

    pub(crate) fn who(&self) -> Who {
        Who {
            machine_id: self.machine_id.clone(),
            hostname: self.host.clone(),
            region: self.region.clone(),
            zone: self.zone.clone(),
            labels: self.labels.clone(),
        }
    }

    /// Whether an operator means it: by id, machine id or host.
    pub(crate) fn is(&self, name: &str) -> bool {
        name == self.machine_id || name == self.host || name.parse() == Ok(self.agent_id)
    }
}

/// Every agent once, as the node tells it that heard it last, by id.
pub(super) fn merged(told: impl Iterator<Item = (NodeId, AgentState)>, groups: &Groups) -> Vec<Agent> {
    let mut latest: HashMap<u32, (NodeId, AgentState)> = HashMap::new();
    for (node, state) in told {
        let silent = |state: &AgentState| state.silent_ms.unwrap_or(u64::MAX);
        match latest.get(&state.agent_id) {
            Some((_, known)) if silent(known) <= silent(&state) => {}
            _ => {
                latest.insert(state.agent_id, (node, state));
            }
        }
    }
    let mut agents: Vec<Agent> =
        latest.into_values().map(|(node, state)| Agent::new(node, state, groups)).collect();
    agents.sort_unstable_by_key(|agent| agent.agent_id);
    agents
}

/// As nodes tell each other.
pub(super) fn to_wire(summary: AgentSummary) -> AgentState {
    AgentState {
        agent_id: summary.agent_id,
        hello: Some(Hello {
            machine_id: summary.machine_id,
            hostname: summary.host,
            agent_version: summary.version,
            kernel_release: summary.kernel_release,
            architecture: summary.architecture,
            os: summary.os,
            region: summary.region,
            zone: summary.zone,
            labels: summary.labels.into_iter().collect(),
            ..Hello::default()
        }),
        heartbeat: Some(Heartbeat {
            config_version: summary.config_version,
            losses: summary.losses.into_iter().map(|(reason, rows)| Loss { reason, rows }).collect(),
            spool_bytes: summary.spool_bytes,
            memory_bytes: summary.memory_bytes,
            cpu_percent: summary.cpu_percent,
            config_pending: summary.config_pending,
            config_error: summary.config_error,
            shedding: summary.shedding,
            last_error: summary.last_error,
        }),
        silent_ms: summary.silent_for.map(|silent| u64::try_from(silent.as_millis()).unwrap_or(u64::MAX)),
        processes: u32::try_from(summary.processes).unwrap_or(u32::MAX),
        listeners: u32::try_from(summary.listeners).unwrap_or(u32::MAX),
        connections: summary.connections,
    }
}
