//! What servers say: results, command tags, errors; and which request each of them answers.

use std::collections::VecDeque;

use metaflow_schema::enums::ResponseStatus;

use super::message::{Frame, until_zero};
use super::{Envelope, Message, ResponseMore, View};
use crate::protocol::text::{NAME_MAX, TEXT_MAX, text, truncate};
use crate::protocol::{Outcome, Response};
use crate::session::{Config, redact};

/// Replies that are waited for; a client that pipelines more is no longer followed.
const AWAITED_MAX: usize = 512;
/// What a request is told whose turn did not come.
const ABORTED: &str = "not executed: an earlier statement of the pipeline failed";

/// Which reply a request has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Awaited {
    Login,
    /// Everything up to ReadyForQuery: a simple query, a function call.
    Ready,
    /// Up to the end of one statement.
    Execute,
    /// Up to this message.
    Step {
        ends: u8,
    },
    /// No request: the ReadyForQuery that ends a pipeline.
    Sync,
}

#[derive(Debug, Default)]
pub(super) struct Replies {
    /// The current one first.
    awaited: VecDeque<Awaited>,
    /// The current response was handed out, its end not yet: the server's bytes up to there, on the wire and captured.
    told: Option<(u64, u64)>,
    /// Command tags of the current response.
    tags: String,
    /// The current request failed: nothing comes before ReadyForQuery.
    failed: bool,
    last_time: u64,
}

impl Replies {
    pub(super) fn expect(&mut self, awaited: Awaited) {
        if self.awaited.len() >= AWAITED_MAX {
            self.awaited.clear();
        }
        self.awaited.push_back(awaited);
    }

    /// The end of a response that was not seen as such.
    pub(super) fn finish(&mut self, offset: u64, captured: u64) -> Option<Message> {
        let (wire, seen) = self.told.take()?;
        let envelope = Envelope {
            end_time: self.last_time,
            length: offset.saturating_sub(wire),
            captured: captured.saturating_sub(seen),
            ..Envelope::default()
        };
        let result = std::mem::take(&mut self.tags);
        Some(Message::ResponseMore(ResponseMore {
            envelope,
            complete: true,
            result,
            ..ResponseMore::default()
        }))
    }

    pub(super) fn message(
        &mut self,
        config: &Config,
        frame: &Frame<'_>,
        envelope: Envelope,
        view: View<'_>,
        out: &mut Vec<Message>,
    ) {
        self.last_time = envelope.end_time;
        let end = (view.offset + envelope.length, view.captured + envelope.captured);
        let mut turn = Turn { envelope, end, out };
        match frame.kind {
            // What servers say at any time.
            b'N' | b'A' | b'S' | b'K' | b'v' => {}
            b'Z' => self.ready(&mut turn),
            _ if self.failed => {}
            b'E' => self.fail(failure(config, frame.body), &mut turn),
            b'R' => {
                if self.awaited.front() == Some(&Awaited::Login) && frame.code() == 0 {
                    self.complete(None, &mut turn);
                    self.awaited.push_front(Awaited::Sync);
                }
            }
            b'C' => self.tag(&text(until_zero(frame.body).0, NAME_MAX), &mut turn),
            b'I' => self.tag("", &mut turn),
            b's' => self.tag("suspended", &mut turn),
            kind => self.step(kind, &mut turn),
        }
    }

    /// Part of a reply.
    fn step(&mut self, kind: u8, turn: &mut Turn<'_>) {
        // The client sends data of COPY now; the response is what follows it.
        if kind == b'G' {
            return;
        }
        let described = if kind == b'T' { b'n' } else { kind };
        match self.awaited.front() {
            Some(Awaited::Step { ends }) if *ends == described => self.complete(None, turn),
            Some(Awaited::Step { .. } | Awaited::Execute | Awaited::Ready) => self.begin(turn),
            Some(Awaited::Login | Awaited::Sync) | None => {}
        }
    }

    /// A statement is over.
    fn tag(&mut self, tag: &str, turn: &mut Turn<'_>) {
        if !tag.is_empty() && self.tags.len() < NAME_MAX {
            if !self.tags.is_empty() {
                self.tags.push_str(", ");
            }
            self.tags.push_str(tag);
            truncate(&mut self.tags, NAME_MAX);
        }
        match self.awaited.front() {
            Some(Awaited::Ready) => self.begin(turn),
            Some(Awaited::Execute | Awaited::Step { .. }) => self.complete(None, turn),
            // The request was before the conversation was seen.
            None => {
                let mut response = Response::new(turn.envelope);
                response.result = std::mem::take(&mut self.tags);
                turn.out.push(Message::Response(response));
            }
            Some(Awaited::Login | Awaited::Sync) => self.tags.clear(),
        }
    }

    fn fail(&mut self, outcome: Outcome, turn: &mut Turn<'_>) {
        match self.awaited.front() {
            // At the end of a pipeline a deferred check or the commit failed; the statements were told otherwise.
            Some(Awaited::Sync) => {}
            Some(awaited) => {
                let by_ready = *awaited == Awaited::Ready;
                self.complete(Some(outcome), turn);
                if by_ready {
                    self.awaited.push_front(Awaited::Sync);
                }
                self.failed = true;
            }
            None => {
                let mut response = Response::new(turn.envelope);
                response.outcome = outcome;
                turn.out.push(Message::Response(response));
            }
        }
    }

    /// The server waits for the next query or pipeline: whatever was awaited up to here is over.
    fn ready(&mut self, turn: &mut Turn<'_>) {
        let failed = std::mem::take(&mut self.failed);
        while let Some(awaited) = self.awaited.front().copied() {
            let outcome = match (awaited, failed) {
                (Awaited::Sync, _) => {
                    self.awaited.pop_front();
                    break;
                }
                (Awaited::Login, _) => break,
                (_, true) => Some(unknown(ABORTED)),
                (Awaited::Execute, false) if self.told.is_none() => Some(unknown("")),
                _ => None,
            };
            self.complete(outcome, turn);
            if awaited == Awaited::Ready {
                break;
            }
        }
        self.tags.clear();
    }

    /// The current response begins, unless it has begun.
    fn begin(&mut self, turn: &mut Turn<'_>) {
        if self.told.is_none() {
            turn.out.push(Message::Response(Response { complete: false, ..Response::new(turn.envelope) }));
            self.told = Some(turn.end);
        }
    }

    /// The current response ends with this message.
    fn complete(&mut self, failure: Option<Outcome>, turn: &mut Turn<'_>) {
        self.awaited.pop_front();
        let result = std::mem::take(&mut self.tags);
        turn.out.push(match self.told.take() {
            Some((wire, captured)) => {
                let envelope = Envelope {
                    length: turn.end.0.saturating_sub(wire),
                    captured: turn.end.1.saturating_sub(captured),
                    ..turn.envelope
                };
                Message::ResponseMore(ResponseMore {
                    envelope,
                    complete: true,
                    failure,
                    result,
                    arrived: None,
                })
            }
            None => {
                let mut response = Response { result, ..Response::new(turn.envelope) };
                response.outcome = failure.unwrap_or(response.outcome);
                Message::Response(response)
            }
        });
    }
}

/// A message of the server and where its answers go.
struct Turn<'a> {
    envelope: Envelope,
    /// Bytes on the wire and captured bytes of the server up to the message's end, as far as it is there.
    end: (u64, u64),
    out: &'a mut Vec<Message>,
}

fn unknown(exception: &str) -> Outcome {
    Outcome { status: ResponseStatus::Unknown, code: 0, exception: exception.to_owned() }
}

/// SQL state and text of an error's fields.
fn failure(config: &Config, mut fields: &[u8]) -> Outcome {
    let (mut state, mut message) = (&b""[..], &b""[..]);
    while let [field @ (b'A'..=b'z'), rest @ ..] = fields {
        let (value, rest) = until_zero(rest);
        fields = rest;
        match field {
            b'C' => state = value,
            b'M' => message = value,
            _ => {}
        }
    }
    let state = text(state, 5);
    let message = redact::quoted(config, message, '"', TEXT_MAX);
    let exception = if state.is_empty() { message } else { format!("{state}: {message}") };
    Outcome { status: blame(&state), code: state.parse().unwrap_or(0), exception }
}

/// Who is at fault, by the class of the SQL state.
fn blame(state: &str) -> ResponseStatus {
    match state.get(..2).unwrap_or_default() {
        // Cursors, features, values, constraints, transactions, rights, names, syntax.
        "03" | "07" | "09" | "0A" | "0B" | "0F" | "0L" | "0P" | "0Z" | "20" | "21" | "22" | "23" | "24"
        | "25" | "26" | "27" | "28" | "2B" | "2D" | "2F" | "34" | "38" | "39" | "3B" | "3D" | "3F" | "42"
        | "44" => ResponseStatus::ClientError,
        _ => ResponseStatus::ServerError,
    }
}

/// Whether a message can be nothing but a server's; on any port unless `usual_port` is needed.
pub(super) fn is_certain(frame: &Frame<'_>, usual_port: bool) -> bool {
    match frame.kind {
        b'E' => {
            [&b"SERROR\0"[..], b"SFATAL\0", b"SPANIC\0"].iter().any(|start| frame.body.starts_with(start))
        }
        b'Z' => usual_port && matches!(frame.body, [b'I' | b'T' | b'E']),
        b'C' => usual_port && frame.body.iter().take(4).all(u8::is_ascii_uppercase),
        b'R' | b'T' | b'1' | b'2' | b'n' | b's' => usual_port,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_blamed_on_who_made_them() {
        #[track_caller]
        fn check(state: &str, expected: ResponseStatus) {
            assert_eq!(blame(state), expected);
        }
        check("42601", ResponseStatus::ClientError);
        check("23505", ResponseStatus::ClientError);
        check("28P01", ResponseStatus::ClientError);
        check("40001", ResponseStatus::ServerError);
        check("53300", ResponseStatus::ServerError);
        check("57014", ResponseStatus::ServerError);
        check("XX000", ResponseStatus::ServerError);
        check("", ResponseStatus::ServerError);
    }
}
