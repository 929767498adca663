//! Groups as operators change them, and what agents get of it.

use super::*;
use crate::{dictionary::NodeId, disk::Disk};

struct Rig {
    registry: Registry,
    _folder: tempfile::TempDir,
}

impl Rig {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::open(folder.path()).unwrap();
        Self { registry: Registry::open(disk, NodeId::new(1).unwrap()).unwrap(), _folder: folder }
    }

    fn change(&self, change: &Change) -> Plan {
        self.registry.change(change, 1).unwrap().0
    }

    fn refused(&self, change: &Change) -> String {
        self.registry.change(change, 1).unwrap_err().to_string()
    }

    fn group(&self, name: &str, parent: &str, matches: Matches) {
        self.change(&Change::Group { name: name.to_owned(), parent: parent.to_owned(), matches });
    }

    fn set(&self, group: &str, settings: &str, share: Option<Share>) -> Plan {
        self.change(&set(group, settings, share))
    }

    fn wanted(&self, who: &Who) -> Wanted {
        self.registry.groups().wanted(who)
    }
}

fn set(group: &str, settings: &str, share: Option<Share>) -> Change {
    Change::Set { group: group.to_owned(), settings: settings.to_owned(), share, note: String::new() }
}

fn hosts(globs: &[&str]) -> Matches {
    Matches { hostname: globs.iter().map(|glob| (*glob).to_owned()).collect(), ..Matches::default() }
}

fn who(host: &str) -> Who {
    Who { machine_id: format!("id-{host}"), hostname: host.to_owned(), ..Who::default() }
}

#[test]
fn an_agent_belongs_where_it_is_assigned_else_to_the_deepest_rule_else_to_the_root() {
    let rig = Rig::new();
    rig.group("web", "", hosts(&["web-*"]));
    rig.group("web-eu", "web", Matches { region: vec!["eu".to_owned()], ..hosts(&["web-*"]) });
    rig.group(
        "team",
        "",
        Matches { labels: [("team".to_owned(), "shop".to_owned())].into(), ..Matches::default() },
    );
    let check = |who: &Who, group: &str| assert_eq!(&*rig.wanted(who).group, group, "{who:?}");
    check(&who("db-1"), "default");
    check(&who("web-1"), "web");
    check(&Who { region: "eu".to_owned(), ..who("web-1") }, "web-eu");
    check(&Who { labels: [("team".to_owned(), "shop".to_owned())].into(), ..who("db-1") }, "team");
    rig.change(&Change::Assign { agents: vec!["id-db-1".to_owned()], group: Some("web".to_owned()) });
    check(&who("db-1"), "web");
    rig.change(&Change::Assign { agents: vec!["id-db-1".to_owned()], group: None });
    check(&who("db-1"), "default");
}

#[test]
fn children_inherit_and_win_and_unchanged_configuration_keeps_its_version() {
    let rig = Rig::new();
    rig.group("web", "", hosts(&["web-*"]));
    assert_eq!(rig.wanted(&who("web-1")).config.version, 0, "nothing is set");
    rig.set("default", "[guard]\ncpu_percent_max = 50\nmemory_max = \"128 MiB\"", None);
    rig.set("web", "[guard]\ncpu_percent_max = 20", None);
    let (web, other) = (rig.wanted(&who("web-1")), rig.wanted(&who("db-1")));
    assert_eq!((web.version.as_str(), other.version.as_str()), ("web@1", "default@1"));
    assert!(web.config.toml.contains("cpu_percent_max = 20") && web.config.toml.contains("128 MiB"));
    assert!(other.config.toml.contains("cpu_percent_max = 50"));
    assert_ne!(web.config.version, other.config.version);
    assert!(web.config.version < 1 << 48, "short in a heartbeat");
    // The same words again are the same configuration: no agent is told anything.
    rig.set("web", "# why\n[guard]\ncpu_percent_max   =   20", None);
    let again = rig.wanted(&who("web-1"));
    assert_eq!((again.config.version, again.version.as_str()), (web.config.version, "web@2"));
}

#[test]
fn a_rollout_reaches_a_share_then_all_and_a_rollback_nobody() {
    let rig = Rig::new();
    let agents: Vec<Who> = (0..200).map(|at| who(&format!("h{at}"))).collect();
    let with = |text: &str| agents.iter().filter(|who| rig.wanted(who).config.toml.contains(text)).count();
    rig.set("default", "[guard]\ncpu_percent_max = 50", None);
    let plan = rig.set("default", "[guard]\ncpu_percent_max = 20", Some(Share(1_000)));
    assert_eq!(
        plan.says,
        ["default@2 for 10%", "- guard.cpu_percent_max = 50", "+ guard.cpu_percent_max = 20"]
    );
    let first = with("max = 20");
    assert!((5..40).contains(&first) && with("max = 50") == 200 - first, "{first}");
    let trials = agents.iter().filter(|who| rig.wanted(who).trials == [("default".into(), 2)]).count();
    assert_eq!(trials, first);
    rig.change(&Change::Promote { group: "default".to_owned(), share: Some(Share(5_000)) });
    assert!(with("max = 20") > first);
    rig.change(&Change::Promote { group: "default".to_owned(), share: None });
    assert_eq!(with("max = 20"), 200);
    rig.change(&Change::Rollback { group: "default".to_owned(), to: None });
    assert_eq!(with("max = 50"), 200);
    assert!(rig.refused(&Change::Rollback { group: "default".to_owned(), to: None }).contains("before 1"));

    // Stopped: its agents are back, and nobody promotes it.
    rig.set("default", "[guard]\ncpu_percent_max = 10", Some(Share(5_000)));
    assert!(with("max = 10") > 0);
    let stop =
        |version| Change::Stop { group: "default".to_owned(), version, reason: "they shed".to_owned() };
    rig.change(&stop(3));
    assert_eq!(with("max = 50"), 200);
    let promote = Change::Promote { group: "default".to_owned(), share: None };
    let refusal = rig.registry.change(&promote, 1).unwrap_err();
    assert!(matches!(&refusal, Refusal::Unsafe(text) if text.contains("they shed")), "{refusal}");
    assert!(rig.refused(&stop(2)).contains("not rolled out"));
}

#[test]
fn switched_off_wins_over_everything_and_on_again_needs_all_of_them() {
    let rig = Rig::new();
    rig.group("web", "", hosts(&["web-*"]));
    rig.set("web", "enabled = true", None);
    let switch = |on, scope| rig.change(&Change::Switch { on, scope });
    let is_off = |host: &str| {
        let wanted = rig.wanted(&who(host));
        assert_eq!(wanted.is_off, wanted.config.toml.contains("enabled = false"));
        wanted.is_off
    };
    switch(false, Scope::Agent("id-web-1".to_owned()));
    assert!(is_off("web-1") && !is_off("web-2"));
    switch(false, Scope::Group("web".to_owned()));
    assert!(is_off("web-2") && !is_off("db-1"));
    switch(false, Scope::All);
    assert!(is_off("db-1"));
    let plan = switch(true, Scope::Group("web".to_owned()));
    assert!(plan.says[1].contains("stay off as long as the group default"), "{plan:?}");
    switch(true, Scope::All);
    assert!(is_off("web-1") && !is_off("web-2"));
    switch(true, Scope::Agent("id-web-1".to_owned()));
    assert!(!is_off("web-1"));
    assert!(rig.registry.groups().assigned("id-web-1").is_none(), "nothing is left of it");
}

#[test]
fn what_cannot_be_meant_is_refused_and_changes_nothing() {
    let rig = Rig::new();
    rig.group("a", "", Matches::default());
    rig.group("b", "a", Matches::default());
    rig.set("a", "[capture]\nsnaplen = \"1 KiB\"", None);
    let before = rig.registry.documents().digests();
    let group = |name: &str, parent: &str| Change::Group {
        name: name.to_owned(),
        parent: parent.to_owned(),
        matches: Matches::default(),
    };
    for (change, parts) in [
        (group("a", "b"), &["b is below a"][..]),
        (group("a/b", ""), &["no name"]),
        (group("c", "gone"), &["no group \"gone\"", "default"]),
        (Change::DeleteGroup { name: "a".to_owned() }, &["groups below it (b)"]),
        (Change::DeleteGroup { name: ROOT.to_owned() }, &["always there"]),
        (set("gone", "", None), &["no group"]),
        (set("a", "[guard]\ncpu = 1", None), &["guard.cpu", "cpu_percent_max"]),
        (set("a", "servers = []", None), &["servers", "cannot come from a node"]),
        (Change::Promote { group: "a".to_owned(), share: None }, &["no rollout"]),
        (Change::Rollback { group: "a".to_owned(), to: Some(9) }, &["no version 9", "[1]"]),
        (Change::Assign { agents: vec!["x".to_owned()], group: Some("gone".to_owned()) }, &["no group"]),
        (Change::Switch { on: false, scope: Scope::Group("gone".to_owned()) }, &["no group"]),
    ] {
        let said = rig.refused(&change);
        assert!(parts.iter().all(|part| said.contains(part)), "{change:?}: {said}");
    }
    assert_eq!(rig.registry.documents().digests(), before);
    let (plan, after) = rig.registry.preview(&set("b", "enabled = false", None), 1).unwrap();
    assert_eq!(plan.says[1], "+ enabled = false");
    assert!(after.settings("b").to_toml().contains("enabled"));
    assert_eq!(rig.registry.documents().digests(), before, "a preview changes nothing");
}

#[test]
fn a_group_remembers_the_last_versions_and_the_one_that_counts() {
    let rig = Rig::new();
    rig.set("default", "[guard]\ncpu_percent_max = 1", None);
    for percent in 2..30 {
        rig.set("default", &format!("[guard]\ncpu_percent_max = {percent}"), Some(Share(1)));
    }
    let group = Arc::clone(rig.registry.groups().group(ROOT).unwrap());
    let numbers: Vec<u64> = group.versions.iter().map(|version| version.number).collect();
    assert_eq!((numbers.len(), numbers[0], numbers[9], group.current), (10, 1, 29, 1));
}

#[test]
fn nodes_that_changed_groups_apart_end_with_the_same_and_a_circle_hangs_on_the_root() {
    let (one, other) = (Rig::new(), Rig::new());
    one.group("a", "", hosts(&["a-*"]));
    one.group("b", "", hosts(&["b-*"]));
    let tell = |from: &Rig, to: &Rig| {
        let all: Vec<usize> = (0..crate::documents::BUCKETS).collect();
        to.registry.learn(from.registry.documents().of_buckets(&all, usize::MAX).1).unwrap();
    };
    tell(&one, &other);
    let follower = other.registry.follow();
    one.group("a", "b", hosts(&["a-*"]));
    other.group("b", "a", hosts(&["b-*"]));
    other.set("b", "enabled = false", None);
    tell(&one, &other);
    tell(&other, &one);
    assert!(follower.has_changed().unwrap());
    for rig in [&one, &other] {
        assert!(rig.wanted(&who("b-1")).config.toml.contains("enabled"));
        assert!(rig.registry.groups().path("a").starts_with(&[ROOT]));
    }
    assert_eq!(one.registry.documents().digests(), other.registry.documents().digests());
    assert_eq!(one.wanted(&who("a-1")), other.wanted(&who("a-1")));
}
