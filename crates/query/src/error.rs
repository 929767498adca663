//! The error of a text that is not accepted: what it is, where it stands, what to do.

use sqlparser::tokenizer::{Location, Span};

/// Why a text was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    pub message: String,
    /// From 1.
    pub line: u64,
    /// From 1, in characters.
    pub column: u64,
    /// What to do; empty when there is nothing better to say than the message.
    pub hint: String,
}

impl Error {
    pub(crate) fn at(location: Location, message: impl Into<String>) -> Self {
        // Parts of an expression that the parser gives no place stand at 0; the text itself begins at 1.
        let (line, column) = (location.line.max(1), location.column.max(1));
        Self { message: message.into(), line, column, hint: String::new() }
    }

    pub(crate) fn span(span: Span, message: impl Into<String>) -> Self {
        Self::at(span.start, message)
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (line {}, column {})", self.message, self.line, self.column)?;
        if !self.hint.is_empty() {
            write!(f, "; {}", self.hint)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// A hint that names the known name nearest to `name`, or says `otherwise`.
pub(crate) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>, otherwise: &str) -> String {
    let name: Vec<char> = name.to_lowercase().chars().take(64).collect();
    let best = known
        .map(|candidate| (distance(&name, &candidate.to_lowercase()), candidate))
        .min_by_key(|(distance, _)| *distance);
    match best {
        // Up to a third of the letters may differ; more is another word.
        Some((distance, candidate)) if distance * 3 <= name.len() => format!("did you mean {candidate}?"),
        _ => otherwise.to_owned(),
    }
}

/// Levenshtein's distance.
fn distance(left: &[char], right: &str) -> usize {
    let mut row: Vec<usize> = (0..=left.len()).collect();
    for (at, letter) in right.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = at + 1;
        for (column, own) in left.iter().enumerate() {
            let replaced = diagonal + usize::from(*own != letter);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[left.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_proposed_only_when_near() {
        let known = ["request", "response", "rrt"];
        assert_eq!(nearest("reqest", known.into_iter(), "SHOW METRICS"), "did you mean request?");
        assert_eq!(nearest("xyz", known.into_iter(), "SHOW METRICS"), "SHOW METRICS");
    }
}
