//! What servers say: OK, errors, result sets, prepared statements; and where a reply ends.

use std::collections::VecDeque;

use metaflow_schema::enums::ResponseStatus;

use super::packet::{Frame, double_word, integer, word};
use crate::protocol::text::{TEXT_MAX, text};
use crate::protocol::{Envelope, Message, Outcome, Response, ResponseMore};
use crate::session::{Config, redact};

/// Status bits of a server.
const MORE_RESULTS: u16 = 0x0008;
const CURSOR: u16 = 0x0040;
/// Commands that wait for a reply; clients of this protocol rarely send more than one ahead.
const AWAITED_MAX: usize = 128;
/// Body of the old end-of-rows packet: marker, warnings, status.
const EOF_SIZE: usize = 5;

/// Which kind of reply a command has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Awaited {
    #[default]
    Result,
    Prepared,
    Fields,
    /// One packet of text.
    Text,
    Login,
}

/// Where in a reply the server is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Place {
    #[default]
    First,
    /// So many column definitions are left.
    Columns(u64),
    /// The packet behind the columns: rows, or an old marker before them.
    Marker,
    Rows,
    /// Definitions of a prepared statement's parameters and columns.
    Definitions(u32),
    /// Behind definitions, where older servers put a marker.
    Trailer,
    /// The client sends a file.
    File,
}

#[derive(Debug, Default)]
pub(super) struct Reply {
    /// Kinds of the replies that commands wait for, the current one first.
    awaited: VecDeque<Awaited>,
    place: Place,
    /// The response was handed out, its end not yet.
    open: bool,
    /// Packets are hidden in compressed frames: nothing but the next command tells the end.
    unclear: bool,
    next_sequence: u8,
    last_time: u64,
    /// The login said that there are no markers between definitions and rows.
    pub(super) without_markers: bool,
}

/// What a packet of the server brought.
#[derive(Default)]
pub(super) struct Answer {
    pub(super) message: Option<Message>,
    /// Number and parameter count of a statement.
    pub(super) prepared: Option<(u32, u16)>,
}

/// What a packet means to the reply.
#[expect(clippy::large_enum_variant, reason = "lives for one call; a box would cost an allocation a reply")]
enum Meaning {
    /// The reply begins; some of it follows or not.
    Begin {
        response: Response,
        complete: bool,
    },
    More {
        complete: bool,
        failure: Option<Outcome>,
    },
    /// Part of no reply.
    Nothing,
}

impl Reply {
    /// A command was sent that has such a reply.
    pub(super) fn expect(&mut self, awaited: Awaited) {
        if self.awaited.len() >= AWAITED_MAX {
            self.awaited.clear();
        }
        self.awaited.push_back(awaited);
    }

    /// Forgets everything but what the login said.
    pub(super) fn reset(&mut self) {
        *self = Reply { without_markers: self.without_markers, ..Reply::default() };
    }

    pub(super) fn in_login(&self) -> bool {
        self.awaited.front() == Some(&Awaited::Login)
    }

    /// The current reply is over; what other commands wait for is kept.
    pub(super) fn end(&mut self) {
        self.awaited.pop_front();
        (self.place, self.open, self.unclear) = (Place::First, false, false);
    }

    pub(super) fn is_open(&self) -> bool {
        self.open
    }

    pub(super) fn is_unclear(&self) -> bool {
        self.unclear || self.place == Place::Trailer
    }

    pub(super) fn last_time(&self) -> u64 {
        self.last_time
    }

    /// Takes a packet in.
    pub(super) fn packet(
        &mut self,
        config: &Config,
        frame: &Frame<'_>,
        envelope: Envelope,
        compressed: bool,
    ) -> Answer {
        self.last_time = envelope.end_time;
        let mut answer = Answer::default();
        if compressed {
            self.unclear = true;
        }
        // A reply that begins in the middle of another: the end of that one was missed.
        if self.open && !compressed && frame.sequence == 1 && self.next_sequence != 1 {
            self.end();
        }
        self.next_sequence = frame.sequence.wrapping_add(1);
        let meaning = if self.open && self.unclear {
            Meaning::More { complete: false, failure: None }
        } else if self.open || self.place != Place::First {
            self.further(config, frame)
        } else {
            self.first(config, frame, envelope, &mut answer)
        };
        let begun = !matches!(meaning, Meaning::Nothing);
        answer.message = match meaning {
            Meaning::Begin { mut response, complete } => {
                response.complete = complete && !self.unclear;
                self.open = !response.complete;
                Some(Message::Response(response))
            }
            Meaning::More { complete, failure } => {
                self.open = !complete;
                Some(Message::ResponseMore(ResponseMore {
                    envelope,
                    complete,
                    failure,
                    ..ResponseMore::default()
                }))
            }
            Meaning::Nothing => None,
        };
        if begun && !self.open {
            self.end();
        }
        answer
    }

    fn first(
        &mut self,
        config: &Config,
        frame: &Frame<'_>,
        envelope: Envelope,
        answer: &mut Answer,
    ) -> Meaning {
        let mut response = Response::new(envelope);
        let Some((marker, rest)) = frame.body.split_first().filter(|_| !frame.sealed) else {
            // Compressed in a way that is not read here: whether it is an error cannot be told.
            response.outcome.status = ResponseStatus::Unknown;
            return Meaning::Begin { response, complete: !frame.sealed };
        };
        let short = frame.body_length < 9;
        match (self.awaited.front().copied().unwrap_or_default(), marker) {
            (_, 0xff) => {
                response.outcome = failure(config, rest);
                Meaning::Begin { response, complete: true }
            }
            // Plug-ins talk until one of OK and ERR.
            (Awaited::Login, 1..=0xfe) => Meaning::Nothing,
            (Awaited::Prepared, 0) if frame.body_length >= 12 => {
                let number = double_word(frame.body, 1).unwrap_or_default();
                let columns = word(frame.body, 5).unwrap_or_default();
                let parameters = word(frame.body, 7).unwrap_or_default();
                answer.prepared = Some((number, parameters));
                response.number = u64::from(number);
                let left = u32::from(columns) + u32::from(parameters);
                self.place = Place::Definitions(left);
                Meaning::Begin { response, complete: left == 0 }
            }
            (_, 0) => {
                let (affected, status) = ok(frame.body);
                if affected > 0 {
                    response.result = format!("affected rows: {affected}");
                }
                Meaning::Begin { response, complete: status & MORE_RESULTS == 0 }
            }
            // The old marker behind definitions whose count was used up already.
            (_, 0xfe) if short && frame.sequence != 1 => Meaning::Nothing,
            (_, 0xfe) if short => Meaning::Begin { response, complete: true },
            (Awaited::Text, _) => Meaning::Begin { response, complete: true },
            (Awaited::Fields, _) => {
                self.place = Place::Rows;
                Meaning::Begin { response, complete: false }
            }
            (_, 0xfb) => {
                self.place = Place::File;
                Meaning::Begin { response, complete: false }
            }
            // Not the start of a reply: rows from before the conversation was seen.
            _ if frame.sequence != 1 => Meaning::Nothing,
            _ => match integer(frame.body) {
                Some((columns, [])) if columns > 0 => {
                    self.place = Place::Columns(columns);
                    Meaning::Begin { response, complete: false }
                }
                _ => Meaning::Begin { response, complete: true },
            },
        }
    }

    fn further(&mut self, config: &Config, frame: &Frame<'_>) -> Meaning {
        let going = Meaning::More { complete: false, failure: None };
        let Some((marker, rest)) = frame.body.split_first() else { return going };
        if *marker == 0xff && !matches!(self.place, Place::Columns(_) | Place::Definitions(_)) {
            return Meaning::More { complete: true, failure: Some(failure(config, rest)) };
        }
        let old_marker = *marker == 0xfe && frame.body_length == EOF_SIZE;
        match &mut self.place {
            Place::First | Place::File => {
                // A further result of the same command.
                let mut ignored = Answer::default();
                self.place = Place::First;
                match self.first(config, frame, Envelope::default(), &mut ignored) {
                    Meaning::Begin { response, complete } => {
                        let failed = response.outcome.status != ResponseStatus::Normal;
                        Meaning::More { complete, failure: failed.then_some(response.outcome) }
                    }
                    other => other,
                }
            }
            Place::Columns(left) => {
                *left -= 1;
                if *left == 0 {
                    self.place = Place::Marker;
                }
                going
            }
            Place::Marker if old_marker => {
                self.place = Place::Rows;
                Meaning::More { complete: status(frame.body) & CURSOR != 0, failure: None }
            }
            Place::Marker | Place::Rows => {
                self.place = Place::Rows;
                if *marker != 0xfe || frame.body_length >= 0xff_ffff {
                    return going;
                }
                let more = status(frame.body) & MORE_RESULTS != 0;
                if more {
                    self.place = Place::First;
                }
                Meaning::More { complete: !more, failure: None }
            }
            Place::Definitions(_) if old_marker => going,
            Place::Definitions(left) => {
                *left = left.saturating_sub(1);
                let complete = *left == 0 && self.without_markers;
                if *left == 0 {
                    self.place = Place::Trailer;
                }
                Meaning::More { complete, failure: None }
            }
            Place::Trailer => Meaning::More { complete: true, failure: None },
        }
    }
}

/// Affected rows and status of an OK packet.
fn ok(body: &[u8]) -> (u64, u16) {
    let read = || {
        let (affected, rest) = integer(body.get(1..)?)?;
        let (_, rest) = integer(rest)?;
        Some((affected, word(rest, 0).unwrap_or_default()))
    };
    read().unwrap_or_default()
}

/// Status of the packet that ends rows: the old one, or an OK with another marker.
fn status(body: &[u8]) -> u16 {
    if body.len() == EOF_SIZE { word(body, 3).unwrap_or_default() } else { ok(body).1 }
}

/// Number, SQL state and text of an error packet without its marker.
fn failure(config: &Config, rest: &[u8]) -> Outcome {
    let code = word(rest, 0).unwrap_or_default();
    let rest = rest.get(2..).unwrap_or_default();
    let (state, message) = match rest {
        [b'#', state @ ..] if state.len() >= 5 => state.split_at(5),
        _ => (&[][..], rest),
    };
    let exception = redact::quoted(config, message, '\'', TEXT_MAX);
    Outcome { status: blame(code, state), code: i32::from(code), exception }
}

/// Who is at fault: by the error's number where that says more than its SQL state, else by the state's class.
fn blame(code: u16, state: &[u8]) -> ResponseStatus {
    match code {
        // Too many connections, resource limits, shutdown, deadlock, lock wait, interrupted, read-only, out of memory and the like.
        1021
        | 1037..=1041
        | 1053
        | 1105
        | 1114
        | 1129
        | 1135
        | 1152
        | 1158..=1161
        | 1203
        | 1205
        | 1206
        | 1213
        | 1226
        | 1290
        | 1317
        | 1792
        | 1836
        | 3024 => ResponseStatus::ServerError,
        // Database and table that exist or do not, rights, values that do not fit.
        1006..=1008 | 1044..=1052 | 1130 | 1142..=1149 | 1227 | 1364 | 1366 | 1396 | 1451 | 1452 => {
            ResponseStatus::ClientError
        }
        _ => match text(state, 2).as_str() {
            "07" | "0A" | "20" | "21" | "22" | "23" | "24" | "25" | "28" | "2A" | "34" | "3D" | "42"
            | "44" => ResponseStatus::ClientError,
            _ => ResponseStatus::ServerError,
        },
    }
}

/// Whether a packet looks like the start of a reply, on a usual port.
pub(super) fn is_likely(frame: &Frame<'_>) -> bool {
    match (frame.body.first(), frame.sequence) {
        (Some(0), 1 | 2) => frame.body_length >= 7,
        (Some(0xff), 0..=2) => frame.body.get(3) == Some(&b'#') || frame.sequence == 0,
        (Some(1..=0xfa), 1) => frame.body_length == 1,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_blamed_on_who_made_them() {
        #[track_caller]
        fn check(code: u16, state: &str, expected: ResponseStatus) {
            assert_eq!(blame(code, state.as_bytes()), expected);
        }
        check(1064, "42000", ResponseStatus::ClientError);
        check(1146, "42S02", ResponseStatus::ClientError);
        check(1062, "23000", ResponseStatus::ClientError);
        check(1045, "28000", ResponseStatus::ClientError);
        check(1040, "08004", ResponseStatus::ServerError);
        check(1213, "40001", ResponseStatus::ServerError);
        check(1205, "HY000", ResponseStatus::ServerError);
        check(1364, "HY000", ResponseStatus::ClientError);
        check(9999, "", ResponseStatus::ServerError);
    }
}
