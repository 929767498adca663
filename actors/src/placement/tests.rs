//! What placement promises, checked on random clusters.

use std::collections::{BTreeSet, HashMap};

use proptest::{
    collection::{btree_set, vec},
    prelude::*,
    sample::{select, subsequence},
};

use super::{view::WEIGHT_MAX, *};
use crate::placement::ring::ring_of;

const ONE: &str = "north";
const TWO: &str = "south";

fn node(id: u16) -> NodeId {
    NodeId::new(id).unwrap()
}

fn member(id: u16, region: &str, zone: &str) -> Member {
    Member {
        node_id: node(id),
        state: State::Ready,
        eligible: true,
        region: region.into(),
        zone: zone.into(),
        weight: 1,
    }
}

/// Nodes of one region in three zones.
fn zoned(ids: impl IntoIterator<Item = u16>) -> View {
    let zones = ["a", "b", "c"].into_iter().cycle();
    View { members: ids.into_iter().zip(zones).map(|(id, zone)| member(id, ONE, zone)).collect() }
}

fn ids(count: std::ops::RangeInclusive<usize>) -> impl Strategy<Value = Vec<u16>> {
    btree_set(1..=NodeId::MAX, count).prop_map(|ids| ids.into_iter().collect::<Vec<_>>()).prop_shuffle()
}

/// Members of all kinds; also ids that two members have.
fn any_view() -> impl Strategy<Value = View> {
    let states = select(vec![State::Ready, State::Ready, State::Starting, State::Draining, State::Drained]);
    let member = (
        1..=40_u16,
        states,
        any::<bool>(),
        select(vec![ONE, TWO, "west"]),
        0..4_u8,
        select(vec![0, 1, 1, 2, 3, 255]),
    );
    vec(member, 0..25).prop_map(|members| View {
        members: members
            .into_iter()
            .map(|(id, state, eligible, region, zone, weight)| Member {
                node_id: node(id),
                state,
                eligible,
                region: region.into(),
                zone: format!("{zone}"),
                weight,
            })
            .collect(),
    })
}

fn primaries(view: &View) -> Vec<NodeId> {
    let placement = Placement::new(view);
    ShardId::all().map(|shard| placement.servers(ONE, shard).primary().unwrap()).collect()
}

/// Share of the shards whose first node is another.
fn moved(before: &View, after: &View) -> f64 {
    let (before, after) = (primaries(before), primaries(after));
    let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
    moved as f64 / f64::from(SHARDS)
}

fn without(view: &View, at: usize) -> View {
    let mut view = view.clone();
    view.members.remove(at);
    view
}

/// The most that a node has, as a multiple of its share by weight.
fn imbalance(placement: &Placement, view: &View) -> f64 {
    let weights: HashMap<_, _> =
        view.members.iter().map(|member| (member.node_id, f64::from(member.weight()))).collect();
    let mean = f64::from(SHARDS) / weights.values().sum::<f64>();
    let loads = placement.shard_loads(ONE).iter();
    loads.map(|load| f64::from(load.first) / (mean * weights[&load.node_id])).fold(0.0, f64::max)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn the_order_of_members_means_nothing(
        (view, shuffled) in any_view().prop_flat_map(|view| (Just(view.members.clone()), Just(view.members).prop_shuffle())),
    ) {
        let (view, shuffled) = (View { members: view }, View { members: shuffled });
        prop_assert!(Placement::new(&view) == Placement::new(&shuffled));
    }

    #[test]
    fn nodes_of_one_weight_share_within_five_percent(ids in ids(3..=50)) {
        let view = zoned(ids);
        let placement = Placement::new(&view);
        prop_assert!(imbalance(&placement, &view) <= 1.05, "{:?}", placement.shard_loads(ONE));
        let given: u32 = placement.shard_loads(ONE).iter().map(|load| u32::from(load.first)).sum();
        prop_assert_eq!(given, u32::from(SHARDS));
    }

    #[test]
    fn nodes_share_by_weight(ids in ids(3..=50), weights in vec(1..=WEIGHT_MAX, 50)) {
        let mut view = zoned(ids);
        view.members.iter_mut().zip(weights).for_each(|(member, weight)| member.weight = weight);
        let total: u32 = view.members.iter().map(|member| u32::from(member.weight)).sum();
        let placement = Placement::new(&view);
        for load in placement.shard_loads(ONE) {
            let member = view.members.iter().find(|member| member.node_id == load.node_id).unwrap();
            let share = f64::from(SHARDS) * f64::from(member.weight) / f64::from(total);
            // Upwards rounding counts where shares are small, downwards nothing but chance does.
            prop_assert!(f64::from(load.first) <= share * 1.05 + 1.0, "{load:?}, share {share}");
            prop_assert!(f64::from(load.first) >= share - 4.0 * share.sqrt().max(share * 0.04), "{load:?}, share {share}");
        }
    }

    #[test]
    fn a_join_moves_little(ids in ids(4..=51), at in any::<prop::sample::Index>()) {
        let after = zoned(ids);
        let before = without(&after, at.index(after.members.len()));
        let share = moved(&before, &after) * after.members.len() as f64;
        prop_assert!(share <= 1.3, "{share} times 1/{}", after.members.len());
    }

    #[test]
    fn a_leave_moves_little(ids in ids(3..=50), at in any::<prop::sample::Index>()) {
        let before = zoned(ids);
        let after = without(&before, at.index(before.members.len()));
        let share = moved(&before, &after) * before.members.len() as f64;
        prop_assert!(share <= 1.3, "{share} times 1/{}", before.members.len());
    }

    #[test]
    fn stand_ins_are_in_other_zones(view in any_view()) {
        let placement = Placement::new(&view);
        let zone_of = |id: NodeId| {
            let member = placement.members.iter().find(|member| member.node_id == id).unwrap();
            (member.region.as_str(), member.zone.as_str())
        };
        let check = |nodes: Vec<NodeId>, pool: &[&Member]| {
            prop_assert_eq!(nodes.len(), pool.len().min(LISTED));
            prop_assert_eq!(nodes.iter().collect::<BTreeSet<_>>().len(), nodes.len());
            let zones: Vec<_> = nodes.iter().map(|&id| zone_of(id)).collect();
            let all: BTreeSet<_> = pool.iter().map(|&member| zone_of(member.node_id)).collect();
            prop_assert_eq!(zones.iter().collect::<BTreeSet<_>>().len(), all.len().min(nodes.len()));
            // With two zones, as many as possible are outside the first one's.
            if let Some((first, others)) = zones.split_first() && all.len() == 2 {
                let outside = pool.iter().filter(|member| zone_of(member.node_id) != *first).count();
                prop_assert_eq!(others.iter().filter(|zone| *zone != first).count(), outside.min(others.len()));
            }
            Ok(())
        };
        for region in [ONE, TWO, "west", "nowhere"] {
            let inside = placement.regions.contains_key(region);
            let pool = pool(&placement.members, inside.then_some(region));
            for shard in ShardId::all().step_by(97) {
                let servers = placement.servers(region, shard);
                check(servers.primary().into_iter().chain(servers.fallbacks()).collect(), &pool)?;
            }
        }
        for partition in PartitionId::all() {
            check(placement.owners(partition).iter().collect(), &pool(&placement.members, None))?;
        }
    }

    #[test]
    fn agents_stay_in_their_region_and_have_one_way_out(view in any_view()) {
        let placement = Placement::new(&view);
        let region_of: HashMap<_, _> =
            placement.members.iter().map(|member| (member.node_id, member.region.as_str())).collect();
        let ready: BTreeSet<_> = placement
            .members
            .iter()
            .filter(|member| member.state == State::Ready)
            .map(|member| member.region.as_str())
            .collect();
        prop_assert_eq!(placement.regions().collect::<BTreeSet<_>>(), ready.clone());
        for region in [ONE, TWO, "west", "nowhere"] {
            for shard in ShardId::all().step_by(97) {
                let servers = placement.servers(region, shard);
                prop_assert_eq!(servers.primary().is_some(), !ready.is_empty());
                let Some(primary) = servers.primary() else { continue };
                if ready.contains(region) {
                    prop_assert!(servers.fallbacks().chain([primary]).all(|id| region_of[&id] == region));
                    prop_assert_eq!(servers.last_resort().is_some(), ready.len() > 1);
                }
                if let Some(last) = servers.last_resort() {
                    prop_assert_ne!(region_of[&last], region_of[&primary]);
                    prop_assert!(servers.fallbacks().all(|id| id != last));
                }
            }
        }
    }

    #[test]
    fn only_ready_nodes_work_and_held_back_ones_only_when_alone(view in any_view()) {
        let placement = Placement::new(&view);
        let of: HashMap<_, _> = placement.members.iter().map(|member| (member.node_id, member)).collect();
        let eligible = |region: Option<&str>| {
            of.values().any(|member| {
                member.state == State::Ready && member.eligible && region.is_none_or(|region| member.region == region)
            })
        };
        for partition in PartitionId::all() {
            for id in placement.owners(partition).iter() {
                prop_assert_eq!(of[&id].state, State::Ready);
                prop_assert!(of[&id].eligible || !eligible(None), "{}", id.get());
            }
        }
        for region in [ONE, TWO, "west", "nowhere"] {
            for shard in ShardId::all().step_by(97) {
                for id in placement.servers(region, shard).iter() {
                    prop_assert_eq!(of[&id].state, State::Ready);
                    prop_assert!(of[&id].eligible || !eligible(Some(&of[&id].region)), "{}", id.get());
                }
            }
        }
    }

    #[test]
    fn an_explanation_agrees_with_the_placement(view in any_view(), shard in 0..SHARDS) {
        let placement = Placement::new(&view);
        let shard = ShardId::new(shard).unwrap();
        for region in [ONE, TWO, "nowhere"] {
            let explanation = placement.explain(region, shard);
            let with = |verdict: Verdict| {
                let found = explanation.candidates.iter().filter(move |candidate| candidate.verdict == verdict);
                found.map(|candidate| candidate.node_id).collect::<BTreeSet<_>>()
            };
            let servers = placement.servers(region, shard);
            prop_assert_eq!(explanation.servers, servers);
            prop_assert_eq!(with(Verdict::Primary), servers.primary().into_iter().collect());
            prop_assert_eq!(with(Verdict::Fallback), servers.fallbacks().collect());
            prop_assert_eq!(with(Verdict::LastResort), servers.last_resort().into_iter().collect());
            prop_assert_eq!(explanation.candidates.len(), placement.members.len());
            for full in with(Verdict::Full) {
                let load = placement.shard_loads(region).iter().find(|load| load.node_id == full).unwrap();
                prop_assert_eq!(load.first, load.capacity);
            }
        }
    }

    /// Nodes of a region do not matter to agents of another, except as their last resort.
    #[test]
    fn a_change_in_one_region_moves_nothing_in_another(
        here in subsequence((1..=20_u16).collect::<Vec<_>>(), 1..=20),
        there in subsequence((21..=30_u16).collect::<Vec<_>>(), 2..=10),
    ) {
        let mut view = zoned(here);
        view.members.extend(there.into_iter().map(|id| member(id, TWO, "a")));
        let smaller = without(&view, view.members.len() - 1);
        prop_assert_eq!(primaries(&view), primaries(&smaller));
    }
}

#[test]
fn without_a_ready_node_lists_are_empty() {
    let mut gone = zoned([1, 2]);
    gone.members[0].state = State::Draining;
    gone.members[1].state = State::Starting;
    for view in [View::default(), gone] {
        let placement = Placement::new(&view);
        for region in [ONE, ""] {
            assert_eq!(placement.servers(region, shard_of(7)), Servers::default());
            assert!(placement.shard_loads(region).is_empty());
            assert_eq!(placement.explain(region, shard_of(7)).candidates.len(), view.members.len());
        }
        assert_eq!(placement.owners(PartitionId(3)).iter().count(), 0);
        assert_eq!(placement.regions().count(), 0);
    }
}

#[test]
fn a_region_without_nodes_is_shared_by_all() {
    let mut view = zoned(1..=6);
    view.members.extend((7..=9).map(|id| member(id, TWO, "a")));
    let placement = Placement::new(&view);
    let first: BTreeSet<_> =
        ShardId::all().filter_map(|shard| placement.servers("nowhere", shard).primary()).collect();
    assert_eq!(first, (1..=9).map(node).collect());
    assert!(ShardId::all().all(|shard| placement.servers("nowhere", shard).iter().count() >= LISTED));
}

#[test]
fn regions_beyond_the_limit_are_served_by_any_node() {
    let regions = REGIONS_MAX as u16 + 6;
    let view = View { members: (1..=regions).map(|id| member(id, &format!("{id:03}"), "a")).collect() };
    let placement = Placement::new(&view);
    assert_eq!(placement.regions().count(), REGIONS_MAX);
    assert_eq!(placement.servers("001", shard_of(1)).primary(), Some(node(1)));
    let last: BTreeSet<_> =
        ShardId::all().filter_map(|shard| placement.servers("070", shard).primary()).collect();
    assert_eq!(last.len(), usize::from(regions));
}

#[test]
fn of_two_members_with_one_id_the_ready_one_counts() {
    let mut view = zoned([1, 2, 3]);
    let mut twin = member(2, TWO, "z");
    twin.state = State::Drained;
    view.members.insert(0, twin);
    assert!(Placement::new(&view) == Placement::new(&zoned([1, 2, 3])));
}

/// The shortcut for zones that are rare must not change the answer.
#[test]
fn a_rare_zone_is_found_as_if_all_were_looked_at() {
    let mut members: Vec<_> = (1..=300).map(|id| member(id, ONE, "a")).collect();
    members.extend([member(301, ONE, "b"), member(302, ONE, "c"), member(303, ONE, "c")]);
    let mut pool = Pool::new(members.iter().collect());
    let ring = ring_of(&members.iter().collect::<Vec<_>>(), |_| true);
    for shard in ShardId::all().step_by(41) {
        let point = Point::even(shard.get(), SHARDS);
        let order: Vec<Slot> = ring.order(point).collect();
        let rare = order.iter().copied().find(|&slot| slot >= 300).unwrap();
        assert_eq!(pool.stand_in(point, &[5]), Some(rare));
        let both = [0, rare];
        let next = order.iter().copied().find(|&slot| slot >= 300 && (slot == 300) != (rare == 300));
        assert_eq!(pool.stand_in(point, &both), next);
    }
}

#[test]
fn an_explanation_says_why() {
    let mut view = zoned(1..=9);
    view.members[3].state = State::Draining;
    view.members[4].eligible = false;
    view.members.extend([member(20, TWO, "a"), member(21, TWO, "b")]);
    let placement = Placement::new(&view);
    let mut seen = BTreeSet::new();
    for shard in ShardId::all().step_by(13) {
        let explanation = placement.explain(ONE, shard);
        assert!(explanation.in_region);
        for candidate in explanation.candidates {
            let text = candidate.verdict.to_string();
            match candidate.node_id.get() {
                4 => assert_eq!(text, "not ready: draining"),
                5 => assert_eq!(text, "held back: ready for too short a time"),
                20 | 21 => assert!(["last resort", "other region"].contains(&text.as_str()), "{text}"),
                _ => drop(seen.insert(text)),
            }
        }
    }
    let expected = ["fallback", "full", "not needed", "primary", "zone already used"];
    assert_eq!(seen.iter().map(String::as_str).collect::<Vec<_>>(), expected);
}

#[test]
fn a_shard_is_elsewhere_because_the_node_that_it_prefers_is_full() {
    let view = zoned(1..=60);
    let placement = Placement::new(&view);
    let ring = ring_of(&placement.members.iter().collect::<Vec<_>>(), |_| true);
    let mut full = 0;
    for shard in ShardId::all() {
        let preferred = ring.order(Point::even(shard.get(), SHARDS)).next().unwrap();
        let preferred = placement.members[usize::from(preferred)].node_id;
        if placement.servers(ONE, shard).primary() != Some(preferred) {
            let first = placement.explain(ONE, shard).candidates[0];
            assert_eq!(first.node_id, preferred);
            assert!([Verdict::Full, Verdict::Fallback].contains(&first.verdict), "{first:?}");
            full += u32::from(first.verdict == Verdict::Full);
        }
    }
    assert!(full > 0);
}

/// Nodes of two releases must place alike while a cluster is updated. A change of this value breaks that: it needs a release that
/// knows both, not a new number here.
#[test]
fn answers_are_the_same_for_ever() {
    let mut view = zoned([1, 2, 3, 7, 11, 500, 1_023]);
    view.members[2].weight = 3;
    view.members.extend([member(600, TWO, "a"), member(601, TWO, "a")]);
    let placement = Placement::new(&view);
    let mut bytes = Vec::new();
    for region in [ONE, TWO, "nowhere"] {
        for shard in ShardId::all() {
            bytes.extend(placement.servers(region, shard).0.iter().flat_map(|id| id.to_le_bytes()));
        }
    }
    for partition in PartitionId::all() {
        bytes.extend(placement.owners(partition).0.iter().flat_map(|id| id.to_le_bytes()));
    }
    assert_eq!(crc32fast::hash(&bytes), 1_611_066_020);
}
