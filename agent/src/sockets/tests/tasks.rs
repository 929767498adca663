//! Tasks of tokio, by hand-made events.

use super::*;
use crate::events::Act;

/// GET http /, and status 200; each ends its stream.
fn get(stream: u8) -> Vec<u8> {
    [&[0, 0, 3, 1, 5, 0, 0, 0, stream][..], &[0x82, 0x86, 0x84]].concat()
}

fn ok(stream: u8) -> [u8; 10] {
    [0, 0, 1, 1, 5, 0, 0, 0, stream, 0x88]
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const WORKER: u64 = 20;
const DISPATCHER: u64 = 21;
const WRITER: u64 = 22;
const FIRST: u64 = 0xa0;
const SECOND: u64 = 0xb0;

fn task(coroutine: u64) -> Task {
    Task { pid: 2, thread: 20, coroutine }
}

impl Host {
    fn act(&mut self, coroutine: u64, act: Act, other: u64) {
        self.event(Event::Act { task: task(coroutine), act, other });
    }

    fn transfer_by(&mut self, coroutine: u64, socket: u64, way: Way, payload: &[u8]) {
        self.coroutine = coroutine;
        self.transfer(socket, 20, way, payload);
    }

    /// A client of gRPC: what tasks leave in a queue goes over another one to the task that writes to socket 3.
    fn client(&mut self) {
        self.open(3);
        self.act(WORKER, Act::Waits, FIRST);
        self.act(DISPATCHER, Act::Waits, SECOND);
        self.act(DISPATCHER, Act::Wakes, WRITER);
        self.transfer_by(WRITER, 3, Way::Out, PREFACE);
    }
}

#[test]
fn what_goes_over_queues_to_one_connection_is_linked_to_its_request() {
    let mut host = Host::new();
    host.client();
    host.open(101);
    host.open(102);
    // Each by itself, then two at one time, which the writer sends in one go, in the order in which they were left.
    for (stream, front) in [(1, 101), (3, 102)] {
        host.transfer_by(front, front, Way::In, GET);
        host.act(front, Act::Sends, FIRST);
        host.act(WORKER, Act::Sends, SECOND);
        host.transfer_by(WRITER, 3, Way::Out, &get(stream));
        host.transfer_by(WRITER, 3, Way::In, &ok(stream));
        host.transfer_by(front, front, Way::Out, OK);
        let (asked, served) = (host.call(), host.call());
        assert_eq!(asked.traces, served.traces);
        assert_eq!(asked.source, SyscallTraceSource::Coroutine);
        assert_eq!(served.coroutines, [2 << 42 | front; 2]);
    }
    host.transfer_by(1, 101, Way::In, GET);
    host.transfer_by(2, 102, Way::In, GET);
    for front in [2, 1] {
        host.act(front, Act::Sends, FIRST);
        host.act(WORKER, Act::Sends, SECOND);
    }
    host.transfer_by(WRITER, 3, Way::Out, &[get(5), get(7)].concat());
    host.transfer_by(WRITER, 3, Way::In, &[ok(5), ok(7)].concat());
    host.transfer_by(1, 101, Way::Out, OK);
    host.transfer_by(2, 102, Way::Out, OK);
    let calls: Vec<Call> = (0..4).map(|_| host.call()).collect();
    assert_eq!([calls[0].traces, calls[1].traces], [calls[3].traces, calls[2].traces]);
    assert_ne!(calls[0].traces, calls[1].traces);
    // The first was one of two, and the order may have been the other by a hair.
    assert_eq!(calls[0].source, SyscallTraceSource::EventLoop);
}

#[test]
fn streams_are_served_by_the_tasks_that_are_begun_for_them() {
    let mut host = Host::new();
    [101, 4, 5].into_iter().for_each(|socket| host.open(socket));
    host.transfer_by(1, 101, Way::In, PREFACE);
    host.transfer_by(1, 101, Way::In, &[get(1), get(3)].concat());
    host.act(1, Act::Spawns, 11);
    host.act(1, Act::Spawns, 13);
    let mut asked = Vec::new();
    for (coroutine, socket) in [(13, 4), (11, 5)] {
        host.transfer_by(coroutine, socket, Way::Out, GET);
        host.transfer_by(coroutine, socket, Way::In, OK);
        asked.push(host.call().traces);
    }
    host.transfer_by(1, 101, Way::Out, &ok(3));
    host.transfer_by(1, 101, Way::Out, &ok(1));
    let (third, first) = (host.call(), host.call());
    assert_eq!(asked, [third.traces, first.traces]);
    assert_ne!(first.traces, third.traces);
    // What goes on after the answer works for nothing.
    host.transfer_by(11, 5, Way::Out, GET);
    host.transfer_by(11, 5, Way::In, OK);
    assert_eq!(host.call().traces, [0; 2]);
}

#[test]
fn a_connection_that_was_begun_for_a_request_is_not_its_own() {
    let mut host = Host::new();
    host.open(101);
    host.transfer_by(1, 101, Way::In, GET);
    host.act(1, Act::Spawns, WRITER);
    host.act(1, Act::Spawns, DISPATCHER);
    host.client();
    // Another task's request is written while the first is open.
    host.open(102);
    host.transfer_by(2, 102, Way::In, GET);
    host.act(2, Act::Sends, SECOND);
    host.transfer_by(WRITER, 3, Way::Out, &get(1));
    host.transfer_by(WRITER, 3, Way::In, &ok(1));
    host.transfer_by(2, 102, Way::Out, OK);
    let (asked, served) = (host.call(), host.call());
    assert_eq!(asked.traces, served.traces);
}

#[test]
fn a_task_that_serves_several_connections_at_once_is_a_guess() {
    let mut host = Host::new();
    [101, 102, 4].into_iter().for_each(|socket| host.open(socket));
    host.transfer_by(1, 101, Way::In, GET);
    host.transfer_by(1, 102, Way::In, GET);
    host.transfer_by(1, 4, Way::Out, GET);
    host.transfer_by(1, 4, Way::In, OK);
    assert_eq!(host.call().source, SyscallTraceSource::EventLoop);
}
