//! What is wrong with this node, its machine and its store, and what to do about it.
//!
//! Each check measures something real, then judges it by a rule without IO, so that every rule has a test. Nothing is changed but one
//! small file that is written, synced and removed. Leaves out what only shows over time: that is for metrics and alerts.

mod host;
mod judge;
mod net;
mod store;

use serde::Serialize;
use serde_json::json;

use super::Answer;
use crate::node::Parts;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Health {
    Ok,
    /// It works, and will not for ever.
    Warn,
    Fail,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Check {
    check: &'static str,
    health: Health,
    /// What was found, and what it means.
    found: String,
    /// What to do; empty when there is nothing to do.
    advice: String,
}

impl Check {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, health: Health::Ok, found: found.into(), advice: String::new() }
    }

    fn warn(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, health: Health::Warn, found: found.into(), advice: advice.into() }
    }

    fn fail(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, health: Health::Fail, found: found.into(), advice: advice.into() }
    }
}

/// Makes all checks.
pub(super) async fn examine(parts: &Parts) -> Answer {
    let mut checks = net::sockets(parts).await;
    checks.extend(net::gossip(parts));
    checks.extend(net::peers(parts));
    checks.extend(host::disk(parts).await);
    checks.push(host::files(parts));
    checks.extend(host::certificates(parts));
    checks.extend(store::store(parts).await);
    checks.extend(store::state(parts));
    let worst = checks.iter().map(|check| check.health).max().unwrap_or(Health::Ok);
    Ok(json!({ "health": worst, "checks": checks }))
}
