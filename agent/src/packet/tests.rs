//! Decoding of frames, good and bad.

use std::net::IpAddr;

use super::*;

fn frame(link: LinkType, data: &[u8]) -> Frame<'_> {
    Frame { timestamp: 7, interface_index: 3, link, vlan: 0, data, wire_length: data.len() as u32 }
}

fn ipv4(protocol: u8, options: usize, rest: &[u8]) -> Vec<u8> {
    let total = (20 + options + rest.len()) as u16;
    let mut header =
        vec![0x40 | (5 + options / 4) as u8, 0, (total >> 8) as u8, total as u8, 0, 0, 0x40, 0, 64, protocol];
    header.extend([0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    header.resize(20 + options, 1);
    [&header[..], rest].concat()
}

fn ipv6(next: u8, rest: &[u8]) -> Vec<u8> {
    let mut header = vec![0x60, 0, 0, 0, (rest.len() >> 8) as u8, rest.len() as u8, next, 64];
    header.extend([0xfd; 16]);
    header.extend([0xfe; 16]);
    [&header[..], rest].concat()
}

fn ethernet(tags: &[u8], ethertype: u16, rest: &[u8]) -> Vec<u8> {
    let mut header = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    header.extend(tags);
    header.extend(ethertype.to_be_bytes());
    [&header[..], rest].concat()
}

fn tcp_bytes(flags: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut header =
        vec![0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, (((20 + options.len()) / 4) << 4) as u8, flags];
    header.extend([1, 0, 0, 0, 0, 0]);
    [&header[..], options, payload].concat()
}

fn udp_bytes(payload: &[u8]) -> Vec<u8> {
    let length = 8 + payload.len() as u16;
    [&[0x9c, 0x40, 0, 53, (length >> 8) as u8, length as u8, 0, 0], payload].concat()
}

#[test]
fn every_link_type_leads_to_the_same_packet() {
    fn check(link: LinkType, data: &[u8], vlan: u16, mac: u64) {
        let packet = decode(&frame(link, data)).unwrap();
        assert_eq!((packet.vlan, packet.source_mac), (vlan, mac), "{link:?}");
        assert_eq!((packet.payload, packet.payload_length), (&b"hello"[..], 5), "{link:?}");
        assert_eq!(packet.transport.ports(), (40_000, 80), "{link:?}");
        assert_eq!(packet.wire_length as usize, data.len());
    }
    let ip = ipv4(6, 0, &tcp_bytes(flags::ACK, &[], b"hello"));
    let mac = 0x0200_0000_0002;
    check(LinkType::Ethernet, &ethernet(&[], 0x0800, &ip), 0, mac);
    check(LinkType::Ethernet, &ethernet(&[0x81, 0, 0x30, 5], 0x0800, &ip), 5, mac);
    check(LinkType::Ethernet, &ethernet(&[0x88, 0xa8, 0, 9, 0x81, 0, 0, 5], 0x0800, &ip), 9, mac);
    check(LinkType::Raw, &ip, 0, 0);
    check(LinkType::Null, &[&[2, 0, 0, 0], &ip[..]].concat(), 0, 0);
    let cooked = [0, 0, 0, 1, 0, 6, 2, 0, 0, 0, 0, 2, 0, 0, 8, 0];
    check(LinkType::LinuxCooked, &[&cooked, &ip[..]].concat(), 0, mac);
    let cooked2 = [8, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 6, 2, 0, 0, 0, 0, 2, 0, 0];
    check(LinkType::LinuxCooked2, &[&cooked2, &ip[..]].concat(), 0, mac);
    let mut tagged = frame(LinkType::Raw, &ip);
    tagged.vlan = 77;
    assert_eq!(decode(&tagged).unwrap().vlan, 77);
}

#[test]
fn network_headers_of_every_shape_are_stepped_over() {
    fn check(data: &[u8], expected: &[u8]) {
        let packet = decode(&frame(LinkType::Raw, data)).unwrap();
        assert_eq!((packet.payload, packet.payload_length as usize), (expected, expected.len()));
    }
    check(&ipv4(17, 12, &udp_bytes(b"dns")), b"dns");
    check(&ipv6(17, &udp_bytes(b"dns")), b"dns");
    let extensions =
        [&[60, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0, 0], &udp_bytes(b"dns")[..]];
    check(&ipv6(0, &extensions.concat()), b"dns");
    let mut padded = ipv4(6, 0, &tcp_bytes(flags::ACK, &[], b""));
    padded.extend([0; 6]);
    check(&padded, b"");
    let address: IpAddr = "fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd:fdfd".parse().unwrap();
    assert_eq!(decode(&frame(LinkType::Raw, &ipv6(17, &udp_bytes(b"dns")))).unwrap().source, address);
}

#[test]
fn what_was_not_captured_still_counts() {
    let data = ipv4(6, 0, &tcp_bytes(flags::ACK, &[], &[b'a'; 900]));
    let mut cut = frame(LinkType::Raw, &data);
    cut.data = &data[..140];
    let packet = decode(&cut).unwrap();
    assert_eq!((packet.payload.len(), packet.payload_length, packet.wire_length), (100, 900, 940));
}

#[test]
fn packets_larger_than_64_kib_are_measured_by_the_frame() {
    let mut data = ipv4(6, 0, &tcp_bytes(flags::ACK, &[], &[b'a'; 1_000]));
    data[2..4].fill(0);
    let mut large = frame(LinkType::Raw, &data);
    large.wire_length = 190_040;
    assert_eq!(decode(&large).unwrap().payload_length, 190_000);
}

#[test]
fn options_of_a_syn_are_read() {
    let options = [2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 9, 0, 0, 0, 0, 1, 3, 3, 7];
    let expected = TcpOptions {
        mss: Some(1_460),
        window_scale: Some(7),
        sack_permitted: true,
        timestamps: Some((9, 0)),
    };
    let read = |options: &[u8]| match decode(&frame(
        LinkType::Raw,
        &ipv4(6, 0, &tcp_bytes(flags::SYN, options, b"")),
    ))
    .unwrap()
    .transport
    {
        Transport::Tcp(tcp) => tcp.options,
        Transport::Udp { .. } => unreachable!("it is TCP"),
    };
    assert_eq!(read(&options), expected);
    assert_eq!(read(&[3, 3, 200, 0]).window_scale, Some(14));
    assert_eq!(read(&[2, 0, 5, 0xb4]), TcpOptions::default());
    assert_eq!(read(&[1, 1, 1, 2]), TcpOptions::default());
}

#[test]
fn frames_that_are_no_packets_say_why() {
    fn check(link: LinkType, data: &[u8], expected: Skip) {
        assert_eq!(decode(&frame(link, data)).map(|_| ()), Err(expected), "{link:?} {data:?}");
    }
    let tcp = tcp_bytes(flags::ACK, &[], b"hello");
    let good = ipv4(6, 0, &tcp);
    let with = |at: usize, value: u8| {
        let mut data = good.clone();
        data[at] = value;
        data
    };
    check(LinkType::Unknown(147), &good, Skip::UnknownLink);
    check(LinkType::Ethernet, &good[..10], Skip::TruncatedLink);
    check(LinkType::Ethernet, &ethernet(&[0x81, 0, 0], 0, &[])[..15], Skip::TruncatedLink);
    check(LinkType::Ethernet, &ethernet(&[], 0x0806, &good), Skip::NotIp);
    check(LinkType::Ethernet, &ethernet(&[0x81, 0, 0, 1].repeat(9), 0x0800, &good), Skip::NotIp);
    check(LinkType::Raw, &[], Skip::TruncatedLink);
    check(LinkType::Raw, &good[..19], Skip::TruncatedNetwork);
    check(LinkType::Raw, &with(0, 0x44), Skip::BadNetwork);
    check(LinkType::Raw, &with(2, 0xff), Skip::BadNetwork);
    check(LinkType::Raw, &with(7, 1), Skip::LaterFragment);
    check(LinkType::Raw, &with(9, 1), Skip::Icmp);
    check(LinkType::Raw, &with(9, 132), Skip::OtherTransport);
    check(LinkType::Raw, &with(32, 0x40), Skip::BadTransport);
    check(LinkType::Raw, &with(32, 0xf0), Skip::BadTransport);
    check(LinkType::Raw, &ipv4(17, 0, &[0, 1, 0, 2, 0, 7, 0, 0]), Skip::BadTransport);
    check(LinkType::Raw, &ipv4(17, 0, &[0, 1, 0, 2, 0, 99, 0, 0]), Skip::BadTransport);
    check(LinkType::Raw, &ipv6(6, &tcp[..9]), Skip::TruncatedTransport);
    check(LinkType::Raw, &ipv6(44, &[6, 0, 0, 8, 0, 0, 0, 1]), Skip::LaterFragment);
    check(LinkType::Raw, &ipv6(0, &[0, 0, 0, 0, 0, 0, 0, 0].repeat(20)), Skip::BadNetwork);
    let mut skips = Skips::default();
    skips.count(Skip::Icmp);
    assert_eq!((skips.of(Skip::Icmp), skips.total(), skips.iter().count()), (1, 1, Skip::ALL.len()));
}

proptest::proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(data: Vec<u8>, number in 0u16..300, wire: u32) {
        let mut any = frame(LinkType::from_file(number), &data);
        any.wire_length = wire;
        if let Ok(packet) = decode(&any) {
            proptest::prop_assert!(packet.payload.len() <= packet.payload_length as usize);
        }
    }

    #[test]
    fn a_mutated_packet_never_panics(at in 0usize..80, value: u8, cut in 0usize..80) {
        let mut data = ethernet(&[], 0x86dd, &ipv6(0, &[&[6, 0, 0, 0, 0, 0, 0, 0], &tcp_bytes(2, &[2, 4, 5, 0xb4], b"x")[..]].concat()));
        let end = data.len();
        data[at % end] = value;
        if let Ok(packet) = decode(&frame(LinkType::Ethernet, &data[..cut.min(end)])) {
            proptest::prop_assert!(packet.payload.len() <= packet.payload_length as usize);
        }
    }
}
