//! Programs in Go: which version made them, where their functions are, and where the runtime keeps a goroutine's number.
//!
//! Functions are found by the table of symbols, and where that was stripped by the table that Go itself needs for its stack traces
//! (`.gopclntab`). Leaves out: programs of Go before 1.17, whose calling convention is another one.

use std::collections::HashMap;

use bpf_abi::go_offset;

use super::elf::{Elf, Function, text};
use super::{Error, Findings, Point, dwarf, returns};

/// What a Go program writes into itself; the second is for programs whose place in memory is not fixed.
const FUNCTION_TABLES: [&str; 2] = [".gopclntab", ".data.rel.ro.gopclntab"];
const BUILD: &str = ".go.buildinfo";
const BUILD_MAGIC: &[u8] = b"\xff Go buildinf:";

/// Where in a function a program stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Entry,
    Returns,
}

/// What is looked at: functions of TLS, and those of goroutines and their work.
const TLS: [(&str, Place, &str); 4] = [
    ("crypto/tls.(*Conn).Read", Place::Entry, "go_tls_enter"),
    ("crypto/tls.(*Conn).Read", Place::Returns, "go_tls_read"),
    ("crypto/tls.(*Conn).Write", Place::Entry, "go_tls_enter_write"),
    ("crypto/tls.(*Conn).Write", Place::Returns, "go_tls_write"),
];
/// A connection of the HTTP client has a goroutine of its own that writes: what it writes was asked for by another one.
/// Of HTTP/2 a goroutine reads for all streams, and of gRPC one writes for all of them.
const WORK: [(&str, Place, &str); 9] = [
    ("runtime.newproc1", Place::Returns, "go_spawn"),
    ("net/http.(*persistConn).roundTrip", Place::Entry, "go_hand_over"),
    ("net/http.persistConnWriter.Write", Place::Entry, "go_take_over"),
    ("net/http.(*http2Framer).readMetaFrame", Place::Entry, "go_stream_begin"),
    ("net/http.(*http2serverConn).processHeaders", Place::Entry, "go_stream_take"),
    ("golang.org/x/net/http2.(*Framer).readMetaFrame", Place::Entry, "go_stream_begin"),
    ("golang.org/x/net/http2.(*serverConn).processHeaders", Place::Entry, "go_stream_take"),
    (
        "google.golang.org/grpc/internal/transport.(*http2Client).createHeaderFields",
        Place::Returns,
        "go_hand_over",
    ),
    ("google.golang.org/grpc/internal/transport.(*loopyWriter).writeHeader", Place::Entry, "go_stream_write"),
];
pub(in crate::probes) const PROGRAMS: [&str; 10] = [
    "go_tls_enter",
    "go_tls_enter_write",
    "go_tls_read",
    "go_tls_write",
    "go_spawn",
    "go_hand_over",
    "go_take_over",
    "go_stream_begin",
    "go_stream_take",
    "go_stream_write",
];

/// The first version with the calling convention that the programs know.
const VERSION_OLDEST: u32 = 17;
/// Of the fields `g.goid`, `g.m` and `m.curg`, by the version from which on they are there.
const OFFSETS: [(u32, [u64; 3]); 3] = [(17, [152, 48, 192]), (23, [160, 48, 192]), (25, [152, 48, 184])];
const FIELDS: [(&str, &str); 3] = [("runtime.g", "goid"), ("runtime.g", "m"), ("runtime.m", "curg")];

pub(super) fn is_go(elf: &Elf) -> bool {
    elf.section(BUILD).is_some() && FUNCTION_TABLES.iter().any(|name| elf.section(name).is_some())
}

pub(super) fn find(elf: &Elf, tls: bool, findings: &mut Findings) -> Result<(), Error> {
    let version = version(elf)?;
    if version < VERSION_OLDEST {
        return Err(Error::Form("it is made by Go before 1.17"));
    }
    let offsets = match dwarf::offsets(elf, FIELDS) {
        Ok(Some(offsets)) => offsets,
        Ok(None) | Err(_) => by_version(version),
    };
    findings.go = Some(packed(offsets)?);
    let wanted: Vec<&str> = TLS.iter().chain(&WORK).map(|(name, _, _)| *name).collect();
    let found = functions(elf, &wanted)?;
    let parts = if tls { &TLS[..] } else { &[] };
    for (name, place, program) in parts.iter().chain(&WORK) {
        let Some(function) = found.get(name) else { continue };
        match place {
            Place::Entry => findings.points.push(Point { program, offset: function.offset }),
            Place::Returns => {
                let Some(returns) = returns::of(&elf.code(*function)?) else { continue };
                let points = returns.into_iter().map(|at| Point { program, offset: function.offset + at });
                findings.points.extend(points);
            }
        }
    }
    findings.has_tls |= tls && TLS.iter().all(|(name, _, _)| found.contains_key(name));
    Ok(())
}

fn by_version(version: u32) -> [u64; 3] {
    let newest = OFFSETS.iter().rev().find(|(from, _)| *from <= version);
    newest.map_or(OFFSETS[0].1, |(_, offsets)| *offsets)
}

fn packed([goid, thread, current]: [u64; 3]) -> Result<u64, Error> {
    let parts = [(goid, go_offset::GOID), (thread, go_offset::THREAD), (current, go_offset::CURRENT)];
    if parts.iter().any(|(offset, _)| *offset > u64::from(u16::MAX)) {
        return Err(Error::Form("a field of Go's runtime is farther than it can be"));
    }
    Ok(parts.iter().fold(0, |all, (offset, shift)| all | offset << shift))
}

/// The number behind `go1.`.
fn version(elf: &Elf) -> Result<u32, Error> {
    let unknown = Error::Form("the version of Go is not known");
    let Some(section) = elf.section(BUILD) else { return Err(unknown) };
    let bytes = elf.bytes(section)?;
    let (Some(flags), true) = (bytes.get(15), bytes.starts_with(BUILD_MAGIC)) else { return Err(unknown) };
    let name = if flags & 2 != 0 {
        // Since 1.18 the text follows, with its length before it: below 128 it is one byte.
        let length = usize::from(*bytes.get(32).ok_or(Error::Form("the version of Go is not known"))?);
        bytes.get(33..33 + length).map(<[u8]>::to_vec)
    } else {
        // Before, there was the address of a string, which is an address and a length.
        let string = elf.at_address(number(&bytes, 16)?, 16)?;
        let length = number(&string, 8)?.min(64);
        Some(elf.at_address(number(&string, 0)?, length)?)
    };
    let name = name.as_deref().and_then(|name| std::str::from_utf8(name).ok());
    let digits = name
        .and_then(|name| name.split("go1.").nth(1))
        .map(|rest| rest.split(|character: char| !character.is_ascii_digit()).next().unwrap_or_default());
    digits.and_then(|digits| digits.parse().ok()).ok_or(unknown)
}

fn functions<'a>(elf: &Elf, wanted: &[&'a str]) -> Result<HashMap<&'a str, Function>, Error> {
    let found = elf.functions(wanted)?;
    // A program always has this one.
    if found.contains_key("runtime.newproc1") {
        return Ok(found);
    }
    let table = FUNCTION_TABLES.iter().find_map(|name| elf.section(name));
    let bytes = elf.bytes(table.ok_or(Error::Form("there is no table of functions"))?)?;
    let table = FunctionTable::read(&bytes)?;
    let mut found = HashMap::new();
    for index in 0..table.count {
        let Some((name, address, end)) = table.function(index) else { continue };
        if let Some(name) = wanted.iter().find(|wanted| **wanted == name)
            && let Some(function) = elf.function(address, end.saturating_sub(address))
        {
            found.insert(*name, function);
        }
    }
    Ok(found)
}

/// The table of functions that Go's stack traces are made with. Its form is that of 1.16, of 1.18 or of 1.20; the latter two are alike here.
struct FunctionTable<'a> {
    names: &'a [u8],
    /// Of functions: addresses, and places in this same part, where the name's place is told.
    functions: &'a [u8],
    count: u64,
    form: Form,
}

#[derive(Debug, Clone, Copy)]
enum Form {
    /// Whole addresses.
    Addresses,
    /// Distances from the beginning of the code.
    Distances { start: u64 },
}

impl<'a> FunctionTable<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, Error> {
        let magic = bytes.first_chunk().map(|magic| u32::from_le_bytes(*magic));
        let (form, first) = match magic {
            Some(0xffff_fffa) => (Form::Addresses, 24),
            Some(0xffff_fff0 | 0xffff_fff1) => (Form::Distances { start: number(bytes, 24)? }, 32),
            _ => return Err(Error::Form("the table of functions has a form that is not known")),
        };
        if let Form::Distances { start: 0 } = form {
            return Err(Error::Form("the table of functions does not say where the code is"));
        }
        let part = |at: usize| {
            let offset = usize::try_from(number(bytes, at)?).ok();
            offset
                .and_then(|offset| bytes.get(offset..))
                .ok_or(Error::Form("the table of functions is too short"))
        };
        Ok(Self { names: part(first)?, functions: part(first + 32)?, count: number(bytes, 8)?, form })
    }

    /// Name, beginning and end of a function.
    fn function(&self, index: u64) -> Option<(&'a str, u64, u64)> {
        let index = usize::try_from(index).ok()?;
        let address = |index: usize| match self.form {
            Form::Addresses => number(self.functions, index * 16).ok(),
            Form::Distances { start } => Some(start + u64::from(word(self.functions, index * 8)?)),
        };
        let (place, name) = match self.form {
            Form::Addresses => (number(self.functions, index * 16 + 8).ok()?, 8),
            Form::Distances { .. } => (u64::from(word(self.functions, index * 8 + 4)?), 4),
        };
        let name = word(self.functions, usize::try_from(place).ok()?.checked_add(name)?)?;
        Some((text(self.names, u64::from(name)), address(index)?, address(index + 1)?))
    }
}

fn number(bytes: &[u8], at: usize) -> Result<u64, Error> {
    let number = bytes.get(at..).and_then(|rest| rest.first_chunk());
    number.map(|number| u64::from_le_bytes(*number)).ok_or(Error::Form("a table is too short"))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|word| u32::from_le_bytes(*word))
}
