//! Requests that wait for their responses, and the sessions that come of them.

use std::collections::VecDeque;
use std::mem::take;

use metaflow_schema::enums::{L7Protocol, L7Type, ResponseStatus};

use super::{Session, SessionBox};
use crate::protocol::{Envelope, Message, Outcome, Pairing, Protocol, Request, Response, ResponseMore};

/// Open requests of one flow; more than servers allow streams or clients pipeline.
const OPEN_MAX: usize = 128;
/// A response that goes on for longer (downloads, event streams) is reported as far as it was seen.
const RESPONSE_AGE_MAX_US: u64 = 10_000_000;

#[derive(Debug)]
pub(super) struct Pending {
    protocol: L7Protocol,
    pairing: Pairing,
    timeout_us: u64,
    entries: VecDeque<Entry>,
    /// No entry is due before this.
    due: u64,
    /// Requests that found no room.
    pub(super) excess: u32,
    /// Times that a parser lost its way.
    pub(super) losses: u32,
}

#[derive(Debug)]
enum Entry {
    Open(Open),
    /// Requests that were reported already: they use up so many responses of a protocol that pairs by order.
    Ghosts(u32),
}

#[derive(Debug)]
struct Open {
    id: u64,
    due: u64,
    answered: bool,
    session: SessionBox,
}

impl Pending {
    pub(super) fn new(protocol: L7Protocol, pairing: Pairing, timeout_us: u64) -> Self {
        Pending {
            protocol,
            pairing,
            timeout_us,
            entries: VecDeque::new(),
            due: u64::MAX,
            excess: 0,
            losses: 0,
        }
    }

    /// Takes a message in and hands out what it completes. The message's texts are taken out of it: moving it as a whole, a few
    /// hundred bytes from place to place, would cost more.
    pub(super) fn message(&mut self, message: &mut Message, out: &mut Vec<SessionBox>) {
        match message {
            Message::Request(request) => self.request(request, out),
            Message::Response(response) => self.response(response, out),
            Message::RequestMore(envelope) => self.request_more(envelope),
            Message::ResponseMore(more) => self.response_more(more, out),
            Message::Failed { envelope, outcome } => self.failed(envelope, outcome, out),
            Message::Lost => self.lost(out),
        }
    }

    /// Reports requests that waited too long and responses that go on and on.
    pub(super) fn expire(&mut self, now_us: u64, out: &mut Vec<SessionBox>) {
        if now_us < self.due {
            return;
        }
        self.due = u64::MAX;
        let by_order = self.pairing == Pairing::Order;
        for entry in take(&mut self.entries) {
            match entry {
                Entry::Open(open) if open.due <= now_us => {
                    let answered = open.answered;
                    out.push(open.close(ResponseStatus::Timeout));
                    if by_order && !answered {
                        self.push_ghosts(1);
                    }
                }
                Entry::Open(open) => {
                    self.due = self.due.min(open.due);
                    self.entries.push_back(Entry::Open(open));
                }
                Entry::Ghosts(count) => self.push_ghosts(count),
            }
        }
    }

    /// Reports everything: no more can be learnt about it.
    pub(super) fn flush(&mut self, out: &mut Vec<SessionBox>) {
        for entry in self.entries.drain(..) {
            if let Entry::Open(open) = entry {
                out.push(open.close(ResponseStatus::Unknown));
            }
        }
        self.due = u64::MAX;
    }

    /// Reports what cannot be paired for certain after bytes were lost: with ids, nothing.
    fn lost(&mut self, out: &mut Vec<SessionBox>) {
        self.losses = self.losses.saturating_add(1);
        if self.pairing == Pairing::Order {
            self.flush(out);
        }
    }

    fn request(&mut self, request: &mut Request, out: &mut Vec<SessionBox>) {
        let (id, one_way) = (request.envelope.id, request.one_way);
        let due = request.envelope.start_time.saturating_add(self.timeout_us);
        let mut session = of_request(self.protocol, request);
        if one_way {
            session.status = ResponseStatus::Normal;
            out.push(session);
            return;
        }
        // A client that goes on after a response failed to come has given it up.
        if self.entries.iter().all(|entry| matches!(entry, Entry::Ghosts(_))) {
            self.entries.clear();
        }
        if self.entries.len() >= OPEN_MAX {
            self.excess = self.excess.saturating_add(1);
            out.push(session);
            if self.pairing == Pairing::Order {
                self.push_ghosts(1);
            }
            return;
        }
        self.due = self.due.min(due);
        self.entries.push_back(Entry::Open(Open { id, due, answered: false, session }));
    }

    /// The conversation goes on in another protocol, whose first stream is the request that is open.
    pub(super) fn becomes(&mut self, protocol: &Protocol) {
        (self.protocol, self.pairing, self.timeout_us) =
            (protocol.number, protocol.pairing, protocol.timeout_us);
        self.entries.retain(|entry| matches!(entry, Entry::Open(_)));
        for entry in &mut self.entries {
            if let Entry::Open(open) = entry {
                open.id = 1;
                (open.session.protocol, open.session.request_id) = (protocol.number, 1);
            }
        }
    }

    fn failed(&mut self, envelope: &Envelope, outcome: &mut Outcome, out: &mut Vec<SessionBox>) {
        if let Some((at, open)) = self.find(envelope.id, false) {
            open.session.end_time = open.session.end_time.max(envelope.end_time);
            fail(&mut open.session, outcome);
            self.take(at, out);
        }
    }

    fn response(&mut self, response: &mut Response, out: &mut Vec<SessionBox>) {
        if response.one_way {
            out.push(of_response(self.protocol, response));
            return;
        }
        if self.pairing == Pairing::Order && matches!(self.front(), Some(open) if open.answered) {
            self.take(0, out);
        }
        match self.find(response.envelope.id, false) {
            Some((at, open)) => {
                let complete = response.complete;
                let due = response.envelope.start_time.saturating_add(RESPONSE_AGE_MAX_US);
                open.due = due;
                open.answered = true;
                answer(&mut open.session, response);
                self.due = self.due.min(due);
                if complete {
                    self.take(at, out);
                }
            }
            None => {
                self.use_up_ghost();
                out.push(of_response(self.protocol, response));
            }
        }
    }

    fn request_more(&mut self, more: &Envelope) {
        let open = match self.pairing {
            Pairing::Order => match self.entries.back_mut() {
                Some(Entry::Open(open)) => Some(open),
                _ => None,
            },
            Pairing::Id => self.find(more.id, false).map(|(_, open)| open),
        };
        if let Some(open) = open {
            let session = &mut open.session;
            session.request_length = session.request_length.saturating_add(more.length);
            session.captured_request_byte = add(session.captured_request_byte, more.captured);
            session.end_time = session.end_time.max(more.end_time);
        }
    }

    fn response_more(&mut self, more: &mut ResponseMore, out: &mut Vec<SessionBox>) {
        let ResponseMore { envelope, complete, failure, result, arrived } = more;
        let Some((at, open)) = self.find(envelope.id, true) else { return };
        let session = &mut open.session;
        session.response_length = session.response_length.saturating_add(envelope.length);
        session.captured_response_byte = add(session.captured_response_byte, envelope.captured);
        session.end_time = session.end_time.max(envelope.end_time);
        if let Some(outcome) = failure {
            fail(session, outcome);
        }
        if let Some(arrived) = arrived {
            session.response_duration = Some(arrived.saturating_sub(session.start_time));
        }
        if !result.is_empty() {
            session.response_result = take(result);
        }
        if *complete {
            self.take(at, out);
        }
    }

    /// The request that a response belongs to, or the one whose response goes on.
    fn find(&mut self, id: u64, answered: bool) -> Option<(usize, &mut Open)> {
        let by_order = self.pairing == Pairing::Order;
        let candidates = if by_order { 1 } else { self.entries.len() };
        (self.entries.iter_mut().enumerate().take(candidates)).find_map(|(at, entry)| match entry {
            Entry::Open(open) if open.answered == answered && (by_order || open.id == id) => Some((at, open)),
            _ => None,
        })
    }

    fn front(&self) -> Option<&Open> {
        match self.entries.front() {
            Some(Entry::Open(open)) => Some(open),
            _ => None,
        }
    }

    fn take(&mut self, at: usize, out: &mut Vec<SessionBox>) {
        if let Some(Entry::Open(open)) = self.entries.remove(at) {
            out.push(open.session);
        }
        if self.entries.is_empty() {
            self.due = u64::MAX;
        }
    }

    fn push_ghosts(&mut self, count: u32) {
        match self.entries.back_mut() {
            Some(Entry::Ghosts(before)) => *before = before.saturating_add(count),
            _ => self.entries.push_back(Entry::Ghosts(count)),
        }
    }

    fn use_up_ghost(&mut self) {
        if let Some(Entry::Ghosts(count)) = self.entries.front_mut() {
            *count -= 1;
            if *count == 0 {
                self.entries.pop_front();
            }
        }
    }
}

impl Open {
    /// The session as it is; `status` tells what became of it when no response came.
    fn close(self, status: ResponseStatus) -> SessionBox {
        let mut session = self.session;
        if !self.answered {
            session.status = status;
        }
        session
    }
}

fn of_request(protocol: L7Protocol, request: &mut Request) -> SessionBox {
    let Request {
        envelope,
        protocol: own,
        version,
        request_type,
        domain,
        resource,
        endpoint,
        number,
        trace,
        x_request_id,
        user_agent,
        referer,
        proxy_client,
        one_way: _,
    } = request;
    Box::new(Session {
        protocol: own.unwrap_or(protocol),
        l7_type: L7Type::Request,
        start_time: envelope.start_time,
        end_time: envelope.end_time,
        response_duration: None,
        version,
        request_type: take(request_type),
        request_domain: take(domain),
        request_resource: take(resource),
        endpoint: take(endpoint),
        request_id: *number,
        status: ResponseStatus::Unknown,
        response_code: 0,
        response_exception: String::new(),
        response_result: String::new(),
        trace_id: take(&mut trace.trace_id),
        span_id: take(&mut trace.span_id),
        parent_span_id: take(&mut trace.parent_span_id),
        x_request_id_request: take(x_request_id),
        x_request_id_response: String::new(),
        user_agent: take(user_agent),
        referer: take(referer),
        http_proxy_client: take(proxy_client),
        socket_path: String::new(),
        request_length: envelope.length,
        response_length: 0,
        captured_request_byte: add(0, envelope.captured),
        captured_response_byte: 0,
        req_tcp_seq: envelope.tcp_seq,
        resp_tcp_seq: 0,
    })
}

/// A response whose request was not seen.
fn of_response(protocol: L7Protocol, response: &mut Response) -> SessionBox {
    let mut session = of_request(protocol, &mut Request::default());
    session.start_time = response.envelope.start_time;
    answer(&mut session, response);
    session.l7_type = L7Type::Response;
    session.response_duration = None;
    session
}

fn answer(session: &mut Session, response: &mut Response) {
    let Response {
        envelope,
        protocol,
        version,
        outcome,
        result,
        trace,
        x_request_id,
        request_type,
        domain,
        resource,
        endpoint,
        number,
        complete: _,
        one_way: _,
    } = response;
    session.protocol = protocol.unwrap_or(session.protocol);
    session.l7_type = L7Type::Session;
    session.response_duration = Some(envelope.start_time.saturating_sub(session.start_time));
    session.end_time = session.end_time.max(envelope.end_time);
    if session.version.is_empty() {
        session.version = version;
    }
    fail(session, outcome);
    session.response_result = take(result);
    if session.trace_id.is_empty() && !trace.is_empty() {
        session.trace_id = take(&mut trace.trace_id);
        session.span_id = take(&mut trace.span_id);
        session.parent_span_id = take(&mut trace.parent_span_id);
    }
    session.x_request_id_response = take(x_request_id);
    if session.request_type.is_empty() {
        session.request_type = take(request_type);
        session.request_domain = take(domain);
        session.request_resource = take(resource);
        session.endpoint = take(endpoint);
    }
    if *number != 0 {
        session.request_id = *number;
    }
    session.response_length = envelope.length;
    session.captured_response_byte = add(0, envelope.captured);
    session.resp_tcp_seq = envelope.tcp_seq;
}

fn fail(session: &mut Session, outcome: &mut Outcome) {
    session.status = outcome.status;
    session.response_code = outcome.code;
    session.response_exception = take(&mut outcome.exception);
}

fn add(count: u32, more: u64) -> u32 {
    count.saturating_add(u32::try_from(more).unwrap_or(u32::MAX))
}
