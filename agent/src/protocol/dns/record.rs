//! Names, questions and records of DNS messages.

use std::borrow::Cow;
use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Longest name (RFC 1035).
const NAME_MAX: usize = 255;
/// More pointers than this is a loop or an attack; compressors need one or two.
const POINTERS_MAX: usize = 16;
/// Text that is shown of a TXT record.
const TXT_MAX: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Question {
    pub(super) name: String,
    pub(super) kind: u16,
}

/// Reads a message from a position on.
pub(super) struct Reader<'a> {
    message: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(message: &'a [u8], at: usize) -> Self {
        Reader { message, at }
    }

    /// A question of a known class.
    pub(super) fn question(&mut self) -> Option<Question> {
        let name = self.name()?;
        let kind = self.word()?;
        // The top bit of a class is mDNS' wish for a unicast answer.
        let class = self.word()? & 0x7fff;
        (matches!(class, 1 | 3 | 4 | 254 | 255) && kind != 0).then_some(Question { name, kind })
    }

    /// Appends a record as `TYPE=value TTL=n`; types that carry settings and signatures are passed over.
    pub(super) fn record(&mut self, out: &mut String) -> Option<()> {
        self.name()?;
        let kind = self.word()?;
        self.word()?;
        let ttl = (u32::from(self.word()?) << 16) | u32::from(self.word()?);
        let size = usize::from(self.word()?);
        let start = self.at;
        let end = start.checked_add(size).filter(|end| *end <= self.message.len())?;
        if let Some(value) = self.value(kind, end) {
            let separator = if out.is_empty() { "" } else { "; " };
            // Writing to a string cannot fail.
            write!(out, "{separator}{}={value} TTL={ttl}", type_name(kind)).ok()?;
        }
        self.at = end;
        Some(())
    }

    fn value(&mut self, kind: u16, end: usize) -> Option<String> {
        let data = &self.message[self.at..end];
        let value = match kind {
            1 => Ipv4Addr::from(*data.first_chunk::<4>()?).to_string(),
            28 => Ipv6Addr::from(*data.first_chunk::<16>()?).to_string(),
            2 | 5 | 6 | 12 | 39 => self.name()?,
            15 => {
                let preference = self.word()?;
                format!("{preference} {}", self.name()?)
            }
            33 => {
                let (priority, weight, port) = (self.word()?, self.word()?, self.word()?);
                format!("{priority} {weight} {port} {}", self.name()?)
            }
            16 => printable(data.get(1..=usize::from(*data.first()?).min(TXT_MAX).min(data.len() - 1))?),
            _ => return None,
        };
        (self.at <= end).then_some(value)
    }

    /// A name with its compression undone, without the dot at its end.
    fn name(&mut self) -> Option<String> {
        let mut name = String::new();
        let (mut at, mut pointers) = (self.at, 0);
        loop {
            let size = usize::from(*self.message.get(at)?);
            match size {
                0 => {
                    if pointers == 0 {
                        self.at = at + 1;
                    }
                    return Some(name);
                }
                1..=63 => {
                    if !name.is_empty() {
                        name.push('.');
                    }
                    push_printable(&mut name, self.message.get(at + 1..at + 1 + size)?);
                    at += 1 + size;
                    if name.len() > NAME_MAX {
                        return None;
                    }
                }
                192..=255 => {
                    let low = usize::from(*self.message.get(at + 1)?);
                    if pointers == 0 {
                        self.at = at + 2;
                    }
                    pointers += 1;
                    if pointers > POINTERS_MAX {
                        return None;
                    }
                    at = ((size & 0x3f) << 8) | low;
                }
                _ => return None,
            }
        }
    }

    fn word(&mut self) -> Option<u16> {
        let word = self.message.get(self.at..)?.first_chunk::<2>()?;
        self.at += 2;
        Some(u16::from_be_bytes(*word))
    }
}

fn printable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    push_printable(&mut text, bytes);
    text
}

fn push_printable(text: &mut String, bytes: &[u8]) {
    text.extend(bytes.iter().map(|byte| if byte.is_ascii_graphic() { char::from(*byte) } else { '?' }));
}

/// Name of a record type, `TYPE<n>` (RFC 3597) for the rest.
pub(super) fn type_name(kind: u16) -> Cow<'static, str> {
    Cow::Borrowed(match kind {
        1 => "A",
        2 => "NS",
        5 => "CNAME",
        6 => "SOA",
        12 => "PTR",
        13 => "HINFO",
        15 => "MX",
        16 => "TXT",
        28 => "AAAA",
        33 => "SRV",
        35 => "NAPTR",
        39 => "DNAME",
        41 => "OPT",
        43 => "DS",
        44 => "SSHFP",
        46 => "RRSIG",
        47 => "NSEC",
        48 => "DNSKEY",
        50 => "NSEC3",
        52 => "TLSA",
        64 => "SVCB",
        65 => "HTTPS",
        251 => "IXFR",
        252 => "AXFR",
        255 => "ANY",
        256 => "URI",
        257 => "CAA",
        _ => return Cow::Owned(format!("TYPE{kind}")),
    })
}
