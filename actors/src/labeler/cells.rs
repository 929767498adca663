//! Columns of the wire become columns of a block: checked, narrowed, moved where the type is the same.
//!
//! A column is absent (every row has the default) or has exactly as many cells as the batch has rows. Checks run over whole columns,
//! so that the compiler can use vector instructions for them.

use metaflow_schema::types::Texts;

use super::Malformed;

/// Microseconds since 1970 at the end of the last second that partitions are counted in.
const MICROS_MAX: u64 = (u32::MAX as u64) * 1_000_000;

/// The shape that every column of a batch must have, and its texts.
pub(super) struct Cells<'a> {
    pub rows: usize,
    pub strings: &'a [String],
    /// What texts of further columns may have, indexes followed: many rows can share a string.
    text_bytes: usize,
    text_bytes_max: usize,
}

impl<'a> Cells<'a> {
    pub(super) fn new(rows: usize, strings: &'a [String], text_bytes_max: usize) -> Result<Self, Malformed> {
        match strings.first() {
            Some(first) if !first.is_empty() => Err(Malformed::FirstString),
            _ => Ok(Self { rows, strings, text_bytes: text_bytes_max, text_bytes_max }),
        }
    }

    /// A column whose type is the same on both sides.
    pub(super) fn whole<T: Default + Clone>(
        &mut self,
        name: &'static str,
        column: Vec<T>,
    ) -> Result<Vec<T>, Malformed> {
        match column.len() {
            0 => Ok(vec![T::default(); self.rows]),
            cells if cells == self.rows => Ok(column),
            cells => Err(Malformed::Length { column: name, cells, rows: self.rows }),
        }
    }

    pub(super) fn byte(&mut self, name: &'static str, column: Vec<u32>) -> Result<Vec<u8>, Malformed> {
        self.limited(name, &column, u8::MAX.into())?;
        // Cannot truncate: checked above.
        Ok(self.mapped(&column, |cell| cell as u8))
    }

    pub(super) fn port(&mut self, name: &'static str, column: Vec<u32>) -> Result<Vec<u16>, Malformed> {
        self.limited(name, &column, u16::MAX.into())?;
        Ok(self.mapped(&column, |cell| cell as u16))
    }

    pub(super) fn flag(&mut self, name: &'static str, column: Vec<bool>) -> Result<Vec<u8>, Malformed> {
        let column = self.whole(name, column)?;
        Ok(column.into_iter().map(u8::from).collect())
    }

    /// Times in microseconds.
    pub(super) fn micros(&mut self, name: &'static str, column: Vec<u64>) -> Result<Vec<i64>, Malformed> {
        let column = self.whole(name, column)?;
        match column.iter().copied().max() {
            Some(value) if value > MICROS_MAX => Err(Malformed::Value { column: name, value }),
            _ => Ok(column.into_iter().map(u64::cast_signed).collect()),
        }
    }

    /// Texts by index.
    pub(super) fn text(&mut self, name: &'static str, column: Vec<u32>) -> Result<Texts, Malformed> {
        self.indexes(name, &column, self.strings.len())?;
        if column.is_empty() {
            return Ok(Texts::empty(self.rows));
        }
        let text = |index: &u32| self.strings.get(*index as usize).map_or("", String::as_str);
        let bytes: usize = column.iter().map(|index| text(index).len()).sum();
        let Some(left) = self.text_bytes.checked_sub(bytes) else {
            return Err(Malformed::TextBytes { column: name, limit: self.text_bytes_max });
        };
        let mut texts = Texts::with_capacity(self.rows, bytes);
        for index in &column {
            texts.push_str(text(index));
        }
        self.text_bytes = left;
        Ok(texts)
    }

    /// Checks a column of indexes into a list of `entries`. Index 0 is always allowed: it is the default.
    pub(super) fn indexes(
        &self,
        name: &'static str,
        column: &[u32],
        entries: usize,
    ) -> Result<(), Malformed> {
        let last = u32::try_from(entries.saturating_sub(1)).unwrap_or(u32::MAX);
        self.limited(name, column, last)
    }

    /// Checks the length and the largest value of a column.
    fn limited(&self, name: &'static str, column: &[u32], limit: u32) -> Result<(), Malformed> {
        if !column.is_empty() && column.len() != self.rows {
            return Err(Malformed::Length { column: name, cells: column.len(), rows: self.rows });
        }
        let largest = column.iter().copied().max().unwrap_or(0);
        if largest > limit {
            return Err(Malformed::Value { column: name, value: largest.into() });
        }
        Ok(())
    }

    fn mapped<T: Default + Clone>(&self, column: &[u32], map: impl Fn(u32) -> T) -> Vec<T> {
        if column.is_empty() {
            return vec![T::default(); self.rows];
        }
        column.iter().map(|cell| map(*cell)).collect()
    }
}

/// Fills a block from a message of the wire. `same` columns have one name on both sides, `renamed` ones say both, `nested` ones are
/// used elsewhere, `rest` gives the remaining columns of the block. Both types are taken apart completely, so a new
/// column of either does not compile until it is mapped.
macro_rules! map_columns {
    (
        $cells:expr, $rows:expr, $wire:ident => $block:ident,
        same { $( $same_method:ident { $( $same:ident ),* $(,)? } )* }
        renamed { $( $method:ident { $( $from:ident => $to:ident ),* $(,)? } )* }
        nested { $( $nested:ident: _ ),* $(,)? }
        rest { $( $rest:ident: $value:expr ),* $(,)? }
    ) => {{
        let metaflow_wire::$wire { $( $( $same, )* )* $( $( $from, )* )* $( $nested: _, )* } = $rows;
        metaflow_schema::tables::$block {
            $( $( $same: $cells.$same_method(stringify!($same), $same)?, )* )*
            $( $( $to: $cells.$method(stringify!($from), $from)?, )* )*
            $( $rest: $value, )*
        }
    }};
}
pub(super) use map_columns;
