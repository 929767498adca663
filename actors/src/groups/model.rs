//! What documents of groups and agents say.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::placement::text_hash;

/// The group of whom no other takes; it is always there.
pub const ROOT: &str = "default";

/// What keys of documents begin with.
pub(super) const GROUP_KEY: &str = "group/";
pub(super) const AGENT_KEY: &str = "agent/";

/// Versions that a group remembers.
pub(super) const VERSIONS_MAX: usize = 10;

/// A newer release may write more than this one knows: it is left out, not refused.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Group {
    /// Empty: the root.
    pub parent: String,
    pub matches: Matches,
    /// The oldest first.
    pub versions: Vec<Version>,
    /// The number of the version that counts; 0: none.
    pub current: u64,
    pub rollout: Option<Rollout>,
    /// The kill switch.
    pub is_off: bool,
}

impl Group {
    pub fn version(&self, number: u64) -> Option<&Version> {
        self.versions.iter().find(|version| version.number == number)
    }

    pub fn parent(&self) -> &str {
        if self.parent.is_empty() { ROOT } else { &self.parent }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Version {
    pub number: u64,
    /// TOML, as it was given.
    pub settings: String,
    /// Seconds since 1970.
    pub at: u32,
    pub note: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rollout {
    pub version: u64,
    pub share: Share,
    pub at: u32,
    /// Why it was stopped: its agents are back on the version that counts.
    pub stopped: Option<String>,
}

/// A share of agents in hundredths of a percent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Share(pub u16);

impl Share {
    pub const ALL: Self = Self(10_000);

    /// Whether an agent of the group is in it. The same ones always come first, and a larger share has all of a smaller one.
    pub fn has(self, group: &str, machine_id: &str) -> bool {
        let place = text_hash(text_hash(0, group), machine_id) % u64::from(Self::ALL.0);
        place < u64::from(self.0)
    }
}

impl std::str::FromStr for Share {
    type Err = String;

    /// `10%`, `0.5%`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no share of agents such as 10% or 0.5%");
        let percent: f64 = text.trim().trim_end_matches('%').trim().parse().map_err(|_| wrong())?;
        let is_share = (0.01..=100.0).contains(&percent);
        if is_share { Ok(Self((percent * 100.0).round() as u16)) } else { Err(wrong()) }
    }
}

impl std::fmt::Display for Share {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}%", f64::from(self.0) / 100.0)
    }
}

/// Which agents a group takes: all of its rules must be met, and one entry of each. Without a rule it takes whom it is given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Matches {
    /// With `*` for any text and `?` for any character.
    pub hostname: Vec<String>,
    pub region: Vec<String>,
    pub zone: Vec<String>,
    /// All of them.
    pub labels: BTreeMap<String, String>,
}

impl Matches {
    pub fn is_empty(&self) -> bool {
        let Self { hostname, region, zone, labels } = self;
        hostname.is_empty() && region.is_empty() && zone.is_empty() && labels.is_empty()
    }

    pub fn meets(&self, who: &Who) -> bool {
        let Self { hostname, region, zone, labels } = self;
        let one_of = |wanted: &[String], is: &str| wanted.is_empty() || wanted.iter().any(|one| one == is);
        !self.is_empty()
            && (hostname.is_empty() || hostname.iter().any(|glob| is_like(&who.hostname, glob)))
            && one_of(region, &who.region)
            && one_of(zone, &who.zone)
            && labels.iter().all(|(name, value)| who.labels.get(name) == Some(value))
    }
}

/// What operators said of one agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Assigned {
    pub group: Option<String>,
    pub is_off: bool,
}

impl Assigned {
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// An agent, as far as groups look at it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Who {
    pub machine_id: String,
    pub hostname: String,
    pub region: String,
    pub zone: String,
    pub labels: BTreeMap<String, String>,
}

impl From<&metaflow_wire::Hello> for Who {
    fn from(hello: &metaflow_wire::Hello) -> Self {
        Self {
            machine_id: hello.machine_id.clone(),
            hostname: hello.hostname.clone(),
            region: hello.region.clone(),
            zone: hello.zone.clone(),
            labels: hello.labels.clone().into_iter().collect(),
        }
    }
}

pub(super) fn read<T: DeserializeOwned>(key: &str, body: &str) -> Option<T> {
    let read = serde_json::from_str(body);
    if let Err(error) = &read {
        tracing::warn!(key, %error, "a document cannot be read");
    }
    read.ok()
}

/// Whether a text is as a pattern says: `*` is any text, `?` one character. Linear in practice, never worse than the product.
fn is_like(text: &str, pattern: &str) -> bool {
    let (text, pattern): (Vec<char>, Vec<char>) = (text.chars().collect(), pattern.chars().collect());
    let (mut at, mut of, mut star) = (0, 0, None);
    while at < text.len() {
        if pattern.get(of) == Some(&'*') {
            star = Some((of, at));
            of += 1;
        } else if pattern.get(of).is_some_and(|wanted| *wanted == '?' || *wanted == text[at]) {
            (at, of) = (at + 1, of + 1);
        } else if let Some((star_of, taken)) = star {
            star = Some((star_of, taken + 1));
            (at, of) = (taken + 1, star_of + 1);
        } else {
            return false;
        }
    }
    pattern[of..].iter().all(|left| *left == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_shells_do() {
        let check = |pattern: &str, text: &str, expected| {
            assert_eq!(is_like(text, pattern), expected, "{pattern} {text}");
        };
        check("web-*", "web-1", true);
        check("web-*", "web-", true);
        check("web-*", "aweb-1", false);
        check("*.eu.*", "a.b.eu.c", true);
        check("w?b", "wéb", true);
        check("w?b", "wb", false);
        check("*a*b*c", "xxaxxbxxbxxc", true);
        check("*a*b*c", "xxaxxcxxb", false);
        check("", "", true);
        check("", "a", false);
        check(&"*a".repeat(50), &"a".repeat(5_000), true);
    }

    #[test]
    fn shares_read_as_people_write_them() {
        for (text, share) in [("10%", 1_000), ("0.5 %", 50), ("100", 10_000), ("0.01%", 1)] {
            assert_eq!(text.parse(), Ok(Share(share)), "{text}");
        }
        assert_eq!((Share(1_000).to_string(), Share(50).to_string()), ("10%".to_owned(), "0.5%".to_owned()));
        for text in ["", "0%", "101%", "-1%", "ten", "NaN"] {
            assert!(text.parse::<Share>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_larger_share_has_all_of_a_smaller_one_and_about_as_many_as_it_says() {
        let agents: Vec<String> = (0..10_000).map(|at| format!("machine-{at}")).collect();
        let of = |share: Share| agents.iter().filter(|agent| share.has("web", agent)).count();
        assert!((900..1_100).contains(&of(Share(1_000))), "{}", of(Share(1_000)));
        assert_eq!(of(Share::ALL), agents.len());
        assert!(agents.iter().all(|agent| !Share(100).has("web", agent) || Share(1_000).has("web", agent)));
        let others = |agent: &&String| Share(1_000).has("web", agent) != Share(1_000).has("db", agent);
        assert!(agents.iter().filter(others).count() > 1_000, "each group tries on others");
    }
}
