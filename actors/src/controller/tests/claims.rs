//! Agents say which ids they have, to any node and whether it is true or not: an id names one machine, whoever asks.

use proptest::prelude::*;

use super::*;
use crate::dictionary::Entry;
use crate::disk::Memory;

const NODES: usize = 3;
const MACHINES: usize = 4;

#[derive(Debug, Clone)]
enum Step {
    /// An agent comes with what it was given last, or with nothing.
    Come { node: usize, machine: usize, remembers: bool },
    /// An agent says that it has an id, of any node and any counter.
    Claim { node: usize, machine: usize, id: u32 },
    /// A node hears all that another one knows.
    Tell { from: usize, to: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (node, machine) = (0..NODES, 0..MACHINES);
    let step = prop_oneof![
        3 => (node.clone(), machine.clone(), any::<bool>())
            .prop_map(|(node, machine, remembers)| Step::Come { node, machine, remembers }),
        // Counters that the nodes come to, now or later.
        3 => (node.clone(), machine, 1..=NODES as u32, 1..=MACHINES as u32)
            .prop_map(|(node, machine, giver, counter)| Step::Claim { node, machine, id: giver << 22 | counter }),
        1 => (node.clone(), node).prop_map(|(from, to)| Step::Tell { from, to }),
    ];
    proptest::collection::vec(step, 1..40)
}

fn machine_id(machine: usize) -> String {
    format!("machine-{machine}")
}

/// Everything that some node may know.
fn known(dictionary: &Dictionary) -> Vec<Entry> {
    let ids = (1..=NODES as u32).flat_map(|node| (1..=4 * MACHINES as u32).map(move |at| node << 22 | at));
    let named = ids.filter_map(|id| Some((id, dictionary.resolve(Kind::Agent, id).unwrap()?)));
    named.map(|(id, name)| Entry { kind: Kind::Agent, id, name }).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn no_word_of_an_agent_gives_an_id_a_second_name(steps in steps()) {
        let nodes: Vec<Dictionary> = (1..=NODES as u16)
            .map(|number| {
                let config = dictionary::Config::new(NodeId::new(number).unwrap());
                Dictionary::open(Disk::in_memory(&Memory::default()), config, &HashMap::new()).unwrap()
            })
            .collect();
        // What nodes signed.
        let mut given: Vec<(u32, usize)> = Vec::new();
        let mut greet = |node: usize, machine: usize, agent_id: u32| {
            let hello = wire::Hello { agent_id, ..hello(&machine_id(machine)) };
            let introduction = Introduction { hello, is_proven: given.contains(&(agent_id, machine)) };
            let told = identify(&nodes[node], introduction).unwrap();
            if !given.contains(&(told, machine)) {
                given.push((told, machine));
            }
            told
        };
        let mut last = [0; MACHINES];
        for step in steps {
            match step {
                Step::Come { node, machine, remembers } => {
                    let had = if remembers { last[machine] } else { 0 };
                    let told = greet(node, machine, had);
                    prop_assert!(had == 0 || told == had, "{machine} had {had:#x}, now it is {told:#x}");
                    last[machine] = told;
                }
                Step::Claim { node, machine, id } => {
                    greet(node, machine, id);
                }
                Step::Tell { from, to } => {
                    nodes[to].learn(&known(&nodes[from]), false).unwrap();
                }
            }
        }
        for from in &nodes {
            for to in &nodes {
                let told = to.learn(&known(from), false).unwrap();
                prop_assert_eq!(told.conflicts, 0);
            }
        }
        prop_assert!(nodes.iter().all(|node| node.conflicts() == 0));
    }
}
