//! What of a program or library is worth a probe: plain text of TLS libraries (OpenSSL's kin, Go's, rustls), Go's runtime, and tokio's.
//!
//! Reads the file alone, never the memory of a process. A probe in the wrong place would break the program, so what is not certain is left out.
//! Leaves out: which files processes have (`libraries`), attaching (`plain`).

mod dwarf;
mod elf;
mod go;
mod returns;
mod rust;
mod tokio;

use std::path::PathBuf;

use self::elf::Elf;

/// A place in a file, and the program that is to run there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Point {
    pub(super) program: &'static str,
    /// In the file.
    pub(super) offset: u64,
}

/// What was found in a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Findings {
    pub(super) points: Vec<Point>,
    /// Plain text of TLS can be seen here.
    pub(super) has_tls: bool,
    /// Where Go's runtime keeps what the programs need (`bpf_abi::go_offset`).
    pub(super) go: Option<u64>,
}

/// Functions of OpenSSL and of what is made like it: at its entry and at its return stand these programs. The first two must be there.
const FUNCTIONS: [(&str, &str); 4] = [
    ("SSL_read", "tls_read"),
    ("SSL_write", "tls_write"),
    ("SSL_read_ex", "tls_read_ex"),
    ("SSL_write_ex", "tls_write_ex"),
];
pub(super) const ENTRY: &str = "tls_enter";

/// Programs that stand in C's functions, and in Go's.
pub(super) fn programs() -> impl Iterator<Item = &'static str> {
    [ENTRY].into_iter().chain(FUNCTIONS.map(|(_, program)| program))
}
pub(super) use go::PROGRAMS as GO_PROGRAMS;
pub(super) use rust::PROGRAMS as RUST_PROGRAMS;
pub(super) use tokio::PROGRAMS as TOKIO_PROGRAMS;

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("failed to read the file")]
    Io(#[from] std::io::Error),
    #[error("not a program or library of this machine")]
    Kind,
    #[error("{0}")]
    Form(&'static str),
}

/// Looks into the first of the paths that can be opened; gives it along.
pub(super) fn examine(paths: &[PathBuf], tls: bool) -> Result<(PathBuf, Findings), Error> {
    let mut problem = None;
    for path in paths {
        match Elf::open(path) {
            Ok(elf) => return Ok((path.clone(), find(&elf, tls)?)),
            Err(error @ Error::Io(_)) => problem = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(problem.unwrap_or(Error::Form("no path")))
}

fn find(elf: &Elf, tls: bool) -> Result<Findings, Error> {
    let mut findings = Findings::default();
    if go::is_go(elf) {
        go::find(elf, tls, &mut findings)?;
    }
    let [has_openssl, has_rustls, has_tokio] = elf.mentions([FUNCTIONS[0].0, rust::LIBRARY, tokio::POLL])?;
    if tls && has_openssl {
        openssl(elf, &mut findings)?;
    }
    if tls && has_rustls {
        rust::find(elf, &mut findings)?;
    }
    if has_tokio {
        tokio::find(elf, &mut findings)?;
    }
    Ok(findings)
}

fn openssl(elf: &Elf, findings: &mut Findings) -> Result<(), Error> {
    let found = elf.functions(&FUNCTIONS.map(|(name, _)| name))?;
    if FUNCTIONS[..2].iter().any(|(name, _)| !found.contains_key(name)) {
        return Ok(());
    }
    for (name, at_return) in FUNCTIONS {
        if let Some(function) = found.get(name) {
            findings
                .points
                .extend([ENTRY, at_return].map(|program| Point { program, offset: function.offset }));
        }
    }
    findings.has_tls = true;
    Ok(())
}
