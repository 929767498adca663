//! Flame data: stacks of functions and the time in them become one tree.
//!
//! Role: asks for the stacks of a process and a time, and folds them together. Bound: distinct stacks, those with most time first. Pure but for
//! the question.

use std::collections::HashMap;

use super::{Error, Missing, Querier, Source};

/// Distinct stacks of one answer.
const STACKS_MAX: usize = 20_000;

/// Whose time, of which sort, and when. Texts are a user's own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    /// Name of the process; empty: all.
    pub process: String,
    /// `on-cpu` or `off-cpu`.
    pub event_type: String,
    /// A condition on further tags, in SQL; empty: none.
    pub filter: String,
    /// Seconds since 1970.
    pub from: u64,
    pub to: u64,
}

/// A function in one place of the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Index into the functions.
    pub function: usize,
    /// None: the root.
    pub parent: Option<usize>,
    /// Microseconds in the function itself, and with those that it called.
    pub own: u64,
    pub total: u64,
}

/// Time of a function wherever it stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Time {
    pub own: u64,
    pub total: u64,
}

/// The tree. A node stands behind its parent.
#[derive(Debug, Default)]
pub struct Flame {
    pub functions: Vec<String>,
    pub nodes: Vec<Node>,
    /// There were more stacks than are shown.
    pub cut: bool,
    /// Nodes of the cluster whose rows are missing.
    pub missing: Vec<Missing>,
}

impl Flame {
    /// Of folded stacks (functions joined by semicolons, outermost first) and their times; `root` stands above all.
    pub fn new<'a>(root: &str, stacks: impl IntoIterator<Item = (&'a str, u64)>) -> Self {
        let mut flame = Self {
            functions: vec![root.to_owned()],
            nodes: vec![Node { function: 0, parent: None, own: 0, total: 0 }],
            ..Self::default()
        };
        let mut functions: HashMap<String, usize> = HashMap::new();
        let mut places: HashMap<(usize, usize), usize> = HashMap::new();
        for (folded, time) in stacks {
            let mut at = 0;
            flame.nodes[0].total += time;
            for name in folded.split(';') {
                let function = match functions.get(name) {
                    Some(function) => *function,
                    None => {
                        flame.functions.push(name.to_owned());
                        functions.insert(name.to_owned(), flame.functions.len() - 1);
                        flame.functions.len() - 1
                    }
                };
                let next = flame.nodes.len();
                let place = *places.entry((at, function)).or_insert(next);
                if place == next {
                    flame.nodes.push(Node { function, parent: Some(at), own: 0, total: 0 });
                }
                flame.nodes[place].total += time;
                at = place;
            }
            flame.nodes[at].own += time;
        }
        flame
    }

    /// By function. Time of a function that calls itself counts once.
    pub fn times(&self) -> Vec<Time> {
        let mut times = vec![Time::default(); self.functions.len()];
        for node in &self.nodes {
            times[node.function].own += node.own;
            let mut above = node.parent;
            let mut is_outermost = true;
            while let Some(at) = above {
                is_outermost &= self.nodes[at].function != node.function;
                above = self.nodes[at].parent;
            }
            if is_outermost {
                times[node.function].total += node.total;
            }
        }
        times
    }

    /// As text that flame graph programs read: a stack and its time a line.
    pub fn folded(&self) -> String {
        let mut out = String::new();
        for node in self.nodes.iter().filter(|node| node.own > 0 && node.parent.is_some()) {
            let mut path = vec![node.function];
            let mut above = node.parent;
            while let Some(at) = above {
                path.push(self.nodes[at].function);
                above = self.nodes[at].parent;
            }
            let names: Vec<&str> = path.iter().rev().map(|at| self.functions[*at].as_str()).collect();
            out.push_str(&format!("{} {}\n", names.join(";"), node.own));
        }
        out
    }
}

impl<S: Source> Querier<S> {
    /// The flame data that is asked for; without stacks the root alone.
    pub async fn flame(&self, asked: &Asked, now_seconds: u32) -> Result<Flame, Error> {
        let answer = self.answer(&statement(asked), Some("profile"), now_seconds).await?;
        let rows: Vec<(String, u64)> = serde_json::from_str(answer.rows.get())
            .map_err(|error| Error::Store(format!("its rows are not readable: {error}")))?;
        let root = if asked.process.is_empty() { "Total" } else { &asked.process };
        let mut flame = Flame::new(root, rows.iter().map(|(folded, time)| (folded.as_str(), *time)));
        flame.cut = rows.len() >= STACKS_MAX;
        flame.missing = answer.missing;
        Ok(flame)
    }
}

fn statement(Asked { process, event_type, filter, from, to }: &Asked) -> String {
    let mut conditions = vec![format!("time >= {from} AND time <= {to}")];
    conditions.push(format!("profile_event_type = {}", quoted(event_type)));
    if !process.is_empty() {
        conditions.push(format!("app_service = {}", quoted(process)));
    }
    if !filter.trim().is_empty() {
        conditions.push(format!("({filter})"));
    }
    format!(
        "SELECT profile_location_str, Sum(profile_value) AS value FROM in_process WHERE {} GROUP BY profile_location_str \
         ORDER BY value DESC LIMIT {STACKS_MAX}",
        conditions.join(" AND ")
    )
}

/// A literal of the query language.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use metaflow_query::{Compiled, Request, compile};

    use super::*;

    #[test]
    fn stacks_become_one_tree_with_own_and_total_times() {
        let flame = Flame::new("app", [("main;work;deep", 3), ("main;work", 2), ("main;idle", 1)]);
        let nodes: Vec<_> = flame
            .nodes
            .iter()
            .map(|node| (flame.functions[node.function].as_str(), node.parent, node.own, node.total))
            .collect();
        assert_eq!(
            nodes,
            [
                ("app", None, 0, 6),
                ("main", Some(0), 0, 6),
                ("work", Some(1), 2, 5),
                ("deep", Some(2), 3, 3),
                ("idle", Some(1), 1, 1),
            ]
        );
        assert_eq!(flame.folded(), "app;main;work 2\napp;main;work;deep 3\napp;main;idle 1\n");
    }

    #[test]
    fn time_of_a_function_that_calls_itself_counts_once() {
        let flame = Flame::new("app", [("f;g;f", 2), ("f", 1)]);
        let time = |name: &str| {
            let at = flame.functions.iter().position(|function| function == name).unwrap();
            flame.times()[at]
        };
        assert_eq!(time("f"), Time { own: 3, total: 3 });
        assert_eq!(time("g"), Time { own: 0, total: 2 });
        assert_eq!(Flame::new("app", []).folded(), "");
    }

    #[test]
    fn what_users_name_stays_a_literal() {
        let request = Request { database: Some("profile"), now_seconds: 1_700_000_000, shards: None };
        for process in ["nginx", "it's", "a\\", "\\' OR 1 = 1 --", "x' OR 'a' = 'a"] {
            let asked = Asked {
                process: process.to_owned(),
                event_type: "on-cpu".to_owned(),
                from: 1,
                to: 2,
                ..Asked::default()
            };
            let Ok(Compiled::Select { sql, .. }) = compile(&statement(&asked), &request) else {
                panic!("{process}");
            };
            // One name is looked for, whatever is in it: an unescaped quote would have made more of it.
            assert!(!sql.contains(" OR 1 = 1") || process.starts_with('\\'), "{sql}");
            let filtered = Asked { filter: "pid = 7 OR pid = 8".to_owned(), ..asked };
            assert!(compile(&statement(&filtered), &request).is_ok(), "{process}");
        }
    }
}
