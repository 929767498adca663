//! Why an agent is where it is: what placement says of its shard, and where it really is.

use std::time::Instant;

use metaflow_actors::placement::{
    Candidate, Load, Placement, ShardId, Verdict, shard_of,
    view::{State, held_back_for},
};
use serde_json::{Map, Value, json};

use super::{Answer, Answered, Arguments, Failure, Topic, gather, unanswered};
use crate::{
    membership::{Member, View},
    node::Parts,
};

/// An agent as the nodes know it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Subject {
    agent_id: u32,
    host: String,
    /// What the agent said of its region.
    region: String,
    /// Nodes that it is connected to, and since when in seconds.
    connected: Vec<(u16, u64)>,
    /// Nodes that know it, and how long they have not heard of it.
    known: Vec<(u16, Option<u64>)>,
}

/// Explains the place of an agent, named by its id, its host or its machine id.
pub(crate) async fn explain(parts: &Parts, arguments: &Arguments) -> Answer {
    let wanted = arguments.text("agent")?.to_owned();
    let answers = gather(parts, Topic::Agent, &Arguments::default().with("agent", &wanted)).await?;
    let subject = subject(&wanted, &answers)?;
    let running = parts.started()?;
    let guide = running.guides.borrow().clone();
    let view = parts.membership().view().borrow().clone();
    let region = if subject.region.is_empty() { guide.region().to_owned() } else { subject.region.clone() };
    let shard = shard_of(subject.agent_id);
    let candidates = match guide.placement() {
        None => vec![],
        Some(placement) => candidates(placement, &view, &subject, &region, shard),
    };
    let in_region = guide.placement().is_none_or(|placement| placement.explain(&region, shard).in_region);
    Ok(json!({
        "agent_id": subject.agent_id,
        "host": subject.host,
        "shard": shard.get(),
        "region": region,
        "region_is_served": in_region,
        "connected_to": subject.connected.iter().map(|(node, _)| name(&view, *node)).collect::<Vec<_>>(),
        "conclusion": conclusion(&candidates, &subject, &view),
        "candidates": candidates,
        "unanswered": unanswered(&answers),
    }))
}

/// Joins what the nodes know. A name that two agents have is refused with their ids.
fn subject(wanted: &str, answers: &[Answered]) -> Result<Subject, Failure> {
    let mut subject: Option<Subject> = None;
    let mut ids = Vec::new();
    for answered in answers {
        let agents = answered.answer.iter().filter_map(|answer| answer["agents"].as_array()).flatten();
        for agent in agents {
            let Some(id) = agent["agent_id"].as_u64().and_then(|id| u32::try_from(id).ok()) else { continue };
            if !ids.contains(&id) {
                ids.push(id);
            }
            let subject = subject.get_or_insert_with(|| Subject { agent_id: id, ..Subject::default() });
            let text = |name: &str| agent[name].as_str().unwrap_or_default().to_owned();
            subject.host = text("host");
            subject.known.push((answered.node_id, agent["silent_seconds"].as_u64()));
            if let Some(since) = agent["connected_seconds"].as_u64() {
                subject.connected.push((answered.node_id, since));
                subject.region = text("region");
            }
        }
    }
    if ids.len() > 1 {
        let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
        return Err(Failure::Wrong(format!(
            "{wanted:?} names several agents: say which of {}",
            ids.join(", ")
        )));
    }
    match (subject, wanted.parse()) {
        (Some(subject), _) => Ok(subject),
        // Placement is a matter of the number alone.
        (None, Ok(agent_id)) => Ok(Subject { agent_id, ..Subject::default() }),
        (None, Err(_)) => Err(Failure::Wrong(format!(
            "no node knows an agent {wanted:?}; give its id, its host's name or its machine id as `agent list` shows them"
        ))),
    }
}

fn candidates(
    placement: &Placement,
    view: &View,
    subject: &Subject,
    region: &str,
    shard: ShardId,
) -> Vec<Value> {
    let loads = placement.shard_loads(region);
    let row = |candidate: &Candidate| {
        let id = candidate.node_id.get();
        let member = view.member(id);
        let load = loads.iter().find(|load| load.node_id == candidate.node_id);
        let mut row = Map::new();
        let mut put = |name: &str, value: Value| row.insert(name.to_owned(), value);
        put("node_id", id.into());
        put("name", name(view, id).into());
        put("zone", member.map_or("", |member| &member.facts.zone).into());
        put("region", member.map_or("", |member| &member.facts.region).into());
        put("verdict", word(candidate.verdict).into());
        put("why", why(candidate.verdict, load, member).into());
        put("shards", load.map(|load| load.first).into());
        put("bound", load.map(|load| load.capacity).into());
        let find =
            |list: &[(u16, u64)]| list.iter().find(|(node, _)| *node == id).map(|(_, seconds)| *seconds);
        put("connected_seconds", find(&subject.connected).into());
        let silent = subject.known.iter().find(|(node, _)| *node == id).and_then(|(_, silent)| *silent);
        put("silent_seconds", silent.into());
        Value::Object(row)
    };
    placement.explain(region, shard).candidates.iter().map(row).collect()
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Primary => "primary",
        Verdict::Fallback => "fallback",
        Verdict::LastResort => "last resort",
        Verdict::Full => "full",
        Verdict::ZoneUsed => "zone used",
        Verdict::NotNeeded => "not needed",
        Verdict::NotReady(_) => "not ready",
        Verdict::HeldBack => "held back",
        Verdict::OtherRegion => "other region",
    }
}

fn why(verdict: Verdict, load: Option<&Load>, member: Option<&Member>) -> String {
    match verdict {
        Verdict::Primary => "serves the agent".to_owned(),
        Verdict::Fallback => "serves it when the ones before do not answer".to_owned(),
        Verdict::LastResort => "serves it when its whole region does not answer".to_owned(),
        Verdict::Full => match load {
            Some(load) => format!("has {} shards and may have {}", load.first, load.capacity),
            None => "has as many shards as it may have".to_owned(),
        },
        Verdict::ZoneUsed => {
            "its zone has a more preferred node, and stand-ins are in other zones".to_owned()
        }
        Verdict::NotNeeded => "the places are taken by more preferred nodes".to_owned(),
        Verdict::NotReady(State::Starting) => "it is starting".to_owned(),
        Verdict::NotReady(state) => format!("it is {}: it takes nothing new", state.name()),
        Verdict::HeldBack => match member {
            Some(Member { ready_since: Some(since), flaps, .. }) => format!(
                "it has been ready for {} s and went away {flaps} times lately: it is given work after {} s",
                Instant::now().saturating_duration_since(*since).as_secs(),
                held_back_for(*flaps).as_secs()
            ),
            _ => "it has not been ready for long enough".to_owned(),
        },
        Verdict::OtherRegion => "agents stay in their region while it has a ready node".to_owned(),
    }
}

/// One sentence: whether the agent is where it belongs.
fn conclusion(candidates: &[Value], subject: &Subject, view: &View) -> String {
    let primary = candidates.iter().find(|candidate| candidate["verdict"] == "primary");
    let place = candidates.iter().find(|candidate| !candidate["connected_seconds"].is_null());
    let is_at = |node: &str| format!("it is connected to {node}");
    match (primary, place) {
        _ if candidates.is_empty() && subject.connected.is_empty() => {
            "one node of the cluster is alive; the agent is not connected to it".to_owned()
        }
        _ if candidates.is_empty() => {
            "one node of the cluster is alive, and it is connected to it".to_owned()
        }
        _ if subject.known.is_empty() => {
            "no node knows this agent; this is where it would be served".to_owned()
        }
        (None, _) => "no node is ready: agents stay where they are".to_owned(),
        (Some(primary), Some(place)) if primary["node_id"] == place["node_id"] => {
            format!("{}, where it belongs", is_at(text(primary, "name")))
        }
        (Some(primary), Some(place)) => format!(
            "{} ({}), and is told to go to {}: it goes within some seconds, at a moment of its own, unless it cannot reach it",
            is_at(text(place, "name")),
            text(place, "verdict"),
            text(primary, "name")
        ),
        (Some(primary), None) => {
            let last = subject.known.iter().filter_map(|(node, silent)| Some((silent.as_ref()?, node))).min();
            let heard = last.map_or_else(
                || "was not heard since the nodes started".to_owned(),
                |(silent, node)| format!("was last heard {silent} s ago by {}", name(view, *node)),
            );
            format!(
                "it is not connected to a node that answers; it {heard}, and belongs to {}",
                text(primary, "name")
            )
        }
    }
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

fn name(view: &View, node: u16) -> String {
    view.member(node).map_or_else(|| format!("node {node}"), |member| member.facts.name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(node_id: u16, agents: Value) -> Answered {
        let answer = Ok(json!({ "agents": agents }));
        Answered { node_id, name: format!("n{node_id}"), answer }
    }

    #[test]
    fn what_several_nodes_know_of_an_agent_is_joined() {
        let known =
            json!([{ "agent_id": 7, "host": "web", "silent_seconds": 40, "connected_seconds": null }]);
        let here = json!([{ "agent_id": 7, "host": "web", "region": "eu", "silent_seconds": 1, "connected_seconds": 12 }]);
        let silent = Answered { answer: Err("dead".to_owned()), ..answered(3, json!([])) };
        let found = subject("web", &[answered(1, known), answered(2, here), silent]).unwrap();
        assert_eq!(found.connected, [(2, 12)]);
        assert_eq!(found.known, [(1, Some(40)), (2, Some(1))]);
        assert_eq!((found.agent_id, found.region.as_str()), (7, "eu"));

        let other = json!([{ "agent_id": 8, "host": "web" }]);
        let both = [answered(1, json!([{ "agent_id": 7, "host": "web" }])), answered(2, other)];
        assert!(subject("web", &both).unwrap_err().to_string().contains("7, 8"));
        assert!(subject("web", &[]).unwrap_err().to_string().contains("no node knows"));
        assert_eq!(subject("9", &[]).unwrap(), Subject { agent_id: 9, ..Subject::default() });
    }

    #[test]
    fn the_conclusion_says_where_the_agent_is_and_belongs() {
        let view = View { cluster: String::new(), own: 1, members: vec![], duplicates: vec![] };
        let candidate = |node_id: u16, verdict: &str, connected: Option<u64>| json!({ "node_id": node_id, "name": format!("n{node_id}"), "verdict": verdict, "connected_seconds": connected });
        let known = Subject { known: vec![(1, Some(3))], ..Subject::default() };
        let check = |candidates: &[Value], subject: &Subject, part: &str| {
            let text = conclusion(candidates, subject, &view);
            assert!(text.contains(part), "{text}");
        };
        check(&[candidate(1, "primary", Some(1))], &known, "n1, where it belongs");
        check(
            &[candidate(1, "primary", None), candidate(2, "fallback", Some(1))],
            &known,
            "told to go to n1",
        );
        check(&[candidate(1, "primary", None)], &known, "last heard 3 s ago by node 1");
        check(&[candidate(1, "primary", None)], &Subject::default(), "no node knows");
        check(&[candidate(1, "not ready", None)], &known, "no node is ready");
        check(&[], &known, "one node of the cluster is alive");
    }
}
