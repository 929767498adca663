//! Ranges of ids in the real store: who claims at the same time as others gets none of theirs.

use std::collections::HashSet;

use metaflow_actors::dictionary::{Claimed, NodeId, Wanted, claim};

use crate::kit;

#[tokio::test(flavor = "multi_thread")]
async fn no_two_of_many_that_claim_at_once_get_the_same_range() {
    let folder = tempfile::tempdir().unwrap();
    let (engine, store) = kit::engine(folder.path()).await;
    let random = || std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), ());
    let claims = (0..12).map(|at| {
        let register = store.id_ranges(NodeId::new(7).unwrap());
        tokio::spawn(async move {
            let mut got = Vec::new();
            for _ in 0..3 {
                let wanted = Wanted { above: 0, first: 0, count: 1 + at % 3, ranges: 4_096, is_drawn: false };
                if let Claimed::Ranges(ranges) = claim(&register, wanted, random).await.unwrap() {
                    got.extend(ranges);
                }
            }
            got
        })
    });
    let mut got = Vec::new();
    for claim in claims.collect::<Vec<_>>() {
        got.extend(claim.await.unwrap());
    }
    assert!(!got.is_empty(), "nobody got any");
    assert_eq!(got.iter().collect::<HashSet<_>>().len(), got.len(), "{got:?}");

    // Of another number nothing is claimed, and above those of this one there is more.
    for (node, above) in [(8, 0), (7, got.iter().max().unwrap() + 1)] {
        let wanted = Wanted { above: 0, first: 0, count: 1, ranges: 4_096, is_drawn: false };
        let claimed = claim(&store.id_ranges(NodeId::new(node).unwrap()), wanted, random).await.unwrap();
        let Claimed::Ranges(ranges) = claimed else { panic!("{claimed:?}") };
        assert!(ranges.start >= above && (above > 0 || ranges.start == 0), "{node}: {ranges:?}");
    }
    engine.stop().await;
}
