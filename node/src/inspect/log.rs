//! What happened and was said lately, and what the node runs with.

use serde_json::{Value, json};

use super::{Answer, Arguments, Failure};
use crate::{events, logging, node::Parts};

/// Events and lines of one answer.
const EVENTS_MAX: usize = 500;
const LINES_MAX: usize = 2_000;

/// The latest events. `after` is what the last answer said under `next`, for this node by its id: `1:17,2:55`.
pub(super) fn events(parts: &Parts, arguments: &Arguments) -> Answer {
    let kind = match arguments.get("kind") {
        None => None,
        Some(name) => Some(events::Kind::from_name(name).ok_or_else(|| {
            let names: Vec<_> = events::Kind::ALL.iter().map(|kind| kind.name()).collect();
            Failure::Wrong(format!(
                "there are no events of the kind {name:?}; kinds are {}",
                names.join(", ")
            ))
        })?),
    };
    let events_max = arguments.number("limit", EVENTS_MAX)?.min(EVENTS_MAX);
    let own = parts.config().node_id;
    let after = arguments.get("after").map_or(Ok(0), |after| after_of(after, own))?;
    let (events, next) = parts.events().after(after, kind, events_max);
    Ok(json!({ "events": events, "next": next }))
}

fn after_of(text: &str, own: u16) -> Result<u64, Failure> {
    let wrong = || Failure::Wrong(format!("after = {text:?}: write NODE:NUMBER,..., as `next` says"));
    let mut after = 0;
    for part in text.split(',') {
        let (node, number) = part.split_once(':').ok_or_else(wrong)?;
        let number = number.parse().map_err(|_| wrong())?;
        if node.parse::<u16>().map_err(|_| wrong())? == own {
            after = number;
        }
    }
    Ok(after)
}

/// The latest lines of the log.
pub(super) fn lines(arguments: &Arguments) -> Answer {
    let lines_max = arguments.number("limit", LINES_MAX)?.min(LINES_MAX);
    Ok(json!({ "lines": logging::latest(lines_max) }))
}

/// What the node runs with, without secrets: passwords print as `(hidden)`, and keys and tokens are named by their files only.
pub(super) fn settings(parts: &Parts) -> Value {
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "disk_format": metaflow_actors::disk::FORMAT,
        "protocol": [metaflow_wire::PROTOCOL_VERSION_OLDEST, metaflow_wire::PROTOCOL_VERSION],
        "configuration": format!("{:#?}", parts.config()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_finds_its_own_number() {
        assert_eq!(after_of("1:17,2:55", 2).unwrap(), 55);
        assert_eq!(after_of("1:17", 2).unwrap(), 0);
        for wrong in ["17", "x:1", "1:x", "1:1,", ""] {
            assert!(after_of(wrong, 1).unwrap_err().to_string().contains("NODE:NUMBER"), "{wrong}");
        }
    }
}
