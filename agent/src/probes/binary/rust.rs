//! rustls in Rust programs, found by the names of its functions. Arguments are where C has them; results are told apart by the programs.
//!
//! A program that has none of the names (stripped, or inlined by link-time optimisation) stays dark.

use super::elf::Elf;
use super::{Error, Findings, Point};

/// What the library is called in names of functions; `*` stands for it below.
pub(super) const LIBRARY: &str = "rustls";

/// Functions by their names without hashes, and the programs that stand there. The first is needed, and one that takes what was received.
const FUNCTIONS: [(&str, &[&str]); 5] = [
    ("<*::conn::Writer as std::io::Write>::write", &["rustls_enter", "rustls_write"]),
    ("<*::conn::Writer as std::io::Write>::write_vectored", &["rustls_enter", "rustls_write_vectored"]),
    ("<*::conn::Reader as std::io::Read>::read", &["rustls_enter", "rustls_read"]),
    ("*::conn::Reader::into_first_chunk", &["rustls_shown"]),
    ("<*::conn::Reader as std::io::BufRead>::consume", &["rustls_taken"]),
];
pub(in crate::probes) const PROGRAMS: [&str; 6] =
    ["rustls_enter", "rustls_read", "rustls_write", "rustls_write_vectored", "rustls_shown", "rustls_taken"];

pub(super) fn find(elf: &Elf, findings: &mut Findings) -> Result<(), Error> {
    let mut found = [false; FUNCTIONS.len()];
    let mut points = Vec::new();
    elf.each_function(LIBRARY, |symbol, function| {
        let Some(which) = which(symbol) else { return };
        found[which] = true;
        let programs = FUNCTIONS[which].1.iter();
        points.extend(programs.map(|program| Point { program, offset: function.offset }));
    })?;
    let [writes, _, reads, shows, takes] = found;
    if writes && (reads || shows && takes) {
        points.sort_unstable_by_key(|point| (point.offset, point.program));
        points.dedup();
        findings.points.extend(points);
        findings.has_tls = true;
    }
    Ok(())
}

/// Which function a symbol names; rustls has moved them within itself.
fn which(symbol: &str) -> Option<usize> {
    if !symbol.contains(LIBRARY) || !(symbol.contains("Reader") || symbol.contains("Writer")) {
        return None;
    }
    let name = rustc_demangle::try_demangle(symbol).ok()?;
    let name = format!("{name:#}").replace("::connection::", "::").replace(LIBRARY, "*");
    FUNCTIONS.iter().position(|(known, _)| *known == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_known_by_their_names_in_every_version() {
        let check = |symbol: &str, expected: Option<&str>| {
            assert_eq!(which(symbol).map(|which| FUNCTIONS[which].0), expected, "{symbol}");
        };
        check(
            "_ZN67_$LT$rustls..conn..connection..Writer$u20$as$u20$std..io..Write$GT$5write17h38958d7eb71f47a0E",
            Some("<*::conn::Writer as std::io::Write>::write"),
        );
        check(
            "_ZN54_$LT$rustls..conn..Reader$u20$as$u20$std..io..Read$GT$4read17h38958d7eb71f47a0E",
            Some("<*::conn::Reader as std::io::Read>::read"),
        );
        check(
            "_ZN6rustls4conn10connection6Reader16into_first_chunk17h1d0d06dd0957a831E",
            Some("*::conn::Reader::into_first_chunk"),
        );
        check("_ZN6rustls4conn10connection6Reader20check_no_bytes_state17h1d0d06dd0957a831E", None);
        check("rustls Reader", None);
    }
}
