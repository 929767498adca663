//! What an ingester makes uncertain.

use super::*;
use crate::disk;

#[test]
fn what_another_node_asked_for_is_uncertain_when_it_comes_after_all() {
    let disk = Disk::in_memory(&disk::Memory::default());
    let (mut core, _) = Core::open(disk, &Config::default()).unwrap();
    let (reply, _answers) = acks();
    let id = |seq| BatchId { agent_id: 1, seq };
    let take = |core: &mut Core, seq| {
        let batch = wire::Batch {
            protocol_version: wire::PROTOCOL_VERSION,
            agent_id: 1,
            seq,
            table: wire::Table::L7FlowLog.into(),
            ..wire::Batch::default()
        };
        core.batch(batch, Permit::default(), reply.clone());
        let entries = core.wal().group().unwrap().entries;
        entries.iter().map(|entry| entry.uncertain).collect::<Vec<_>>()
    };
    assert_eq!(take(&mut core, 1), [false]);
    let found = core.asked(&[id(1), id(2)]);
    assert!(matches!(found[..], [Found::Logging(_), Found::Unknown]), "{found:?}");
    assert_eq!(take(&mut core, 2), [true]);
    assert_eq!(take(&mut core, 3), [false]);
}
