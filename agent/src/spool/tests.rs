//! Tests of the spool: what survives a crash, a full disk and damaged files.

use std::{collections::BTreeMap, path::Path};

use bytes::Bytes;
use metaflow_wire::{PROTOCOL_VERSION, Table};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

const NOW: u32 = 1_000;

fn batch(mark: u32, bytes: usize) -> Batch {
    let payload: Bytes = mark.to_le_bytes().iter().copied().cycle().take(bytes.max(4)).collect();
    Batch {
        protocol_version: PROTOCOL_VERSION,
        agent_id: 0,
        seq: 0,
        table: Table::L7FlowLog.into(),
        rows: 10,
        uncompressed_bytes: 9,
        crc: crc32fast::hash(&payload),
        payload,
        resent: false,
    }
}

fn config(directory: &Path, bytes_max: u64) -> Config {
    Config::new(directory.to_owned(), bytes_max)
}

fn open(directory: &TempDir) -> (Spool, Recovery) {
    Spool::open(config(directory.path(), 1 << 30), NOW).unwrap()
}

/// A spool with these batches, flushed; its segment file; their numbers.
fn filled(count: u32) -> (TempDir, PathBuf, Vec<u64>) {
    let directory = TempDir::new().unwrap();
    let (mut spool, _) = open(&directory);
    let numbers = (0..count).map(|mark| spool.append(batch(mark, 60), NOW).unwrap()).collect();
    spool.flush().unwrap();
    let path = directory.path().join("spool/0000000000.segment");
    (directory, path, numbers)
}

fn seqs(spool: &Spool) -> Vec<u64> {
    std::iter::successors(spool.next_after(None), |(seq, _)| spool.next_after(Some(*seq)))
        .map(|(seq, _)| seq)
        .collect()
}

#[test]
fn a_batch_can_be_read_only_when_it_is_durable() {
    let directory = TempDir::new().unwrap();
    let (mut spool, recovery) = open(&directory);
    assert!(recovery.created);
    let number = spool.append(batch(1, 60), NOW).unwrap();
    assert_eq!((number, spool.next_after(None)), (seq(NOW, 0), None));
    let flush = spool.begin_flush().unwrap().unwrap();
    assert_eq!(spool.next_after(None), None, "written, not synced");
    let synced = flush.sync();
    spool.end_flush(flush, synced).unwrap();
    let read = spool.read(number).unwrap().unwrap();
    assert_eq!(read, Batch { seq: number, ..batch(1, 60) });
    assert!(spool.read(number).unwrap().unwrap().resent, "read twice is sent twice");
}

#[test]
fn what_is_not_committed_is_sent_again_after_a_crash_and_only_that() {
    let (directory, _, numbers) = filled(5);
    let (mut spool, recovery) = open(&directory);
    assert_eq!((recovery.batches, recovery.created), (5, false));
    assert!(spool.read(numbers[0]).unwrap().unwrap().resent);
    spool.commit(numbers[1], numbers[2]);
    spool.reject(numbers[4], "bad");
    assert_eq!(spool.losses().get("rejected: bad"), 10);
    drop(spool);
    let (mut spool, _) = open(&directory);
    assert_eq!(seqs(&spool), [numbers[0], numbers[3]]);
    let next = spool.append(batch(9, 60), NOW).unwrap();
    assert!(next > numbers[4], "numbers go on");
    spool.commit(0, u64::MAX);
    spool.flush().unwrap();
    drop(spool);
    let (spool, recovery) = open(&directory);
    assert_eq!((seqs(&spool), recovery.created), (vec![next], false));
}

#[test]
fn numbers_go_on_when_everything_was_committed() {
    let (directory, _, numbers) = filled(3);
    let (mut spool, _) = open(&directory);
    spool.commit(0, u64::MAX);
    for _ in 0..3 {
        drop(spool);
        spool = open(&directory).0;
    }
    assert!(spool.append(batch(1, 60), NOW).unwrap() > numbers[2]);
    let files = fs::read_dir(directory.path().join("spool")).unwrap().count();
    assert_eq!(files, 1, "only the active segment is left");
}

#[test]
fn a_tail_torn_at_any_byte_costs_only_its_record() {
    let (directory, path, numbers) = filled(3);
    let whole = fs::read(&path).unwrap();
    let record = record::RECORD_HEADER + 60;
    for length in whole.len() - record..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        let (mut spool, recovery) = open(&directory);
        assert_eq!(seqs(&spool), numbers[..2], "cut at {length}");
        assert_eq!(recovery.torn_bytes, (length + record - whole.len()) as u64);
        assert_eq!(recovery.corrupt_records, 0);
        for number in &numbers[..2] {
            assert!(spool.read(*number).unwrap().is_some());
        }
        if length > whole.len() - record {
            assert!(spool.append(batch(8, 60), NOW).unwrap() > numbers[2], "a torn number is not used again");
        }
    }
}

#[test]
fn a_flipped_byte_anywhere_costs_one_record_and_no_number() {
    let (directory, path, numbers) = filled(4);
    let whole = fs::read(&path).unwrap();
    let record = record::RECORD_HEADER + 60;
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        fs::write(&path, &damaged).unwrap();
        fs::write(directory.path().join("generation"), {
            let number = NOW.to_string();
            format!("{number} {:08x}", crc32fast::hash(number.as_bytes()))
        })
        .unwrap();
        let (mut spool, recovery) = open(&directory);
        let hit = at.checked_sub(record::SEGMENT_HEADER).map(|offset| offset / record);
        let mut expected = numbers.clone();
        if let Some(hit) = hit {
            expected.remove(hit);
        }
        assert_eq!(seqs(&spool), expected, "byte {at}");
        assert_eq!(recovery.created, hit.is_none(), "a damaged header begins a generation");
        let next = spool.append(batch(7, 60), NOW + 1).unwrap();
        assert!(next > numbers[3], "byte {at}: {next} was used");
        drop(spool);
        for entry in fs::read_dir(directory.path().join("spool")).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
    }
}

#[test]
fn damage_after_opening_is_found_when_read() {
    let (directory, path, numbers) = filled(2);
    let (mut spool, _) = open(&directory);
    let mut bytes = fs::read(&path).unwrap();
    bytes[record::SEGMENT_HEADER + record::RECORD_HEADER + 5] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert_eq!(spool.read(numbers[0]).unwrap(), None);
    assert_eq!((spool.losses().get(reason::SPOOL_CORRUPT), spool.stats().corrupt_records), (10, 1));
    assert_eq!(seqs(&spool), numbers[1..]);
}

#[test]
fn marks_without_their_segment_and_torn_marks_do_no_harm() {
    let (directory, path, numbers) = filled(3);
    let (mut spool, _) = open(&directory);
    spool.commit(numbers[0], numbers[0]);
    spool.commit(numbers[1], numbers[1]);
    drop(spool);
    let marks = path.with_extension("marks");
    let bytes = fs::read(&marks).unwrap();
    fs::write(&marks, &bytes[..bytes.len() - 3]).unwrap();
    let orphan = path.with_file_name("0000000099.marks");
    fs::write(&orphan, &bytes).unwrap();
    let (mut spool, _) = open(&directory);
    assert_eq!(seqs(&spool), numbers[1..]);
    assert!(!orphan.exists());
    spool.commit(numbers[1], numbers[1]);
    drop(spool);
    assert_eq!(seqs(&open(&directory).0), numbers[2..]);
}

#[test]
fn at_the_cap_the_oldest_go_and_their_rows_are_counted() {
    let directory = TempDir::new().unwrap();
    let (mut spool, _) = Spool::open(config(directory.path(), 64 << 10), NOW).unwrap();
    let mut numbers = Vec::new();
    for mark in 0..200 {
        numbers.push(spool.append(batch(mark, 1_000), NOW).unwrap());
        spool.flush().unwrap();
        assert!(spool.stats().disk_bytes <= 64 << 10, "{:?}", spool.stats());
    }
    let kept = seqs(&spool);
    assert!(kept.len() > 40 && numbers.ends_with(&kept), "the newest stay");
    assert_eq!(spool.losses().get(reason::SPOOL_FULL), 10 * (200 - kept.len() as u64));
    drop(spool);
    assert_eq!(seqs(&open(&directory).0), kept);
}

#[test]
fn dropping_what_a_node_has_is_no_loss() {
    let directory = TempDir::new().unwrap();
    let (mut spool, _) = Spool::open(config(directory.path(), 64 << 10), NOW).unwrap();
    for mark in 0..200 {
        let number = spool.append(batch(mark, 1_000), NOW).unwrap();
        spool.flush().unwrap();
        spool.receive(number, number);
    }
    assert_eq!(spool.losses().total(), 0);
}

#[test]
fn a_failed_sync_sends_the_same_batches_under_the_same_numbers_later() {
    let directory = TempDir::new().unwrap();
    let (mut spool, _) = open(&directory);
    let first = spool.append(batch(1, 60), NOW).unwrap();
    let flush = spool.begin_flush().unwrap().unwrap();
    let second = spool.append(batch(2, 60), NOW).unwrap();
    spool.end_flush(flush, Err(io::Error::other("no"))).unwrap_err();
    assert_eq!(spool.next_after(None), None);
    spool.flush().unwrap();
    assert_eq!(seqs(&spool), [first, second]);
    assert_eq!(&spool.read(first).unwrap().unwrap().payload[..4], [1, 0, 0, 0]);
    drop(spool);
    assert_eq!(seqs(&open(&directory).0), [first, second]);
}

#[test]
fn a_disk_that_takes_nothing_is_survived_within_bounded_memory() {
    let directory = TempDir::new().unwrap();
    let limits = Config { memory_bytes_max: 5_000, ..config(directory.path(), 1 << 30) };
    let (mut spool, _) = Spool::open(limits, NOW).unwrap();
    spool.active = None;
    let folder = directory.path().join("spool");
    fs::remove_dir_all(&folder).unwrap();
    let mut numbers = Vec::new();
    for mark in 0..20 {
        numbers.push(spool.append(batch(mark, 1_000), NOW).unwrap());
        spool.flush().unwrap_err();
        assert!(spool.waiting_bytes <= 5_000);
    }
    assert_eq!(spool.losses().get(reason::DISK_FULL), 160);
    fs::create_dir(&folder).unwrap();
    spool.flush().unwrap();
    assert_eq!(seqs(&spool), numbers[16..]);
}

#[test]
fn generations_are_never_equal() {
    let directory = TempDir::new().unwrap();
    let (spool, _) = open(&directory);
    assert_eq!(spool.generation(), NOW);
    drop(spool);
    fs::remove_dir_all(directory.path().join("spool")).unwrap();
    let (mut spool, recovery) = open(&directory);
    assert_eq!((spool.generation(), recovery.created), (NOW + 1, true), "created anew in the same second");
    spool.next_counter = u32::MAX - 1;
    let last = spool.append(batch(1, 60), NOW).unwrap();
    let next = spool.append(batch(2, 60), NOW).unwrap();
    assert_eq!((last, next), (seq(NOW + 1, u32::MAX - 1), seq(NOW + 2, 0)));
    spool.flush().unwrap();
    drop(spool);
    fs::remove_file(directory.path().join("generation")).unwrap();
    let (spool, _) = open(&directory);
    assert_eq!((seqs(&spool), spool.generation()), (vec![last, next], NOW + 3));
}

#[test]
fn a_second_process_is_refused() {
    let directory = TempDir::new().unwrap();
    let _first = open(&directory);
    let error = Spool::open(config(directory.path(), 1 << 30), NOW).unwrap_err();
    assert!(error.to_string().contains("used by another process"), "{error}");
}

#[test]
fn batches_sealed_before_any_node_was_reached_keep_the_first_id() {
    let directory = TempDir::new().unwrap();
    let (mut spool, _) = open(&directory);
    let early = spool.append(batch(1, 60), NOW).unwrap();
    spool.set_agent_id(7).unwrap();
    let late = spool.append(batch(2, 60), NOW).unwrap();
    spool.flush().unwrap();
    spool.set_agent_id(8).unwrap();
    drop(spool);
    let (mut spool, _) = open(&directory);
    assert_eq!(spool.agent_id(), 8);
    for number in [early, late] {
        assert_eq!(spool.read(number).unwrap().unwrap().agent_id, 7);
    }
}

#[test]
fn batches_under_an_id_that_no_node_knows_go_under_the_one_that_they_gave() {
    let directory = TempDir::new().unwrap();
    let (mut spool, _) = open(&directory);
    let welcome = |agent_id, agent_id_unknown| Welcome {
        agent_id,
        agent_id_unknown,
        agent_id_proof: vec![agent_id as u8; 32],
        ..Welcome::default()
    };
    spool.take_identity(&welcome(7, false)).unwrap();
    let old = spool.append(batch(1, 60), NOW).unwrap();
    spool.flush().unwrap();
    // Known, and another machine's: what was sealed under it may be in its store.
    spool.take_identity(&welcome(8, false)).unwrap();
    assert_eq!(spool.read(old).unwrap().unwrap().agent_id, 7);
    spool.take_identity(&welcome(7, false)).unwrap();
    spool.take_identity(&welcome(9, true)).unwrap();
    drop(spool);
    let (mut spool, _) = open(&directory);
    assert_eq!((spool.agent_id(), spool.agent_id_proof()), (9, &[9; 32][..]));
    assert_eq!(spool.read(old).unwrap().unwrap().agent_id, 9);
    let late = spool.append(batch(2, 60), NOW).unwrap();
    spool.flush().unwrap();
    spool.take_identity(&welcome(11, true)).unwrap();
    drop(spool);
    let (mut spool, _) = open(&directory);
    for number in [old, late] {
        assert_eq!(spool.read(number).unwrap().unwrap().agent_id, 11, "none of its earlier ids is known");
    }
}

#[test]
fn an_id_that_a_node_does_not_know_is_given_up_unless_it_is_the_present_one() {
    let directory = TempDir::new().unwrap();
    let (mut spool, _) = open(&directory);
    spool.set_agent_id(7).unwrap();
    let old = spool.append(batch(1, 60), NOW).unwrap();
    spool.set_agent_id(8).unwrap();
    spool.flush().unwrap();
    spool.forget_agent_id(8).unwrap();
    assert_eq!(spool.read(old).unwrap().unwrap().agent_id, 7);
    for unknown in 7..=7 + VOID_MAX as u32 {
        spool.forget_agent_id(unknown).unwrap();
    }
    assert_eq!(spool.read(old).unwrap().unwrap().agent_id, 8, "the latest are kept");
    spool.forget_agent_id(100).unwrap();
    assert_eq!(spool.read(old).unwrap().unwrap().agent_id, 7, "the list has an end");
}

#[derive(Debug, Clone)]
enum Operation {
    Append(usize),
    Flush,
    FailedFlush,
    Commit(usize, u64),
    Read(usize),
    /// Kill, with some bytes of an unsynced record at the end of the newest segment.
    Crash(usize),
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        4 => (4usize..600).prop_map(Operation::Append),
        3 => Just(Operation::Flush),
        1 => Just(Operation::FailedFlush),
        2 => (0usize..20, 0u64..4).prop_map(|(at, more)| Operation::Commit(at, more)),
        2 => (0usize..20).prop_map(Operation::Read),
        2 => (0usize..200).prop_map(Operation::Crash),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn any_sequence_of_operations_keeps_every_durable_batch(operations in prop::collection::vec(operation(), 1..60)) {
        let directory = TempDir::new().unwrap();
        let limits = || config(directory.path(), 1 << 20);
        let (mut spool, _) = Spool::open(limits(), NOW).unwrap();
        let mut durable: BTreeMap<u64, Bytes> = BTreeMap::new();
        let mut waiting: BTreeMap<u64, Bytes> = BTreeMap::new();
        let mut ever_durable = 0;
        for (mark, operation) in operations.into_iter().enumerate() {
            match operation {
                Operation::Append(bytes) => {
                    let made = batch(u32::try_from(mark).unwrap(), bytes);
                    let number = spool.append(made.clone(), NOW).unwrap();
                    prop_assert!(number >= ever_durable && !waiting.contains_key(&number));
                    waiting.insert(number, made.payload);
                }
                Operation::Flush => {
                    spool.flush().unwrap();
                    durable.append(&mut waiting);
                    ever_durable = durable.last_key_value().map_or(ever_durable, |(seq, _)| ever_durable.max(seq + 1));
                }
                Operation::FailedFlush => {
                    if let Some(flush) = spool.begin_flush().unwrap() {
                        spool.end_flush(flush, Err(io::Error::other("no"))).unwrap_err();
                    }
                }
                Operation::Commit(at, more) => {
                    if let Some(first) = durable.keys().nth(at).copied() {
                        spool.commit(first, first + more);
                        durable.retain(|seq, _| *seq < first || *seq > first + more);
                    }
                }
                Operation::Read(at) => {
                    if let Some((seq, payload)) = durable.iter().nth(at) {
                        prop_assert_eq!(&spool.read(*seq).unwrap().unwrap().payload, payload);
                    }
                }
                Operation::Crash(torn) => {
                    let newest = segment::list(&directory.path().join("spool")).unwrap().pop().unwrap();
                    drop(spool);
                    waiting.clear();
                    let path = directory.path().join(format!("spool/{newest:010}.segment"));
                    let mut bytes = fs::read(&path).unwrap();
                    let mut record = Vec::new();
                    record::encode_record(&Batch { seq: u64::MAX, ..batch(1, 300) }, &mut record);
                    bytes.extend(&record[..torn]);
                    fs::write(&path, bytes).unwrap();
                    spool = Spool::open(limits(), NOW).unwrap().0;
                }
            }
            prop_assert_eq!(seqs(&spool), durable.keys().copied().collect::<Vec<_>>());
        }
        prop_assert_eq!(spool.losses().total(), 0);
    }
}
