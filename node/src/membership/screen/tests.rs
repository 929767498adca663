//! Tests of the screen: what the library writes passes, what would harm it does not.

use super::{
    super::forge::{Forged, identity},
    *,
};

fn screen() -> Screen {
    Screen::new("c".to_owned(), identity("1", 5))
}

fn syn(digest: &Forged) -> Vec<u8> {
    Forged::message(0).stream(digest).text("c").0
}

fn ack(delta: &Forged) -> Vec<u8> {
    Forged::message(2).stream(delta).0
}

#[test]
fn what_the_library_writes_passes() {
    let other = identity("2", 7);
    let digest = Forged::default().entry(&other, 3, 14).entry(&identity("1", 5), 9, 2);
    let delta = Forged::default().of(&other).value("state", "ready", 1).value("zone", "", 2);
    let bare = Forged::default().of(&other).u8(2).number(9);
    let mut screen = screen();
    for datagram in [
        syn(&digest),
        syn(&Forged::default()),
        Forged::message(1).stream(&digest).stream(&delta).0,
        Forged::message(1).compressed(&digest.0).u8(0).stream(&delta).0,
        ack(&delta),
        ack(&bare),
        ack(&Forged::default()),
    ] {
        assert_eq!(screen.look(&datagram), Ok(()), "{datagram:?}");
    }
}

#[test]
fn what_would_harm_the_library_is_refused_by_reason() {
    let other = identity("2", 7);
    let own = identity("1", 5);
    let of = || Forged::default().of(&other);
    let digest = |identity: &Identity, heartbeat| syn(&Forged::default().entry(identity, heartbeat, 1));
    let bad_name = |name: &str| digest(&identity(name, 1), 1);
    let cases: Vec<(&str, Vec<u8>, Refusal)> = vec![
        ("nothing", vec![], Refusal::Foreign),
        ("garbage", vec![0xff; 2000], Refusal::Foreign),
        ("another format", vec![0x53, 0xb0, 2, 0], Refusal::Version),
        ("another kind", vec![0x53, 0xb0, 1, 9], Refusal::Malformed),
        ("a header alone", vec![0x53, 0xb0, 1], Refusal::Malformed),
        ("a wrong cluster", Forged::message(0).u8(0).text("d").0, Refusal::Cluster),
        ("an answer from another cluster", Forged::message(3).0, Refusal::Cluster),
        ("more after the end", Forged::message(2).u8(0).u8(0).0, Refusal::Malformed),
        ("a block that is cut off", Forged::message(2).u8(2).u8(9).u8(0).0, Refusal::Malformed),
        ("an unknown block", Forged::message(2).u8(7).u8(0).u8(0).0, Refusal::Malformed),
        ("a stream without end", ack(&of())[..8].to_vec(), Refusal::Malformed),
        ("a key beyond ASCII", ack(&of().value("\u{e9}", "", 1)), Refusal::Keys),
        ("an empty key", ack(&of().value("", "", 1)), Refusal::Keys),
        ("a long key", ack(&of().value(&"k".repeat(65), "", 1)), Refusal::Keys),
        ("a long value", ack(&of().value("k", &"v".repeat(1025), 1)), Refusal::Keys),
        ("a version of zero", ack(&of().value("k", "", 0)), Refusal::Malformed),
        ("versions out of order", ack(&of().value("a", "", 2).value("b", "", 2)), Refusal::Malformed),
        ("a version at the end of numbers", ack(&of().value("a", "", u64::MAX)), Refusal::Malformed),
        ("a version that goes back", ack(&of().value("a", "", 9).u8(2).number(1)), Refusal::Malformed),
        ("values of nobody", ack(&Forged::default().value("a", "", 1)), Refusal::Malformed),
        ("one member twice", ack(&of().of(&other)), Refusal::Malformed),
        ("our own values", ack(&Forged::default().of(&own).value("state", "drained", 9)), Refusal::OwnState),
        ("a heartbeat at the end of numbers", digest(&other, u64::MAX), Refusal::Malformed),
        ("a long name", bad_name("123456789"), Refusal::Malformed),
        ("no name", bad_name(""), Refusal::Malformed),
        ("a name beyond ASCII", bad_name("\u{e9}"), Refusal::Malformed),
    ];
    for (name, datagram, expected) in cases {
        assert_eq!(screen().look(&datagram), Err(expected), "{name}");
    }
}

#[test]
fn a_few_bytes_do_not_become_many() {
    let zeros = vec![0; u16::MAX as usize];
    let mut bomb = Forged::message(0);
    while bomb.0.len() < 60_000 {
        bomb = bomb.compressed(&zeros);
    }
    assert!(bomb.0.len() < 65_507);
    assert_eq!(screen().look(&bomb.u8(0).text("c").0), Err(Refusal::Malformed));
}

#[test]
fn members_and_keys_are_bounded_over_many_datagrams() {
    let mut screen = screen();
    // One is this node.
    for generation in 1..MEMBERS_MAX as u64 {
        let datagram = syn(&Forged::default().entry(&identity("2", generation), 1, 1));
        assert_eq!(screen.look(&datagram), Ok(()));
    }
    let one_more = syn(&Forged::default().entry(&identity("3", 1), 1, 1));
    assert_eq!(screen.look(&one_more), Err(Refusal::Members));
    let known = identity("2", 1);
    for key in 0..KEYS_MAX {
        assert_eq!(screen.look(&ack(&Forged::default().of(&known).value(&format!("k{key}"), "", 1))), Ok(()));
    }
    let known_key = ack(&Forged::default().of(&known).value("k0", "new", 2));
    assert_eq!(screen.look(&known_key), Ok(()));
    let one_more_key = ack(&Forged::default().of(&known).value("more", "", 3));
    assert_eq!(screen.look(&one_more_key), Err(Refusal::Keys));
    screen.retain(|identity| *identity == known);
    assert_eq!(screen.look(&one_more), Ok(()));
    assert_eq!(screen.look(&one_more_key), Err(Refusal::Keys));
}

#[test]
fn what_others_claim_of_this_node_is_remembered() {
    let mut screen = screen();
    let own = identity("1", 5);
    let elsewhere = Identity { address: "10.9.9.9:1".parse().unwrap(), generation: 40, ..own.clone() };
    for (heartbeat, version) in [(100, 1), (50, 3)] {
        let digest = Forged::default().entry(&own, heartbeat, version).entry(&elsewhere, 9999, 9999);
        assert_eq!(screen.look(&syn(&digest)), Ok(()));
    }
    assert_eq!(screen.claims(), Claims { heartbeat: 100, version: 3, generation: 40 });
}

#[test]
fn no_bytes_make_it_panic() {
    // Every prefix, and every byte changed, of a message with all parts.
    let other = identity("2", 7);
    let digest = Forged::default().entry(&other, 3, 14);
    let delta = Forged::default().of(&other).value("state", "ready", 1);
    let whole = Forged::message(1).compressed(&digest.0).u8(0).stream(&delta).0;
    for length in 0..whole.len() {
        assert!(screen().look(&whole[..length]).is_err());
    }
    for index in 0..whole.len() {
        for byte in 0..=u8::MAX {
            let mut changed = whole.clone();
            changed[index] = byte;
            let verdict = screen().look(&changed);
            assert!(verdict.is_ok() || verdict.is_err());
        }
    }
}
