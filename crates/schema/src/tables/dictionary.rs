//! `flow_tag.dictionary`: what every tag id names.

use crate::{
    block::block,
    enums::Kind,
    types::{Text, U8, U64},
};

block! {
    /// `flow_tag.dictionary`: one row an id, written before any row that uses the id.
    Dictionary, row DictionaryRow {
        columns {
            /// kind of tag
            kind: U8 Enum(Kind::VALUES);
            /// id within the kind
            id: U64 Plain;
            /// what it names
            name: Text Plain;
        }
        groups {}
    }
}
