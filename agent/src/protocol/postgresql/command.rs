//! What clients say: start-up, queries, and the messages of the extended protocol, gathered up to the one that makes a request of them.

use std::collections::VecDeque;
use std::sync::Arc;

use super::message::{ASK_GSS, ASK_TLS, CANCEL, Frame, until_zero};
use super::reply::Awaited;
use crate::protocol::sql::{self, Dialect};
use crate::protocol::text::{NAME_MAX, text, truncate};
use crate::protocol::{Context, Envelope, Request};

/// Prepared statements that are remembered for a flow; the oldest is forgotten first.
const STATEMENTS_MAX: usize = 64;
/// Portals that are remembered; nearly always it is the unnamed one.
const PORTALS_MAX: usize = 8;
/// Text of a prepared statement that is remembered.
const PREPARED_MAX: usize = 1024;

/// The client's side of a flow, as far as later messages need it.
#[derive(Default)]
pub(super) struct Commands {
    database: String,
    statements: VecDeque<Arc<Statement>>,
    /// Portals by name, and what they run.
    portals: VecDeque<(Vec<u8>, Option<Arc<Statement>>)>,
    group: Option<Group>,
}

struct Statement {
    name: Vec<u8>,
    text: String,
    endpoint: String,
}

/// Messages that are not a request yet.
struct Group {
    request: Request,
    /// What the server says last, as long as no Execute comes.
    ends: u8,
    /// How much the name says that the group has so far.
    rank: u8,
}

/// A request and the reply that it has.
pub(super) struct Asked {
    pub(super) request: Request,
    pub(super) awaited: Awaited,
}

/// What a message of the client means.
#[expect(clippy::large_enum_variant, reason = "lives for one call; a box would cost an allocation a request")]
pub(super) enum Said {
    /// Passwords and the like.
    Nothing,
    /// More of the last request.
    Part,
    /// Part of a request that is still to come.
    Group,
    AskedEncryption,
    /// What was gathered before, and the message itself.
    Requests([Option<Asked>; 2]),
    /// The end of a pipeline, with what was gathered before it.
    Sync(Option<Asked>),
    OneWay(Request),
}

impl Commands {
    pub(super) fn forget_group(&mut self) {
        self.group = None;
    }

    /// What was gathered, as the request that it is without an Execute.
    pub(super) fn flush(&mut self) -> Option<Asked> {
        let Group { request, ends, .. } = self.group.take()?;
        Some(Asked { request, awaited: Awaited::Step { ends } })
    }

    /// Adds to what is being gathered; false when nothing is.
    pub(super) fn extend(&mut self, more: Envelope) -> bool {
        let Some(group) = &mut self.group else { return false };
        let envelope = &mut group.request.envelope;
        envelope.end_time = envelope.end_time.max(more.end_time);
        envelope.length += more.length;
        envelope.captured += more.captured;
        true
    }

    pub(super) fn message(&mut self, ctx: &Context<'_>, frame: &Frame<'_>, envelope: Envelope) -> Said {
        match frame.kind {
            0 => self.start(frame, envelope),
            b'Q' => {
                let before = self.flush();
                let mut request = self.plain("QUERY", envelope);
                let (statement, _) = until_zero(frame.body);
                describe(ctx, statement, &mut request);
                Said::Requests([before, Some(Asked { request, awaited: Awaited::Ready })])
            }
            b'F' => {
                let request = self.plain("FUNCTION_CALL", envelope);
                Said::Requests([self.flush(), Some(Asked { request, awaited: Awaited::Ready })])
            }
            b'P' => self.parse(ctx, frame, envelope),
            b'B' => self.bind(frame, envelope),
            b'E' => self.execute(frame, envelope),
            b'D' => self.step("DESCRIBE", 2, b'n', envelope),
            b'C' => {
                if let [b'S', name @ ..] = frame.body {
                    let (name, _) = until_zero(name);
                    self.statements.retain(|statement| statement.name != name);
                }
                self.step("CLOSE", 1, b'3', envelope)
            }
            b'H' => Said::Requests([self.flush(), None]),
            b'S' => Said::Sync(self.flush()),
            b'd' | b'c' | b'f' => Said::Part,
            b'X' => Said::OneWay(Request { one_way: true, ..self.plain("TERMINATE", envelope) }),
            _ => Said::Nothing,
        }
    }

    fn plain(&self, name: &str, envelope: Envelope) -> Request {
        Request {
            envelope,
            version: "3.0",
            request_type: name.to_owned(),
            domain: self.database.clone(),
            ..Request::default()
        }
    }

    fn start(&mut self, frame: &Frame<'_>, envelope: Envelope) -> Said {
        match frame.code() {
            ASK_TLS | ASK_GSS => return Said::AskedEncryption,
            CANCEL => return Said::OneWay(Request { one_way: true, ..self.plain("CANCEL", envelope) }),
            _ => {}
        }
        let (mut user, mut database) = (&b""[..], &b""[..]);
        let mut rest = frame.body.get(4..).unwrap_or_default();
        while !rest.is_empty() {
            let (name, after) = until_zero(rest);
            let (value, after) = until_zero(after);
            rest = after;
            match name {
                b"user" => user = value,
                b"database" => database = value,
                _ => {}
            }
        }
        // A server takes the user's name for a database that is not named.
        self.database = text(if database.is_empty() { user } else { database }, NAME_MAX);
        let mut request = self.plain("LOGIN", envelope);
        request.resource = format!("Login username: {} db: {}", text(user, NAME_MAX), self.database);
        request.endpoint.clone_from(&request.resource);
        Said::Requests([None, Some(Asked { request, awaited: Awaited::Login })])
    }

    /// A message of the extended protocol that is not a request by itself.
    fn step(&mut self, name: &str, rank: u8, ends: u8, envelope: Envelope) -> Said {
        if !self.extend(envelope) {
            self.group = Some(Group { request: self.plain(name, envelope), ends, rank });
        }
        if let Some(group) = &mut self.group {
            group.ends = ends;
            if rank > group.rank {
                group.rank = rank;
                name.clone_into(&mut group.request.request_type);
            }
        }
        Said::Group
    }

    fn parse(&mut self, ctx: &Context<'_>, frame: &Frame<'_>, envelope: Envelope) -> Said {
        // Of two statements without an Execute between them the first one was prepared for later.
        let before = match &self.group {
            Some(group) if group.rank == 4 => self.flush(),
            _ => None,
        };
        self.step("PARSE", 4, b'1', envelope);
        let (name, rest) = until_zero(frame.body);
        let (statement, _) = until_zero(rest);
        let Some(Group { request, .. }) = &mut self.group else { return Said::Group };
        describe(ctx, statement, request);
        let mut kept = request.resource.clone();
        truncate(&mut kept, PREPARED_MAX);
        let statement = Statement { name: name.to_vec(), text: kept, endpoint: request.endpoint.clone() };
        self.statements.retain(|statement| statement.name != name);
        if name.len() <= NAME_MAX {
            push(&mut self.statements, Arc::new(statement), STATEMENTS_MAX);
        }
        match before {
            Some(before) => Said::Requests([Some(before), None]),
            None => Said::Group,
        }
    }

    fn bind(&mut self, frame: &Frame<'_>, envelope: Envelope) -> Said {
        let (portal, rest) = until_zero(frame.body);
        let (name, _) = until_zero(rest);
        let statement = self.statements.iter().rev().find(|statement| statement.name == name).cloned();
        self.portals.retain(|(known, _)| known != portal);
        push(&mut self.portals, (portal.to_vec(), statement), PORTALS_MAX);
        self.step("BIND", 3, b'2', envelope)
    }

    fn execute(&mut self, frame: &Frame<'_>, envelope: Envelope) -> Said {
        self.step("EXECUTE", 5, b'C', envelope);
        let Some(Group { mut request, .. }) = self.group.take() else { return Said::Group };
        let (name, _) = until_zero(frame.body);
        let portal = self.portals.iter().rev().find(|(portal, _)| portal == name);
        if let Some((_, Some(statement))) = portal
            && request.resource.is_empty()
        {
            request.resource.clone_from(&statement.text);
            request.endpoint.clone_from(&statement.endpoint);
        }
        Said::Requests([None, Some(Asked { request, awaited: Awaited::Execute })])
    }
}

fn push<T>(list: &mut VecDeque<T>, item: T, max: usize) {
    if list.len() >= max {
        list.pop_front();
    }
    list.push_back(item);
}

fn describe(ctx: &Context<'_>, statement: &[u8], request: &mut Request) {
    let statement = text(statement, sql::STATEMENT_MAX);
    request.endpoint = sql::endpoint(&statement, Dialect::PostgreSql);
    request.trace = sql::trace(&statement, Dialect::PostgreSql);
    request.resource =
        if ctx.config.redact { sql::redact(&statement, Dialect::PostgreSql) } else { statement };
}

/// Whether a message can be nothing but a client's; on any port unless `usual_port` is needed.
pub(super) fn is_certain(frame: &Frame<'_>, usual_port: bool) -> bool {
    let whole = frame.body.len() == frame.body_length;
    match frame.kind {
        b'Q' => {
            let (statement, rest) = until_zero(frame.body);
            let ends = if whole { frame.body.last() == Some(&0) && rest.is_empty() } else { rest.is_empty() };
            let readable =
                || statement.iter().take(32).all(|byte| !byte.is_ascii_control() || *byte >= b'\t');
            ends && (sql::begins_with_verb(statement) || (usual_port && readable()))
        }
        b'P' => {
            let (name, rest) = until_zero(frame.body);
            let (statement, _) = until_zero(rest);
            name.len() < 64 && (sql::begins_with_verb(statement) || (usual_port && statement.is_empty()))
        }
        // Portal and statement, then counts of few formats.
        b'B' => {
            let (_, rest) = until_zero(frame.body);
            let (_, rest) = until_zero(rest);
            usual_port && rest.first() == Some(&0)
        }
        b'X' => usual_port,
        _ => false,
    }
}
