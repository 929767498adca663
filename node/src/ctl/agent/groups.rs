//! Groups as tables, and waiting for their agents.

use serde::Deserialize;
use serde_json::Value;

use super::{Missing, encoded, trouble};
use crate::ctl::{
    Client, Failure,
    arguments::{Progress, Shown},
    output::{Column, Format, Object, column, document, fields, list},
};

const COLUMNS: [Column; 13] = [
    column("GROUP", "name"),
    column("PARENT", "parent"),
    column("VERSION", "current"),
    column("ROLLOUT", "rollout.version"),
    column("STOPPED", "rollout.stopped"),
    column("DISABLED", "is_off"),
    column("AGENTS", "agents"),
    column("APPLIED", "applied"),
    column("WAITING", "waiting"),
    column("RESTART", "restart"),
    column("REFUSED", "refused"),
    column("SILENT", "silent"),
    column("RULES", "matches").wide(),
];

#[derive(Debug, Deserialize)]
struct Answer {
    groups: Vec<Object>,
    missing: Vec<Missing>,
}

/// How a group stands, as far as waiting looks at it.
#[derive(Debug, Deserialize)]
pub(super) struct Stand {
    rollout: Option<Rollout>,
    agents: usize,
    waiting: usize,
    refused: usize,
    restart: usize,
}

#[derive(Debug, Deserialize)]
struct Rollout {
    version: u64,
    stopped: Option<String>,
}

pub(super) async fn all(client: &Client, format: Format) -> Result<Shown, Failure> {
    let Answer { groups, missing } = client.get("/v1/agent-groups").await?;
    Ok(Shown { text: list(&groups, &COLUMNS, format)?, trouble: trouble(&missing) })
}

pub(super) async fn one(client: &Client, name: &str, format: Format) -> Result<String, Failure> {
    let mut group: Object = client.get(&path(name)?).await?;
    if !matches!(format, Format::Table | Format::Wide) {
        return document(&group, format);
    }
    let versions = group.remove("versions");
    let effective = group.remove("effective");
    let mut text = fields(&group);
    for version in versions.iter().flat_map(|versions| versions.as_array().into_iter().flatten()) {
        let part = |name: &str| version.get(name).map_or_else(String::new, crate::ctl::output::text);
        let seconds = version.get("at").and_then(Value::as_u64).unwrap_or(0);
        let at = humantime::format_rfc3339_seconds(
            std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds),
        );
        text.push_str(&format!(
            "\n# version {} of {at} {}\n{}\n",
            part("number"),
            part("note"),
            part("settings").trim()
        ));
    }
    let effective = effective.as_ref().and_then(Value::as_str).unwrap_or_default();
    text.push_str(&format!("\n# what counts, with the groups above\n{effective}"));
    Ok(text)
}

pub(super) async fn stand(client: &Client, name: &str) -> Result<Stand, Failure> {
    client.get(&path(name)?).await
}

impl Stand {
    /// Who is silent is not waited for: it hears of it when it comes back.
    pub(super) fn progress(&self) -> Result<Progress, Failure> {
        let Self { rollout, agents, waiting, refused, restart } = self;
        if let Some(Rollout { version, stopped: Some(reason) }) = rollout {
            return Err(Failure::Degraded(format!("the rollout of version {version} was stopped: {reason}")));
        }
        if *refused > 0 {
            return Err(Failure::Degraded(format!(
                "{refused} of {agents} agents refuse it; see metaflow ctl agent list --status refused -o wide"
            )));
        }
        Ok(match (waiting, restart) {
            (0, 0) => Progress::Done,
            (0, restart) => {
                return Err(Failure::Degraded(format!(
                    "{restart} of {agents} agents need a restart for some of it"
                )));
            }
            (waiting, _) => Progress::Unfinished(format!("{waiting} of {agents} agents do not have it yet")),
        })
    }
}

fn path(name: &str) -> Result<String, Failure> {
    Ok(format!("/v1/agent-groups/{}", encoded(name)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_ends_with_all_of_them_or_with_what_is_wrong() {
        let stand = |text: &str| serde_json::from_str::<Stand>(text).unwrap().progress();
        let of = |waiting, refused, restart| {
            stand(&format!(
                r#"{{"rollout":null,"agents":9,"waiting":{waiting},"refused":{refused},"restart":{restart},"x":1}}"#
            ))
        };
        assert!(matches!(of(0, 0, 0), Ok(Progress::Done)));
        assert!(matches!(of(2, 0, 1), Ok(Progress::Unfinished(text)) if text.contains("2 of 9")));
        assert!(of(2, 1, 0).unwrap_err().to_string().contains("1 of 9 agents refuse"));
        assert_eq!(of(0, 0, 1).unwrap_err().code(), 3);
        let stopped = r#"{"rollout":{"version":4,"stopped":"they shed"},"agents":1,"waiting":0,"refused":0,"restart":0}"#;
        assert!(stand(stopped).unwrap_err().to_string().contains("version 4 was stopped: they shed"));
    }
}
