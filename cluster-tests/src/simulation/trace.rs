//! What happened, step by step: kept short, so that a run costs little, and hashed, so that two runs can be compared.

use std::collections::VecDeque;

/// Steps that are shown of a failure.
const LAST: usize = 120;

#[derive(Debug, Default)]
pub(super) struct Trace {
    is_printed: bool,
    last: VecDeque<(u64, &'static str, [u64; 3])>,
    hash: u64,
    steps: u64,
}

impl Trace {
    pub(super) fn new(is_printed: bool) -> Self {
        Self { is_printed, ..Self::default() }
    }

    pub(super) fn step(&mut self, now: u64, what: &'static str, about: [u64; 3]) {
        self.steps += 1;
        let words = about.iter().fold(now ^ what.len() as u64, |hash, word| {
            (hash ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(17)
        });
        self.hash = (self.hash ^ words).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
        if self.is_printed {
            eprintln!("{}", line(now, what, about));
        }
        if self.last.len() == LAST {
            self.last.pop_front();
        }
        self.last.push_back((now, what, about));
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    pub(super) fn steps(&self) -> u64 {
        self.steps
    }

    pub(super) fn tail(&self) -> String {
        let lines: Vec<_> = self.last.iter().map(|(now, what, about)| line(*now, what, *about)).collect();
        lines.join("\n")
    }
}

fn line(now: u64, what: &str, [one, two, three]: [u64; 3]) -> String {
    format!("{:>7} ms  {what:<24} {one:>4} {two:>4} {three}", now)
}
