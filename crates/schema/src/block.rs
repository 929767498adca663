//! Blocks: the columns of a table in memory, and the macro that declares them.
//!
//! A declaration gives a struct of columns, a struct of one row, the description that DDL and queries use, and the Native encoding. A
//! group is a set of columns that several tables share, with a suffix where a table has it twice (`_0` client, `_1` server).

use crate::{
    enums::{EnumValue, Kind},
    types::{write_text, write_varint},
};

/// What a column is to a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The table's time column.
    Time,
    /// Shown as it is stored.
    Plain,
    /// Shown as an IP address.
    Address,
    /// A small number with a name.
    Enum(&'static [EnumValue]),
    /// `x_id`: an id of a kind; queries name it `x` (its name) or `x_id` (the number).
    Dictionary(Kind),
    /// `x_id` whose kind stands in column `x_type`; where that is [`Kind::Ip`], the name is the row's address.
    TypedDictionary,
    /// An amount that metrics are made from.
    Amount,
    /// Names the batch that brought the row: with the agent, the ledger of what was stored.
    Ledger,
}

/// A column as DDL and queries see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// With its suffix.
    pub name: String,
    /// `_0`, `_1` or empty: which end of the row it describes.
    pub side: &'static str,
    pub doc: &'static str,
    pub clickhouse: &'static str,
    pub codec: &'static str,
    pub role: Role,
}

/// Columns of different lengths: the block was filled wrongly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnevenColumns {
    pub column: String,
    pub rows: usize,
    pub expected: usize,
}

impl std::fmt::Display for UnevenColumns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "column {} has {} rows, expected {}", self.column, self.rows, self.expected)
    }
}

impl std::error::Error for UnevenColumns {}

/// A set of columns that are filled together.
pub trait Group: Default + Clone + Send + 'static {
    /// One row of it.
    type Row;

    fn columns(side: &'static str, out: &mut Vec<Column>);
    fn push(&mut self, row: &Self::Row);
    fn append(&mut self, other: Self);
    fn select(&self, rows: &[u32]) -> Self;
    fn check(&self, side: &'static str, expected: usize) -> Result<(), UnevenColumns>;
    /// Name, type and cells of each column, in the order of [`Group::columns`].
    fn encode(&self, side: &'static str, out: &mut Vec<u8>);
    /// Bytes held.
    fn bytes(&self) -> usize;
    /// Number of columns.
    fn width() -> usize;
}

/// The columns of a whole table.
pub trait Block: Group {
    fn rows(&self) -> usize;
    /// The row's time in seconds since 1970, which chooses its partition.
    fn second(&self, row: usize) -> u32;
}

/// The Native form of a block: one `INSERT ... FORMAT Native` body.
pub fn encode_native<G: Group>(group: &G, rows: usize) -> Result<Vec<u8>, UnevenColumns> {
    group.check("", rows)?;
    let mut out = Vec::with_capacity(group.bytes() + G::width() * 48);
    write_varint(G::width() as u64, &mut out);
    write_varint(rows as u64, &mut out);
    group.encode("", &mut out);
    Ok(out)
}

pub(crate) fn write_header(name: &str, side: &str, clickhouse: &str, out: &mut Vec<u8>) {
    write_varint((name.len() + side.len()) as u64, out);
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(side.as_bytes());
    write_text(clickhouse, out);
}

/// Declares a group: `columns { /// doc  name: Type role [, "codec"]; }` and `groups { name: Group "suffix"; }`.
macro_rules! block {
    (
        $(#[$meta:meta])* $name:ident, row $row:ident {
            columns { $( #[doc = $doc:literal] $field:ident : $ty:ident $role:expr $(, $codec:literal)? ; )* }
            groups { $( $group:ident : $group_ty:ident $side:literal ; )* }
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Default, PartialEq)]
        pub struct $name {
            $( #[doc = $doc] pub $field: <$ty as $crate::types::ColumnType>::Data, )*
            $( pub $group: $group_ty, )*
        }

        #[doc = concat!("One row of [`", stringify!($name), "`].")]
        #[derive(Debug, Clone, Default, PartialEq)]
        pub struct $row {
            $( #[doc = $doc]
               pub $field: <<$ty as $crate::types::ColumnType>::Data as $crate::types::Cells>::Item, )*
            $( pub $group: <$group_ty as $crate::block::Group>::Row, )*
        }

        impl $crate::block::Group for $name {
            type Row = $row;

            fn columns(side: &'static str, out: &mut Vec<$crate::block::Column>) {
                let _ = side;
                $( out.push($crate::block::Column {
                    name: format!("{}{side}", stringify!($field)),
                    side,
                    doc: $doc.trim_ascii(),
                    clickhouse: <$ty as $crate::types::ColumnType>::CLICKHOUSE,
                    codec: block!(@codec $ty $($codec)?),
                    role: { use $crate::block::Role::*; $role },
                }); )*
                $( <$group_ty as $crate::block::Group>::columns($side, out); )*
            }

            fn push(&mut self, row: &$row) {
                let $row { $( $field, )* $( $group, )* } = row;
                $( $crate::types::Cells::push(&mut self.$field, $field); )*
                $( self.$group.push($group); )*
            }

            fn append(&mut self, other: Self) {
                $( $crate::types::Cells::append(&mut self.$field, other.$field); )*
                $( self.$group.append(other.$group); )*
            }

            fn select(&self, rows: &[u32]) -> Self {
                Self {
                    $( $field: $crate::types::Cells::select(&self.$field, rows), )*
                    $( $group: self.$group.select(rows), )*
                }
            }

            fn check(&self, side: &'static str, expected: usize) -> Result<(), $crate::block::UnevenColumns> {
                let _ = (side, expected);
                $( let rows = $crate::types::Cells::len(&self.$field);
                   if rows != expected {
                       let column = format!("{}{side}", stringify!($field));
                       return Err($crate::block::UnevenColumns { column, rows, expected });
                   } )*
                $( self.$group.check($side, expected)?; )*

                Ok(())
            }

            fn encode(&self, side: &'static str, out: &mut Vec<u8>) {
                $( $crate::block::write_header(
                       stringify!($field), side, <$ty as $crate::types::ColumnType>::CLICKHOUSE, out);
                   $crate::types::Cells::encode(&self.$field, out); )*
                $( self.$group.encode($side, out); )*
                let _ = side;
            }

            fn bytes(&self) -> usize {
                0 $( + $crate::types::Cells::bytes(&self.$field) )* $( + self.$group.bytes() )*
            }

            fn width() -> usize {
                0 $( + { let _ = stringify!($field); 1 } )* $( + <$group_ty as $crate::block::Group>::width() )*
            }
        }
    };
    (@codec $ty:ident $codec:literal) => { $codec };
    (@codec $ty:ident) => { <$ty as $crate::types::ColumnType>::CODEC };
}
pub(crate) use block;
