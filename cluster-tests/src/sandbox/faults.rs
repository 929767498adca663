//! What is done to the cluster, drawn from the seed.

use std::time::Duration;

use anyhow::Result;
use tokio::time::Instant;

use super::{AGENTS, Sandbox, store_place};
use crate::simulation::Random;

/// What is mended when, and what is started again.
enum Mend {
    Line(usize, usize),
    Node(usize),
}

impl Sandbox {
    /// Harms the cluster for a while; answers how often.
    pub(super) async fn harm(&mut self, random: &mut Random, within: Duration) -> Result<u32> {
        let end = Instant::now() + within;
        let mut mends: Vec<(Instant, Mend)> = Vec::new();
        let mut faults = 0;
        while Instant::now() < end {
            self.fault(random, &mut mends);
            faults += 1;
            tokio::time::sleep(Duration::from_millis(random.between(100, 700))).await;
            let now = Instant::now();
            for at in (0..mends.len()).rev() {
                if mends[at].0 <= now {
                    match mends.swap_remove(at).1 {
                        Mend::Line(from, to) => self.lines.mend(from, to),
                        Mend::Node(node) => self.members[node].start()?,
                    }
                }
            }
        }
        Ok(faults)
    }

    fn fault(&mut self, random: &mut Random, mends: &mut Vec<(Instant, Mend)>) {
        let nodes = self.members.len();
        let node = random.index(nodes);
        let other = (node + 1 + random.index(nodes - 1)) % nodes;
        let agent = nodes + random.index(AGENTS);
        let store = store_place(nodes);
        let lasts = Duration::from_millis(random.between(200, 2_500));
        let until = Instant::now() + lasts;
        let delay = Duration::from_millis(random.between(5, 400));
        let mut lines = Vec::new();
        match random.below(100) {
            // Both ways, or one.
            0..15 => lines.extend([(node, other), (other, node)]),
            15..30 => lines.push((node, other)),
            30..38 => {
                lines.extend((0..nodes).filter(|to| *to != node).flat_map(|to| [(node, to), (to, node)]))
            }
            38..48 => lines.push(if random.percent(50) { (agent, node) } else { (node, agent) }),
            48..58 => lines.push(if random.percent(50) { (store, node) } else { (node, store) }),
            58..68 => self.lines.lose_answer(node, store),
            68..74 => self.lines.lose_answer(agent, node),
            74..78 => self.lines.lose_answer(node, other),
            78..88 => {
                for (from, to) in [(node, other), (node, store), (agent, node)] {
                    self.lines.slow(from, to, delay);
                    mends.push((until, Mend::Line(from, to)));
                }
            }
            _ => {
                self.members[node].kill();
                mends.push((until, Mend::Node(node)));
            }
        }
        for (from, to) in lines {
            self.lines.cut(from, to);
            mends.push((until, Mend::Line(from, to)));
        }
    }
}
