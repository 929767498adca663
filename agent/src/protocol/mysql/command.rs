//! What clients say: login, commands, and the statements that they prepared.

use std::collections::VecDeque;

use super::packet::{Frame, double_word, is_greeting, until_zero, word};
use super::reply::Awaited;
use crate::protocol::sql::{self, Dialect};
use crate::protocol::text::{NAME_MAX, text, truncate};
use crate::protocol::{Context, Request};

/// Prepared statements that are remembered for a flow; the oldest is forgotten first.
const STATEMENTS_MAX: usize = 32;
/// Text of a prepared statement that is remembered.
const PREPARED_MAX: usize = 1024;

/// Capability bits of a login.
const CAN_DATABASE: u32 = 1 << 3;
const CAN_COMPRESS: u32 = 1 << 5;
const CAN_PROTOCOL_41: u32 = 1 << 9;
const CAN_TLS: u32 = 1 << 11;
const CAN_SECURE_LOGIN: u32 = 1 << 15;
const CAN_LONG_LOGIN: u32 = 1 << 21;
const CAN_SKIP_MARKERS: u32 = 1 << 24;
const CAN_ZSTD: u32 = 1 << 26;
/// A login's fixed part: capabilities, packet size, character set, 23 zeros.
const LOGIN_FIXED: usize = 32;

/// The client's side of a flow, as far as later messages need it.
#[derive(Default)]
pub(super) struct Commands {
    greeted: bool,
    tls: bool,
    compression: Option<bool>,
    without_markers: bool,
    database: String,
    awaited: Awaited,
    /// A statement whose number the server has not told yet.
    preparing: Option<Statement>,
    statements: VecDeque<Statement>,
}

struct Statement {
    number: u32,
    parameters: u16,
    text: String,
    endpoint: String,
}

impl Commands {
    /// Takes a server's greeting in.
    pub(super) fn greeting(&mut self, frame: &Frame<'_>) -> bool {
        let greeting = is_greeting(frame);
        self.greeted |= greeting;
        greeting
    }

    pub(super) fn switches_to_tls(&self) -> bool {
        self.tls
    }

    /// What a login said about compression, once.
    pub(super) fn compression(&mut self) -> Option<bool> {
        self.compression.take()
    }

    pub(super) fn without_markers(&self) -> bool {
        self.without_markers
    }

    pub(super) fn awaited(&self) -> Awaited {
        self.awaited
    }

    /// The server's number for the statement that was prepared last.
    pub(super) fn prepared(&mut self, number: u32, parameters: u16) {
        if let Some(statement) = self.preparing.take() {
            if self.statements.len() >= STATEMENTS_MAX {
                self.statements.pop_front();
            }
            self.statements.push_back(Statement { number, parameters, ..statement });
        }
    }

    /// The request that a packet of the client is; none when it is not the start of one.
    pub(super) fn request(&mut self, ctx: &Context<'_>, frame: &Frame<'_>) -> Option<Request> {
        if frame.sequence == 1 && (self.greeted || is_login(frame)) {
            self.greeted = false;
            return self.login(frame);
        }
        if frame.sequence != 0 {
            return None;
        }
        if frame.sealed {
            // What cannot be decompressed is most likely a query: only statements are worth compressing.
            self.awaited = Awaited::Result;
            return Some(self.plain("COM_QUERY"));
        }
        let (code, rest) = frame.body.split_first()?;
        let name = name(*code)?;
        let mut request = self.plain(name);
        self.awaited = Awaited::Result;
        match code {
            0x01 | 0x18 => request.one_way = true,
            0x19 => {
                request.one_way = true;
                self.close(rest, &mut request);
            }
            0x02 => {
                self.database = text(rest, NAME_MAX);
                request.domain.clone_from(&self.database);
                request.resource.clone_from(&self.database);
            }
            0x03 => self.statement(ctx, without_attributes(rest), &mut request),
            0x04 => self.awaited = Awaited::Fields,
            0x09 => self.awaited = Awaited::Text,
            0x11 => {
                let (user, _) = until_zero(rest);
                request.resource = login_text(user, b"");
                self.awaited = Awaited::Login;
            }
            0x16 => {
                self.statement(ctx, rest, &mut request);
                let mut kept = request.resource.clone();
                truncate(&mut kept, PREPARED_MAX);
                let endpoint = request.endpoint.clone();
                self.preparing = Some(Statement { number: 0, parameters: 0, text: kept, endpoint });
                self.awaited = Awaited::Prepared;
            }
            0x17 => self.execute(ctx, rest, &mut request),
            0x1a | 0x1c => request.number = double_word(rest, 0).map_or(0, u64::from),
            _ => {}
        }
        Some(request)
    }

    fn plain(&self, name: &str) -> Request {
        Request { request_type: name.to_owned(), domain: self.database.clone(), ..Request::default() }
    }

    fn statement(&mut self, ctx: &Context<'_>, bytes: &[u8], request: &mut Request) {
        let statement = text(bytes, sql::STATEMENT_MAX);
        request.endpoint = sql::endpoint(&statement, Dialect::MySql);
        request.trace = sql::trace(&statement, Dialect::MySql);
        if let Some(database) = sql::used_database(&statement) {
            self.database = text(database.as_bytes(), NAME_MAX);
        }
        request.resource =
            if ctx.config.redact { sql::redact(&statement, Dialect::MySql) } else { statement };
    }

    /// With redaction an execution shows its statement, which has no values; without, the values.
    fn execute(&mut self, ctx: &Context<'_>, rest: &[u8], request: &mut Request) {
        let Some(number) = double_word(rest, 0) else { return };
        request.number = u64::from(number);
        let Some(statement) = self.statements.iter().rev().find(|statement| statement.number == number)
        else {
            return;
        };
        request.endpoint.clone_from(&statement.endpoint);
        request.resource = if ctx.config.redact {
            statement.text.clone()
        } else {
            rest.get(9..)
                .map_or_else(String::new, |rest| super::value::parameters(rest, statement.parameters))
        };
    }

    fn close(&mut self, rest: &[u8], request: &mut Request) {
        if let Some(number) = double_word(rest, 0) {
            request.number = u64::from(number);
            self.statements.retain(|statement| statement.number != number);
        }
    }

    fn login(&mut self, frame: &Frame<'_>) -> Option<Request> {
        let capabilities = double_word(frame.body, 0)?;
        if capabilities & CAN_TLS != 0 && frame.body_length == LOGIN_FIXED {
            self.tls = true;
            return Some(Request::default());
        }
        if capabilities & CAN_PROTOCOL_41 == 0 {
            return None;
        }
        let (user, rest) = until_zero(frame.body.get(LOGIN_FIXED..)?);
        let rest = if capabilities & (CAN_LONG_LOGIN | CAN_SECURE_LOGIN) != 0 {
            let (length, rest) = rest.split_first()?;
            rest.get(usize::from(*length)..)?
        } else {
            until_zero(rest).1
        };
        let database = if capabilities & CAN_DATABASE != 0 { until_zero(rest).0 } else { &[] };
        self.database = text(database, NAME_MAX);
        self.compression = Some(capabilities & (CAN_COMPRESS | CAN_ZSTD) != 0);
        self.without_markers = capabilities & CAN_SKIP_MARKERS != 0;
        self.awaited = Awaited::Login;
        let mut request = self.plain("LOGIN");
        request.resource = login_text(user, database);
        request.endpoint.clone_from(&request.resource);
        Some(request)
    }
}

/// `Login username: root db: shop`.
fn login_text(user: &[u8], database: &[u8]) -> String {
    let mut line = format!("Login username: {}", text(user, NAME_MAX));
    if !database.is_empty() {
        line.push_str(" db: ");
        line.push_str(&text(database, NAME_MAX));
    }
    line
}

/// A login without a greeting before it: the zeros in its middle tell.
pub(super) fn is_login(frame: &Frame<'_>) -> bool {
    frame.sequence == 1
        && word(frame.body, 0).is_some_and(|low| u32::from(low) & CAN_PROTOCOL_41 != 0)
        && frame.body.get(9..LOGIN_FIXED).is_some_and(|zeros| zeros.iter().take(19).all(|byte| *byte == 0))
}

/// A statement of a client that sends query attributes, without them.
fn without_attributes(bytes: &[u8]) -> &[u8] {
    match bytes {
        // No attributes, in one set.
        [0, 1, rest @ ..] => rest,
        [1..=32, 1, rest @ ..] => {
            // The attributes are of many types; the statement begins at its verb.
            let start = (0..rest.len().min(512))
                .find(|at| sql::begins_with_verb(&rest[*at..]) && rest[..*at].ends_with(&[0]));
            start.map_or(&[], |start| &rest[start..])
        }
        _ => bytes,
    }
}

/// Whether a packet can be nothing but a client's, on any port. `whole`: nothing follows it.
pub(super) fn is_certain(frame: &Frame<'_>, whole: bool, usual_port: bool) -> bool {
    if is_login(frame) {
        return frame.body_length > LOGIN_FIXED - 1;
    }
    let Some((code, rest)) = frame.body.split_first().filter(|_| frame.sequence == 0) else { return false };
    match code {
        0x03 | 0x16 => sql::begins_with_verb(without_attributes(rest)),
        0x01 | 0x0e => frame.body_length == 1 && whole,
        0x02 => usual_port && whole && rest.iter().all(u8::is_ascii_graphic),
        0x17 => usual_port && frame.body_length >= 10 && double_word(rest, 5) == Some(1),
        0x09 | 0x1f => usual_port && frame.body_length == 1 && whole,
        0x19 | 0x1a => usual_port && frame.body_length == 5 && whole,
        _ => false,
    }
}

fn name(code: u8) -> Option<&'static str> {
    Some(match code {
        0x01 => "COM_QUIT",
        0x02 => "COM_INIT_DB",
        0x03 => "COM_QUERY",
        0x04 => "COM_FIELD_LIST",
        0x05 => "COM_CREATE_DB",
        0x06 => "COM_DROP_DB",
        0x07 => "COM_REFRESH",
        0x08 => "COM_SHUTDOWN",
        0x09 => "COM_STATISTICS",
        0x0a => "COM_PROCESS_INFO",
        0x0c => "COM_PROCESS_KILL",
        0x0d => "COM_DEBUG",
        0x0e => "COM_PING",
        0x11 => "COM_CHANGE_USER",
        0x12 => "COM_BINLOG_DUMP",
        0x15 => "COM_REGISTER_SLAVE",
        0x16 => "COM_STMT_PREPARE",
        0x17 => "COM_STMT_EXECUTE",
        0x18 => "COM_STMT_SEND_LONG_DATA",
        0x19 => "COM_STMT_CLOSE",
        0x1a => "COM_STMT_RESET",
        0x1b => "COM_SET_OPTION",
        0x1c => "COM_STMT_FETCH",
        0x1e => "COM_BINLOG_DUMP_GTID",
        0x1f => "COM_RESET_CONNECTION",
        0xfa => "COM_STMT_BULK_EXECUTE",
        _ => return None,
    })
}
