//! A parser by itself, without recognition and pairing, so that its cost can be told from theirs.

use std::sync::Arc;

use metaflow_schema::enums::L7Protocol;

use super::{Context, Message, PROTOCOLS, Parser};
use crate::session::{Config, Segment, Transport};

/// The parser of one flow.
pub struct Alone {
    parser: Box<dyn Parser>,
    config: Arc<Config>,
    transport: Transport,
    server_port: u16,
    messages: Vec<Message>,
}

impl Alone {
    /// None when no parser knows the protocol.
    pub fn new(
        protocol: L7Protocol,
        transport: Transport,
        server_port: u16,
        config: &Arc<Config>,
    ) -> Option<Self> {
        let protocol = PROTOCOLS.iter().find(|known| known.number == protocol)?;
        let parser = (protocol.parser)(&Context { config, transport, server_port });
        Some(Alone { parser, config: Arc::clone(config), transport, server_port, messages: Vec::new() })
    }

    /// Parses a segment and answers how many messages it held.
    pub fn segment(&mut self, segment: &Segment<'_>) -> usize {
        let ctx = Context { config: &self.config, transport: self.transport, server_port: self.server_port };
        self.messages.clear();
        self.parser.parse(&ctx, segment, &mut self.messages);
        self.messages.len()
    }
}
