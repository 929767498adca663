//! HPACK: the standard's examples, what was missed, and what is hostile.

use super::*;

/// Decodes blocks one after the other; fields that do not matter are shown without a value.
#[track_caller]
fn check(decoder: &mut Decoder, block: &[u8], expected: &str) {
    let mut found = Vec::new();
    let result = decoder.decode(block, |field, value| {
        found.push(format!("{field:?}={}", String::from_utf8_lossy(value)));
    });
    let shown = if result.is_ok() { found.join(" ") } else { "broken".to_owned() };
    assert_eq!(shown, expected);
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        text.chars().filter_map(|digit| digit.to_digit(16)).map(|digit| digit as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// RFC 7541, C.3 and C.4: requests, plain and Huffman coded.
#[test]
fn requests_of_the_standard() {
    for blocks in [
        [
            "828684410f7777772e6578616d706c652e636f6d",
            "828684be58086e6f2d6361636865",
            "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
        ],
        [
            "828684418cf1e3c2e5f23a6ba0ab90f4ff",
            "828684be5886a8eb10649cbf",
            "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
        ],
    ] {
        let mut decoder = Decoder::default();
        check(&mut decoder, &hex(blocks[0]), "Method=GET Other=http Path=/ Authority=www.example.com");
        check(&mut decoder, &hex(blocks[1]), "Method=GET Other=http Path=/ Authority=www.example.com Other=");
        let third = "Method=GET Other=https Path=/index.html Authority=www.example.com Other=";
        check(&mut decoder, &hex(blocks[2]), third);
        assert_eq!((decoder.size, decoder.entries.len()), (164, 3));
    }
}

/// RFC 7541, C.6: responses in a table of 256 bytes, with evictions.
#[test]
fn responses_of_the_standard_with_evictions() {
    let mut decoder = Decoder { size_max: 256, ..Decoder::default() };
    let first = "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae82ae43d3";
    check(&mut decoder, &hex(first), "Status=302 Other= Other= Other=");
    assert_eq!((decoder.size, decoder.entries.len()), (222, 4));
    check(&mut decoder, &hex("4883640effc1c0bf"), "Status=307 Other= Other= Other=");
    assert_eq!((decoder.size, decoder.entries.len()), (222, 4));
    let third = "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007";
    check(&mut decoder, &hex(third), "Status=200 Other= Other= Other= Other= Other=");
    assert_eq!((decoder.size, decoder.entries.len()), (215, 3));
}

/// A literal that is added to the table.
fn add(name: &str, value: &str) -> Vec<u8> {
    let part = |text: &str| [&[text.len() as u8][..], text.as_bytes()].concat();
    [vec![0x40], part(name), part(value)].concat()
}

#[test]
fn what_was_missed_is_unknown_and_never_something_else() {
    let (path, agent) = (add(":path", "/orders"), add("user-agent", "curl"));
    let mut joined = Decoder::default();
    // Two entries from before: both are unknown, wherever they move to.
    check(&mut joined, &[0xbe, 0xbf], "Unknown= Unknown=");
    check(&mut joined, &path, "Path=/orders");
    check(&mut joined, &[0xbe, 0xbf, 0xc0], "Path=/orders Unknown= Unknown=");
    // A new value of an unknown name: the entry is known to be there, its name is not.
    check(&mut joined, &[0x7f, 0x00, 0x01, b'x'], "Unknown=");
    check(&mut joined, &[0xbe, 0xbf, 0xc0], "Unknown= Path=/orders Unknown=");
    check(&mut joined, &agent, "UserAgent=curl");
    check(&mut joined, &[0xbe, 0xbf, 0xc0, 0xc1], "UserAgent=curl Unknown= Path=/orders Unknown=");
    // A lost block may have moved everything.
    joined.forget();
    check(&mut joined, &[0xbe, 0xbf, 0xc0], "Unknown= Unknown= Unknown=");
    check(&mut joined, &agent, "UserAgent=curl");
    check(&mut joined, &[0xbe, 0xbf], "UserAgent=curl Unknown=");
}

#[test]
fn sizes_are_obeyed_and_bounded() {
    let mut decoder = Decoder::default();
    for _ in 0..10_000 {
        let mut block = add("x-filler", &"v".repeat(100));
        block.splice(0..0, [0x3f, 0xe1, 0xff, 0xff, 0x7f]);
        assert_eq!(decoder.decode(&block, |_, _| {}), Ok(()));
    }
    assert!(decoder.size <= TABLE_MAX && decoder.entries.len() <= TABLE_MAX / ENTRY_SIZE);
    check(&mut decoder, &add(":path", "/a"), "Path=/a");
    check(&mut decoder, &[0x20, 0xbe], "Unknown=");
    assert_eq!((decoder.size, decoder.entries.len()), (0, 0));
    // An entry that is larger than the table empties it.
    check(&mut decoder, &[&[0x3f, 0x21][..], &add(":path", "/a")].concat(), "Path=/a");
    check(&mut decoder, &add("x-filler", &"v".repeat(100)), "Other=");
    check(&mut decoder, &[0xbe], "Unknown=");
}

#[test]
fn what_breaks_the_rules_is_refused_and_forgets_the_table() {
    for broken in [
        &[0x3f][..],
        &[0x80],
        &[0xff],
        &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        &[0x40],
        &[0x40, 0x05, b'a'],
        &[0x40, 0x01, b'a', 0x7f, 0xff, 0xff, 0xff, 0x0f],
        &[0x41, 0x84, 0xff, 0xff, 0xff, 0xff],
        &[0x0f],
    ] {
        let mut decoder = Decoder::default();
        check(&mut decoder, &add(":path", "/a"), "Path=/a");
        check(&mut decoder, broken, "broken");
        check(&mut decoder, &[0xbe], "Unknown=");
    }
}
