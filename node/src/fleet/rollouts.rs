//! Watches rollouts, and stops those whose agents report trouble.
//!
//! One node is enough: that with the lowest number among those that live. Should two think that they are it, both come to about the same.

use std::{collections::HashMap, time::Duration};

use metaflow_actors::groups::{Change, Judge, Sample, Verdict};

use super::{Agent, Fleet};
use crate::clock;

/// Between two looks.
const LOOK_INTERVAL: Duration = Duration::from_secs(3);

impl Fleet {
    /// Looks until it is aborted.
    pub(crate) async fn watch_rollouts(self) {
        let mut judges: HashMap<(String, u64), Judge> = HashMap::new();
        let mut looks = tokio::time::interval(LOOK_INTERVAL);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            let running = self.running();
            judges.retain(|rollout, _| running.contains(rollout));
            if running.is_empty() || self.peers.others().iter().any(|(node, _)| *node < self.own) {
                continue;
            }
            let Ok(gathered) = self.agents().await else { continue };
            for (group, version) in running {
                let samples = samples(&gathered.agents, &group, version, |agent| {
                    self.registry.groups().is_within(&agent.group, &group)
                });
                let judge = judges.entry((group.clone(), version)).or_default();
                if let Verdict::Stop(reason) = judge.look(clock::seconds().into(), &samples) {
                    tracing::warn!(group, version, reason, "a rollout is stopped: its agents go back");
                    if let Err(error) = self.change(Change::Stop { group, version, reason }, false).await {
                        tracing::warn!(%error, "the rollout could not be stopped");
                    }
                }
            }
        }
    }

    /// Groups with a rollout, and its version.
    fn running(&self) -> Vec<(String, u64)> {
        let groups = self.registry.groups();
        let running = groups.iter().filter_map(|(name, group)| {
            let rollout = group.rollout.as_ref().filter(|rollout| rollout.stopped.is_none())?;
            Some((name.clone(), rollout.version))
        });
        running.collect()
    }
}

fn samples(agents: &[Agent], group: &str, version: u64, is_within: impl Fn(&Agent) -> bool) -> Vec<Sample> {
    let of_group = agents.iter().filter(|agent| is_within(agent));
    of_group
        .map(|agent| {
            // Who is switched off, by an operator or by the version itself, sheds and loses everything: no sign of trouble.
            let is_off = agent.status == "disabled";
            let is_there = !is_off && matches!(agent.config_state, "applied" | "restart");
            let refused = (agent.config_state == "refused").then(|| agent.config_error.clone());
            Sample {
                agent_id: agent.agent_id,
                is_new: agent.rollouts.iter().any(|trial| trial.0 == group && trial.1 == version),
                is_there,
                refused,
                is_shedding: agent.shedding > 0,
                lost_rows: agent.lost_rows,
                connections: agent.connections,
                silent_seconds: agent.silent_seconds.unwrap_or(u64::MAX),
            }
        })
        .collect()
}
