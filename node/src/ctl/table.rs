//! Tables as text: columns aligned by spaces, easy to read, to cut and to grep.

/// Longest cell that is shown whole; a longer one would push the others off the screen.
const CELL_CHARS_MAX: usize = 200;

/// A header and rows. Control characters are shown as `?`: cells come from the network and must not drive a terminal.
pub(super) fn aligned(header: &[impl AsRef<str>], rows: &[Vec<String>]) -> String {
    let header: Vec<String> = header.iter().map(|cell| clean(cell.as_ref())).collect();
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| clean(cell)).collect()).collect();
    let widths: Vec<usize> = (0..header.len())
        .map(|column| {
            let cells = std::iter::once(&header).chain(&rows).filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    std::iter::once(&header).chain(&rows).map(|row| line(row, &widths)).collect()
}

fn line(row: &[String], widths: &[usize]) -> String {
    let mut line = String::new();
    for (cell, width) in row.iter().zip(widths) {
        line.push_str(cell);
        line.extend(std::iter::repeat_n(' ', width + 2 - cell.chars().count()));
    }
    line.truncate(line.trim_end().len());
    line.push('\n');
    line
}

/// Without control characters, and not longer than a screen holds.
pub(super) fn clean(cell: &str) -> String {
    let mut clean: String =
        cell.chars().take(CELL_CHARS_MAX).map(|c| if c.is_control() { '?' } else { c }).collect();
    if cell.chars().nth(CELL_CHARS_MAX).is_some() {
        clean.push_str("...");
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_control_characters_shown_as_such() {
        let rows = [vec!["é".to_owned(), "1".to_owned()], vec!["a\x1b[2J".to_owned(), String::new()]];
        assert_eq!(aligned(&["N", "COUNT"], &rows), "N      COUNT\né      1\na?[2J\n");
    }

    #[test]
    fn long_cells_are_cut() {
        let table = aligned(&["A"], &[vec!["x".repeat(1000)]]);
        assert!(table.len() < 220 && table.ends_with("...\n"));
    }
}
