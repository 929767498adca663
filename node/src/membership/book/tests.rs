//! Tests of the book, by hand-made observations and times.

use super::{super::forge::identity, *};

/// A book that is shown one thing after the other.
struct Story {
    book: Book,
    begin: Instant,
    unreadable: Vec<Unreadable>,
}

impl Story {
    fn new() -> Self {
        Self { book: Book::new("c".to_owned(), 1), begin: Instant::now(), unreadable: vec![] }
    }

    fn at(&mut self, seconds: f64, seen: &[Seen]) -> View {
        let now = self.begin + Duration::from_secs_f64(seconds);
        self.book.observe(seen.to_vec(), now, 1_000_000, |unreadable| self.unreadable.push(unreadable))
    }

    /// The member with id 2.
    fn second(&mut self, seconds: f64, seen: &[Seen]) -> Member {
        self.at(seconds, seen).member(2).unwrap().clone()
    }
}

/// A start of node 2, with the state that it publishes.
fn seen(generation: u64, heartbeat: u64, live: bool, state: State, start: u64) -> Seen {
    let facts = Facts { state, start, name: "n2".to_owned(), ..Facts::default() };
    let values = Some(facts.key_values());
    Seen { identity: identity("2", generation), heartbeat, version: 14, live, values }
}

#[test]
fn readiness_is_counted_from_when_it_was_seen_and_ends_with_a_break() {
    let mut story = Story::new();
    let begin = story.begin;
    let at = |seconds| Some(begin + Duration::from_secs(seconds));
    assert_eq!(story.second(0.0, &[seen(7, 1, true, State::Starting, 7)]).ready_since, None);
    assert_eq!(story.second(1.0, &[seen(7, 2, true, State::Ready, 7)]).ready_since, at(1));
    assert_eq!(story.second(5.0, &[seen(7, 3, true, State::Ready, 7)]).ready_since, at(1));
    // Dead, and back without a new start.
    let dead = story.second(6.0, &[seen(7, 3, false, State::Ready, 7)]);
    assert_eq!((dead.live, dead.word(), dead.ready_since, dead.flaps), (false, "dead", None, 1));
    let back = story.second(7.0, &[seen(7, 4, true, State::Ready, 7)]);
    assert_eq!((back.word(), back.ready_since, back.flaps), ("ready", at(7), 1));
    assert_eq!(story.second(8.0, &[seen(7, 5, true, State::Draining, 7)]).ready_since, None);
}

#[test]
fn a_new_generation_of_the_same_process_is_no_break_and_of_another_one_is() {
    let mut story = Story::new();
    let first = story.second(0.0, &[seen(7, 1, true, State::Ready, 7)]);
    let both = [seen(7, 1, true, State::Ready, 7), seen(8, 1, true, State::Ready, 7)];
    let same = story.second(1.0, &both);
    assert_eq!((same.generation, same.ready_since, same.flaps), (8, first.ready_since, 0));
    let other = story.second(2.0, &[seen(8, 1, false, State::Ready, 7), seen(9, 3, true, State::Ready, 9)]);
    assert_eq!((other.generation, other.flaps), (9, 1));
    assert_eq!(other.ready_since, Some(story.begin + Duration::from_secs(2)));
}

#[test]
fn a_start_without_values_does_not_speak_for_a_node_that_has_some() {
    let mut story = Story::new();
    story.at(0.0, &[seen(7, 1, true, State::Ready, 7)]);
    let silent = Seen { version: 0, values: Some(vec![]), ..seen(8, 1, true, State::Ready, 7) };
    let member = story.second(1.0, &[seen(7, 2, true, State::Ready, 7), silent]);
    assert_eq!((member.generation, member.facts.state), (7, State::Ready));
}

#[test]
fn gossip_that_starts_anew_takes_nothing_away() {
    let mut story = Story::new();
    let first = story.second(0.0, &[seen(7, 5, true, State::Ready, 7)]);
    story.book.relearn(story.begin + Duration::from_secs(2));
    // Nothing is heard yet; then the member, without its values and not long enough to be live; then some of them.
    assert_eq!(story.second(0.1, &[]), first);
    let known = Seen { version: 0, values: Some(vec![]), ..seen(7, 5, false, State::Ready, 7) };
    assert_eq!(story.second(0.2, std::slice::from_ref(&known)), first);
    let part = Seen { version: 3, values: Some(vec![("name".to_owned(), "n2".to_owned())]), ..known };
    assert_eq!(story.second(0.3, std::slice::from_ref(&part)), first);
    assert_eq!(story.second(1.0, &[seen(7, 6, true, State::Ready, 7)]), first);
    // Who is not heard when the time is over is as silent as any other.
    let dead = story.second(2.0, &[]);
    assert_eq!((dead.word(), dead.flaps, &*dead.facts.name), ("dead", 1, "n2"));
}

#[test]
fn who_is_coming_is_not_shown_as_dead() {
    let mut story = Story::new();
    for (seconds, members) in [(0.0, 0), (4.0, 0), (5.5, 1)] {
        let view = story.at(seconds, &[seen(7, 1, false, State::Ready, 7)]);
        assert_eq!(view.members.len(), members, "at {seconds}");
    }
}

#[test]
fn who_was_drained_has_left_and_is_soon_forgotten_and_who_died_is_shown_longer() {
    let mut story = Story::new();
    story.at(0.0, &[seen(7, 1, true, State::Drained, 7)]);
    let left = story.second(1.0, &[seen(7, 1, false, State::Drained, 7)]);
    assert_eq!((left.word(), left.flaps), ("left", 0));
    assert!(story.at(120.0, &[]).members.is_empty());

    story.at(200.0, &[seen(8, 1, true, State::Ready, 8)]);
    assert_eq!(story.second(3000.0, &[]).word(), "dead");
    assert!(story.at(6700.0, &[]).members.is_empty());
}

#[test]
fn flaps_are_forgotten_after_a_while_and_bounded() {
    let mut story = Story::new();
    for round in 0..50 {
        let heartbeat = round * 2 + 1;
        story.at(f64::from(round as u32), &[seen(7, heartbeat, true, State::Ready, 7)]);
        story.at(f64::from(round as u32) + 0.5, &[seen(7, heartbeat, false, State::Ready, 7)]);
    }
    assert_eq!(story.second(60.0, &[seen(7, 999, true, State::Ready, 7)]).flaps, 32);
    assert_eq!(story.second(700.0, &[seen(7, 1000, true, State::Ready, 7)]).flaps, 0);
}

#[test]
fn two_running_nodes_with_one_id_are_seen_and_a_restart_is_not_taken_for_two() {
    let elsewhere = |heartbeat, live| Seen {
        identity: Identity { address: "10.0.0.9:20037".parse().unwrap(), ..identity("2", 90) },
        ..seen(90, heartbeat, live, State::Ready, 90)
    };
    let mut story = Story::new();
    // The former life is believed to be live for a while.
    for tenth in 0..100_u64 {
        let old = seen(7, 50.min(tenth + 40), tenth < 30, State::Ready, 7);
        let view = story.at(tenth as f64 / 10.0, &[old, elsewhere(tenth, true)]);
        assert_eq!(view.duplicates, []);
    }
    let mut story = Story::new();
    let mut noticed = None;
    for tenth in 0..100_u64 {
        let one = seen(7, tenth, true, State::Ready, 7);
        let view = story.at(tenth as f64 / 10.0, &[one, elsewhere(tenth, true)]);
        if !view.duplicates.is_empty() {
            noticed = noticed.or(Some(tenth));
            let addresses = vec!["10.0.0.1:20037".parse().unwrap(), "10.0.0.9:20037".parse().unwrap()];
            assert_eq!(view.duplicates, [Duplicate { node_id: 2, addresses }]);
        }
    }
    assert_eq!(noticed, Some(30));
    assert!(!story.at(11.0, &[]).own_id_is_shared());
}

#[test]
fn members_are_sorted_and_foreign_ones_left_out_and_counted_once() {
    let named = |node: &str, key: &str, value: &str| Seen {
        identity: identity(node, 1),
        values: Some(vec![(key.to_owned(), value.to_owned())]),
        ..seen(1, 1, true, State::Ready, 1)
    };
    let mut story = Story::new();
    let all =
        [named("30", "zone", "a"), named("4", "weight", "many"), named("x", "a", "b"), named("1", "a", "b")];
    let view = story.at(0.0, &all);
    assert_eq!(view.members.iter().map(|member| member.node_id).collect::<Vec<_>>(), [1, 4, 30]);
    assert_eq!(story.unreadable, [Unreadable::Key("weight"), Unreadable::NodeId]);
    story.at(1.0, &[Seen { values: None, ..named("x", "", "") }]);
    assert_eq!(story.unreadable.len(), 2);
}

#[test]
fn a_clock_is_compared_when_it_was_said() {
    let mut story = Story::new();
    let says = |clock_ms: u64, version| Seen {
        values: Some(vec![("clock_ms".to_owned(), clock_ms.to_string())]),
        version,
        ..seen(7, 1, true, State::Ready, 7)
    };
    // What is seen first may have been said long ago.
    assert_eq!(story.second(0.0, &[says(1_001_000, 0)]).skew_ms, None);
    assert_eq!(story.second(0.0, &[says(1_002_000, 1)]).skew_ms, Some(2000));
    let silent = Seen { values: None, ..says(0, 1) };
    assert_eq!(story.second(60.0, &[silent]).skew_ms, Some(2000));
    assert_eq!(story.second(61.0, &[says(999_000, 2)]).skew_ms, Some(-1000));
}
