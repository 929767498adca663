//! Files of every kind, whole and damaged.

use std::path::Path;

use super::*;

/// What a test wants to know of a frame: time, link, data, wire length.
type Seen = (u64, LinkType, Vec<u8>, u32);

fn read(bytes: &[u8], replay: Replay) -> (Vec<Seen>, Result<(), String>) {
    let mut seen = Vec::new();
    let mut source = match FileSource::new(Path::new("x.pcap"), bytes, replay) {
        Ok(source) => source,
        Err(error) => return (seen, Err(error.to_string())),
    };
    loop {
        let progress = source.poll(Duration::from_millis(5), &mut |frame| {
            seen.push((frame.timestamp, frame.link, frame.data.to_vec(), frame.wire_length));
        });
        match progress {
            Ok(Progress::End) => return (seen, Ok(())),
            Ok(_) => {}
            Err(error) => return (seen, Err(error.to_string())),
        }
    }
}

fn words(big_endian: bool, words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| if big_endian { word.to_be_bytes() } else { word.to_le_bytes() }).collect()
}

fn pcap(big_endian: bool, magic: u32, records: &[(u32, u32, &[u8], u32)]) -> Vec<u8> {
    let mut file = words(big_endian, &[magic, 0x0002_0004, 0, 0, 65_535, 1]);
    for (seconds, fraction, data, wire) in records {
        file.extend(words(big_endian, &[*seconds, *fraction, data.len() as u32, *wire]));
        if magic == 0xa1b2_cd34 {
            file.extend([0; 8]);
        }
        file.extend(*data);
    }
    file
}

fn block(big_endian: bool, kind: u32, body: &[u8]) -> Vec<u8> {
    let length = body.len().next_multiple_of(4) as u32 + 12;
    let mut block = words(big_endian, &[kind, length]);
    block.extend(body);
    block.resize(length as usize - 4, 0);
    block.extend(words(big_endian, &[length]));
    block
}

/// A section with one interface of nanosecond resolution and two packets.
fn pcapng(big_endian: bool) -> Vec<u8> {
    let u16s = |value: u16| if big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
    let mut file =
        block(big_endian, pcapng::SECTION, &words(big_endian, &[0x1a2b_3c4d, 1, u32::MAX, u32::MAX]));
    let mut interface = [u16s(101), u16s(0)].concat();
    interface.extend(words(big_endian, &[100]));
    interface.extend([u16s(9), u16s(1)].concat());
    interface.extend([9, 0, 0, 0]);
    file.extend(block(big_endian, 1, &interface));
    file.extend(block(big_endian, 5, &[0; 8]));
    let ticks = 1_700_000_000_123_456_789_u64;
    let mut packet = words(big_endian, &[0, (ticks >> 32) as u32, ticks as u32, 3, 99]);
    packet.extend(b"abc");
    file.extend(block(big_endian, 6, &packet));
    let mut simple = words(big_endian, &[2]);
    simple.extend(b"de");
    file.extend(block(big_endian, 3, &simple));
    file
}

#[test]
fn every_variant_of_the_classic_format_reads_the_same() {
    for big_endian in [false, true] {
        for (magic, fraction) in [(0xa1b2_c3d4, 250_000), (0xa1b2_3c4d, 250_000_999), (0xa1b2_cd34, 250_000)]
        {
            let file = pcap(big_endian, magic, &[(10, fraction, b"abc", 1_500), (11, 0, b"", 0)]);
            let (seen, end) = read(&file, Replay::default());
            let expected = [
                (10_250_000, LinkType::Ethernet, b"abc".to_vec(), 1_500),
                (11_000_000, LinkType::Ethernet, Vec::new(), 0),
            ];
            assert_eq!((seen, end), (expected.to_vec(), Ok(())), "{magic:x} {big_endian}");
        }
    }
}

#[test]
fn the_newer_format_reads_in_both_byte_orders() {
    for big_endian in [false, true] {
        let file = [pcapng(big_endian), pcapng(!big_endian)].concat();
        let (seen, end) = read(&file, Replay::default());
        let time = 1_700_000_000_123_456;
        let packets = [(time, LinkType::Raw, b"abc".to_vec(), 99), (time, LinkType::Raw, b"de".to_vec(), 2)];
        assert_eq!((seen, end), ([packets.clone(), packets].concat(), Ok(())));
    }
}

#[test]
fn damage_is_named_with_the_packet() {
    fn check(file: &[u8], packets: usize, message: &str) {
        let (seen, end) = read(file, Replay::default());
        assert_eq!((seen.len(), end), (packets, Err(format!("capture file x.pcap: {message}"))));
    }
    let good = pcap(false, 0xa1b2_c3d4, &[(10, 0, b"abc", 3), (11, 0, b"abc", 3)]);
    check(&good[..good.len() - 1], 1, "file ends inside the data at packet 2");
    check(&good[..24 + 19 + 5], 1, "file ends inside the record header at packet 2");
    check(&good[..10], 0, "file ends inside the file header at packet 0");
    check(b"", 0, "file ends inside the file header at packet 0");
    check(b"GET / HTTP/1.1\r\n\r\n", 0, "no pcap or pcapng header at packet 0");
    let mut large = good;
    large[24 + 8..24 + 12].fill(0x7f);
    check(&large, 0, "record of 2139062143 bytes at packet 1");
    let good = pcapng(false);
    let packet = good.len() - 20 - 36;
    let with = |at: usize, value: u8| {
        let mut file = good.clone();
        file[at] = value;
        file
    };
    check(&with(packet + 8, 1), 0, "interface 1, which is not described, at packet 1");
    check(&with(packet + 20, 200), 0, "data longer than its block at packet 1");
    check(&with(packet + 4, 38), 0, "block of 38 bytes at packet 1");
    check(&with(packet + 32, 40), 0, "block whose two lengths differ at packet 1");
    check(&with(8, 0), 0, "section header without byte order at packet 0");
    check(&good[..good.len() - 2], 1, "file ends inside the data at packet 2");
}

#[test]
fn a_replay_can_begin_at_another_time_and_keep_its_pace() {
    let file = pcap(false, 0xa1b2_c3d4, &[(10, 0, b"a", 1), (10, 30_000, b"b", 1), (9, 0, b"c", 1)]);
    let start = Instant::now();
    let (seen, end) = read(&file, Replay { at: ReplayAt::Time(1_000_000_000), speed: Some(2.0) });
    assert!(start.elapsed() >= Duration::from_millis(15));
    assert_eq!(end, Ok(()));
    let times: Vec<u64> = seen.iter().map(|seen| seen.0).collect();
    assert_eq!(times, [1_000_000_000, 1_000_030_000, 999_000_000]);
}

proptest::proptest! {
    #[test]
    fn damaged_files_never_panic(at in 0usize..400, value: u8, cut in 0usize..400, newer: bool) {
        let mut file = if newer { pcapng(false) } else { pcap(false, 0xa1b2_c3d4, &[(1, 2, &b"abc"[..], 3); 5]) };
        let end = file.len();
        file[at % end] = value;
        let (seen, _) = read(&file[..cut.min(end)], Replay::default());
        proptest::prop_assert!(seen.len() <= 5);
    }

    #[test]
    fn arbitrary_files_never_panic(bytes: Vec<u8>) {
        for magic in [[0x0a, 0x0d, 0x0d, 0x0a], [0xd4, 0xc3, 0xb2, 0xa1]] {
            let (seen, _) = read(&[&magic, &bytes[..]].concat(), Replay::default());
            proptest::prop_assert!(seen.len() <= bytes.len());
        }
    }
}
