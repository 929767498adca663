//! Streams of HTTP/2 that goroutines hand to one another.

use super::*;

/// With an empty frame of settings.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// GET http /, which ends its side of the stream.
fn get(stream: u8) -> Vec<u8> {
    [&[0, 0, 3, 1, 5, 0, 0, 0, stream][..], &[0x82, 0x86, 0x84]].concat()
}

/// Status 200, which ends the other one.
fn ok(stream: u8) -> [u8; 10] {
    [0, 0, 1, 1, 5, 0, 0, 0, stream, 0x88]
}

#[test]
fn streams_of_a_connection_are_told_apart() {
    let mut host = Host::new();
    host.open(101);
    host.open(3);
    let task = |coroutine| Task { pid: 2, thread: 20, coroutine };
    // One coroutine reads for all, and leaves each stream for another one, which begins a third for it.
    host.coroutine = 1;
    host.transfer(101, 20, Way::In, PREFACE);
    host.transfer(101, 20, Way::In, &[get(1), get(3)].concat());
    for stream in [1, 3] {
        host.event(Event::HandOver { task: task(1), place: stream, stream: stream as u32 });
    }
    for stream in [3, 1] {
        host.event(Event::TakeOver { task: task(2), place: stream, stream: 0 });
        host.event(Event::Spawn { task: task(2), child: 10 + stream });
    }
    let mut asked = Vec::new();
    for stream in [1, 3] {
        host.coroutine = 10 + stream;
        host.transfer(3, 20, Way::Out, GET);
        host.transfer(3, 20, Way::In, OK);
        asked.push(host.call().traces);
    }
    host.coroutine = 4;
    host.transfer(101, 20, Way::Out, &ok(3));
    host.transfer(101, 20, Way::Out, &ok(1));
    let (third, first) = (host.call(), host.call());
    assert_eq!((first.session.request_id, third.session.request_id), (1, 3));
    assert_eq!(asked, [first.traces, third.traces]);
    assert_ne!(first.traces, third.traces);
}

#[test]
fn streams_that_came_with_the_handshake_are_told_apart() {
    let hello: &[u8] = &[0x16, 3, 1, 0, 5, 1, 2, 3, 4, 5];
    let record: &[u8] = &[0x17, 3, 3, 0, 5];
    let mut host = Host::new();
    host.open(101);
    host.open(3);
    let task = |coroutine| Task { pid: 2, thread: 20, coroutine };
    host.transfer(101, 20, Way::In, hello);
    // The coroutine that reads for all finds both in the library, before anybody knows of which socket.
    host.coroutine = 1;
    host.plain(0xa, 20, Way::In, host.now(), &[PREFACE, &get(1), &get(3)].concat());
    let mut asked = Vec::new();
    for stream in [1, 3_u8] {
        host.event(Event::HandOver { task: task(1), place: stream.into(), stream: stream.into() });
        host.event(Event::TakeOver { task: task(2), place: stream.into(), stream: 0 });
        host.event(Event::Spawn { task: task(2), child: 10 + u64::from(stream) });
        host.coroutine = 10 + u64::from(stream);
        host.transfer(3, 20, Way::Out, GET);
        host.transfer(3, 20, Way::In, OK);
        asked.push(host.call().traces);
    }
    host.coroutine = 4;
    for stream in [1, 3] {
        let entered = host.now();
        host.transfer(101, 20, Way::Out, record);
        host.plain(0xa, 20, Way::Out, entered, &ok(stream));
    }
    let (first, third) = (host.call(), host.call());
    assert_eq!((first.session.request_id, third.session.request_id), (1, 3));
    assert_eq!(asked, [first.traces, third.traces]);
    assert_ne!(first.traces, third.traces);
}
