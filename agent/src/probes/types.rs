//! The kernel's own description of its types (BTF), as far as offsets of fields need it. Pure.

use std::collections::HashMap;

const MAGIC: u16 = 0xeb9f;
/// Anonymous structures inside one another that are searched.
const DEPTH_MAX: usize = 8;
/// Types of a kernel are a few hundred thousand.
const TYPES_MAX: usize = 4_000_000;

/// Why a description cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Error {
    #[error("the kernel's type information is not in a form that is known ({0})")]
    Form(&'static str),
    #[error("the kernel has no field {field} in struct {structure}")]
    Field { structure: String, field: String },
}

/// Structures by name and by number.
pub(super) struct Types<'a> {
    bytes: &'a [u8],
    strings: &'a [u8],
    /// Places of all types; numbers begin at 1.
    places: Vec<usize>,
    structures: HashMap<&'a [u8], u32>,
}

#[derive(Clone, Copy)]
struct Type {
    kind: u32,
    fields: u32,
    has_bit_fields: bool,
    /// Size, or the type that this one names.
    value: u32,
    /// Where what belongs to the kind begins.
    at: usize,
}

mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
    pub(super) const LAST: u32 = 19;
}

impl<'a> Types<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        let short = Error::Form("it is cut short");
        let magic = bytes.first_chunk::<2>().map(|magic| u16::from_ne_bytes(*magic));
        if magic != Some(MAGIC) {
            return Err(Error::Form("it does not begin as BTF does"));
        }
        let word = |at: usize| word(bytes, at).ok_or_else(|| short.clone());
        let (header, types_at, types_length) = (word(4)?, word(8)?, word(12)?);
        let (strings_at, strings_length) = (word(16)?, word(20)?);
        let part = |at: u32, length: u32| {
            let start = (header as usize).saturating_add(at as usize);
            bytes.get(start..start.saturating_add(length as usize)).ok_or_else(|| short.clone())
        };
        let strings = part(strings_at, strings_length)?;
        let mut types = Self {
            bytes: part(types_at, types_length)?,
            strings,
            places: vec![0],
            structures: HashMap::new(),
        };
        types.index()?;
        Ok(types)
    }

    fn index(&mut self) -> Result<(), Error> {
        let mut at = 0;
        while at < self.bytes.len() {
            let found = self.read(at).ok_or(Error::Form("a type is cut short"))?;
            if found.kind > kind::LAST || self.places.len() > TYPES_MAX {
                return Err(Error::Form("it has kinds of types that are not known"));
            }
            if matches!(found.kind, kind::STRUCT | kind::UNION) {
                let name = self.text(word(self.bytes, at).unwrap_or(0));
                if !name.is_empty() {
                    self.structures.entry(name).or_insert(self.places.len() as u32);
                }
            }
            self.places.push(at);
            let fields = found.fields as usize;
            at = found.at
                + match found.kind {
                    kind::INT | kind::VAR | kind::DECL_TAG => 4,
                    kind::ARRAY => 12,
                    kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12 * fields,
                    kind::ENUM | kind::FUNC_PROTO => 8 * fields,
                    _ => 0,
                };
        }
        Ok(())
    }

    /// Offset in bytes of a field such as `__sk_common.skc_family`; fields of anonymous members are found as if they were the
    /// structure's own.
    pub(super) fn offset(&self, structure: &str, field: &str) -> Result<u32, Error> {
        let missing = || Error::Field { structure: structure.to_owned(), field: field.to_owned() };
        let mut number = *self.structures.get(structure.as_bytes()).ok_or_else(missing)?;
        let mut bits = 0;
        for name in field.split('.') {
            let (offset, inner) = self.member(number, name.as_bytes(), 0).ok_or_else(missing)?;
            bits += offset;
            number = inner;
        }
        if bits % 8 != 0 {
            return Err(missing());
        }
        Ok(bits / 8)
    }

    /// Offset in bits and type of a member.
    fn member(&self, number: u32, name: &[u8], depth: usize) -> Option<(u32, u32)> {
        let found = self.structure(number)?;
        for index in 0..found.fields as usize {
            let at = found.at + 12 * index;
            let (name_at, inner, offset) =
                (word(self.bytes, at)?, word(self.bytes, at + 4)?, word(self.bytes, at + 8)?);
            // With bit fields, the upper byte is a width.
            let offset = if found.has_bit_fields { offset & 0xff_ffff } else { offset };
            let member = self.text(name_at);
            if member == name {
                return Some((offset, inner));
            }
            if member.is_empty()
                && depth < DEPTH_MAX
                && let Some((further, inner)) = self.member(inner, name, depth + 1)
            {
                return Some((offset + further, inner));
            }
        }
        None
    }

    /// A structure behind names and qualifiers.
    fn structure(&self, mut number: u32) -> Option<Type> {
        for _ in 0..DEPTH_MAX {
            let found = self.read(*self.places.get(number as usize).filter(|_| number > 0)?)?;
            match found.kind {
                kind::STRUCT | kind::UNION => return Some(found),
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::TYPE_TAG => number = found.value,
                _ => return None,
            }
        }
        None
    }

    fn read(&self, at: usize) -> Option<Type> {
        let info = word(self.bytes, at + 4)?;
        Some(Type {
            kind: info >> 24 & 0x1f,
            fields: info & 0xffff,
            has_bit_fields: info >> 31 == 1,
            value: word(self.bytes, at + 8)?,
            at: at + 12,
        })
    }

    fn text(&self, at: u32) -> &'a [u8] {
        let rest = self.strings.get(at as usize..).unwrap_or_default();
        rest.split(|byte| *byte == 0).next().unwrap_or_default()
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two structures: `outer { int first; struct { int hidden; }; struct inner named; }`, `inner { int x; int y; }`.
    fn sample() -> Vec<u8> {
        let strings = b"\0int\0outer\0first\0hidden\0inner\0named\0x\0y\0";
        let text = |name: &str| {
            let name = format!("\0{name}\0");
            strings.windows(name.len()).position(|part| part == name.as_bytes()).unwrap() as u32 + 1
        };
        let mut words = vec![text("int"), kind::INT << 24, 4, 32];
        let structure = |name: u32, size: u32, fields: &[(u32, u32, u32)]| {
            let mut words = vec![name, kind::STRUCT << 24 | fields.len() as u32, size];
            words.extend(fields.iter().flat_map(|(name, inner, offset)| [*name, *inner, *offset]));
            words
        };
        words.extend(structure(0, 4, &[(text("hidden"), 1, 0)]));
        words.extend(structure(text("inner"), 8, &[(text("x"), 1, 0), (text("y"), 1, 32)]));
        words.extend(structure(
            text("outer"),
            16,
            &[(text("first"), 1, 0), (0, 2, 32), (text("named"), 3, 64)],
        ));
        let length = words.len() as u32 * 4;
        let mut bytes = MAGIC.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        for word in [24, 0, length, length, strings.len() as u32].into_iter().chain(words) {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn fields_are_found_by_path_and_inside_anonymous_members() {
        let bytes = sample();
        let types = Types::parse(&bytes).unwrap();
        let check = |structure: &str, field: &str, expected: Option<u32>| {
            assert_eq!(types.offset(structure, field).ok(), expected, "{structure}.{field}");
        };
        check("outer", "first", Some(0));
        check("outer", "hidden", Some(4));
        check("outer", "named", Some(8));
        check("outer", "named.y", Some(12));
        check("outer", "named.z", None);
        check("other", "first", None);
        check("inner", "x.y", None);
    }

    #[test]
    fn what_is_cut_short_is_an_error() {
        let bytes = sample();
        for length in 0..bytes.len() {
            assert!(Types::parse(&bytes[..length]).is_err(), "{length}");
        }
    }
}
