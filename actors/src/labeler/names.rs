//! Names of a batch to ids: every distinct string of a column is asked for once, all columns in one question.

use metaflow_schema::enums::Kind;

use super::{Error, Names, cells::Cells};

/// A column of indexes into the batch's strings, and the kind of name it holds.
pub(super) type NameColumn<'a> = (&'static str, Kind, &'a [u32]);

/// The ids of each row, for each column.
pub(super) fn resolve<N: Names, const COLUMNS: usize>(
    names: &N,
    cells: &Cells<'_>,
    columns: [NameColumn<'_>; COLUMNS],
) -> Result<[Vec<u32>; COLUMNS], Error<N::Error>> {
    /// Not asked for yet.
    const UNSEEN: u32 = u32::MAX;
    let mut wanted: Vec<(Kind, &str)> = Vec::new();
    // For each column, where each string stands in `wanted`.
    let mut places: [Vec<u32>; COLUMNS] = std::array::from_fn(|_| Vec::new());
    for ((name, kind, column), places) in columns.iter().zip(&mut places) {
        cells.indexes(name, column, cells.strings.len())?;
        if !column.is_empty() {
            *places = vec![UNSEEN; cells.strings.len().max(1)];
        }
        for index in *column {
            if places[*index as usize] == UNSEEN {
                // A batch has fewer strings than bytes, and those are bounded.
                places[*index as usize] = u32::try_from(wanted.len()).unwrap_or(UNSEEN);
                wanted.push((*kind, cells.strings.get(*index as usize).map_or("", String::as_str)));
            }
        }
    }
    let ids = names.ids(&wanted).map_err(Error::Names)?;
    let mut resolved = columns.iter().zip(places).map(|((_, _, column), places)| {
        if column.is_empty() {
            return vec![0; cells.rows];
        }
        let ids: Vec<u32> =
            places.iter().map(|place| ids.get(*place as usize).copied().unwrap_or(0)).collect();
        column.iter().map(|index| ids[*index as usize]).collect()
    });
    Ok(std::array::from_fn(|_| resolved.next().unwrap_or_default()))
}
