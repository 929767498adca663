//! Files in the format ELF: sections and functions, read piece by piece, so that large programs cost no memory.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use object::LittleEndian as LE;
use object::elf::{self, CompressionHeader64, FileHeader64, ProgramHeader64, SectionHeader64, Sym64};
use object::pod::{Pod, from_bytes, slice_from_all_bytes};

use super::Error;

/// Sections of a file; the largest programs have some hundreds.
const HEADERS_MAX: usize = 4_096;
/// Tables above this are not read: the largest programs' symbols and line tables take some tens of megabytes.
pub(super) const TABLE_MAX: u64 = 64 << 20;
/// Bytes of names that are looked through in one go.
const NAMES_READ: u64 = 256 << 10;
/// Symbols read in one go.
const SYMBOLS_READ: u64 = 16_384;

#[cfg(target_arch = "x86_64")]
const MACHINE: u16 = elf::EM_X86_64;
#[cfg(target_arch = "aarch64")]
const MACHINE: u16 = elf::EM_AARCH64;

pub(super) struct Elf {
    file: File,
    sections: Vec<Section>,
    segments: Vec<Segment>,
}

#[derive(Debug, Clone)]
pub(super) struct Section {
    name: String,
    kind: u32,
    flags: u64,
    offset: u64,
    size: u64,
    link: u32,
}

/// A part of the file that is mapped.
struct Segment {
    address: u64,
    offset: u64,
    size: u64,
    is_code: bool,
}

/// A function of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Function {
    /// In the file.
    pub(super) offset: u64,
    pub(super) size: u64,
}

impl Elf {
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let file = File::open(path)?;
        if !file.metadata()?.is_file() {
            return Err(Error::Kind);
        }
        let mut elf = Self { file, sections: Vec::new(), segments: Vec::new() };
        let head = elf.read(0, size_of::<FileHeader64<LE>>() as u64).map_err(|_| Error::Kind)?;
        let (head, _) = from_bytes::<FileHeader64<LE>>(&head).map_err(|()| Error::Kind)?;
        let ident = head.e_ident;
        let is_ours = ident.magic == elf::ELFMAG
            && ident.class == elf::ELFCLASS64
            && ident.data == elf::ELFDATA2LSB
            && head.e_machine.get(LE) == MACHINE;
        if !is_ours {
            return Err(Error::Kind);
        }
        let segments: Vec<ProgramHeader64<LE>> =
            elf.table(head.e_phoff.get(LE), u64::from(head.e_phnum.get(LE)))?;
        elf.segments = segments
            .iter()
            .filter(|segment| segment.p_type.get(LE) == elf::PT_LOAD)
            .map(|segment| Segment {
                address: segment.p_vaddr.get(LE),
                offset: segment.p_offset.get(LE),
                size: segment.p_filesz.get(LE),
                is_code: segment.p_flags.get(LE) & elf::PF_X != 0,
            })
            .collect();
        let headers: Vec<SectionHeader64<LE>> =
            elf.table(head.e_shoff.get(LE), u64::from(head.e_shnum.get(LE)))?;
        let names = match headers.get(usize::from(head.e_shstrndx.get(LE))) {
            Some(names) => elf.read(names.sh_offset.get(LE), names.sh_size.get(LE))?,
            None => Vec::new(),
        };
        elf.sections = headers
            .iter()
            .map(|header| Section {
                name: text(&names, u64::from(header.sh_name.get(LE))).to_owned(),
                kind: header.sh_type.get(LE),
                flags: header.sh_flags.get(LE),
                offset: header.sh_offset.get(LE),
                size: header.sh_size.get(LE),
                link: header.sh_link.get(LE),
            })
            .collect();
        Ok(elf)
    }

    pub(super) fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|section| section.name == name)
    }

    /// The bytes of a section, unpacked.
    pub(super) fn bytes(&self, section: &Section) -> Result<Vec<u8>, Error> {
        let bytes = self.read(section.offset, section.size)?;
        let (packed, size) = if section.flags & u64::from(elf::SHF_COMPRESSED) != 0 {
            let (head, rest) = from_bytes::<CompressionHeader64<LE>>(&bytes)
                .map_err(|()| Error::Form("a section is too short"))?;
            if head.ch_type.get(LE) != elf::ELFCOMPRESS_ZLIB {
                return Err(Error::Form("a section is packed in another way than zlib"));
            }
            (rest, head.ch_size.get(LE))
        } else if let Some((size, rest)) = zdebug(section, &bytes) {
            (rest, size)
        } else {
            return Ok(bytes);
        };
        if size > TABLE_MAX {
            return Err(Error::Form("a section is too large"));
        }
        miniz_oxide::inflate::decompress_to_vec_zlib_with_limit(packed, size as usize)
            .map_err(|_| Error::Form("a section cannot be unpacked"))
    }

    /// The bytes of code from an offset in the file on.
    pub(super) fn code(&self, function: Function) -> Result<Vec<u8>, Error> {
        self.read(function.offset, function.size)
    }

    /// The bytes at an address, as a process begins with them.
    pub(super) fn at_address(&self, address: u64, size: u64) -> Result<Vec<u8>, Error> {
        let offset = self
            .segments
            .iter()
            .find(|segment| (segment.address..segment.address + segment.size).contains(&address))
            .map(|segment| address - segment.address + segment.offset)
            .ok_or(Error::Form("an address lies outside of the file"))?;
        self.read(offset, size)
    }

    /// Code at an address.
    pub(super) fn function(&self, address: u64, size: u64) -> Option<Function> {
        let segment = self.segments.iter().find(|segment| {
            segment.is_code
                && (segment.address..segment.address.saturating_add(segment.size)).contains(&address)
        })?;
        (size <= segment.address + segment.size - address)
            .then_some(Function { offset: address - segment.address + segment.offset, size })
    }

    /// Which of these the names of functions contain. Reads all names once, bit by bit: most files have none of them, and the names of a large program
    /// take tens of megabytes.
    pub(super) fn mentions<const PARTS: usize>(&self, parts: [&str; PARTS]) -> Result<[bool; PARTS], Error> {
        let finders = parts.map(memchr::memmem::Finder::new);
        let longest = parts.map(str::len).into_iter().max().unwrap_or(0) as u64;
        let mut found = [false; PARTS];
        for names in self.tables().filter_map(|table| self.names_of(table)) {
            let mut at = 0;
            while at < names.size {
                // A name may lie on the border of two pieces.
                let piece = self.read(names.offset + at, (NAMES_READ + longest).min(names.size - at))?;
                for (found, finder) in found.iter_mut().zip(&finders) {
                    *found = *found || finder.find(&piece).is_some();
                }
                at += NAMES_READ;
            }
        }
        Ok(found)
    }

    fn tables(&self) -> impl Iterator<Item = &Section> {
        self.sections.iter().filter(|table| matches!(table.kind, elf::SHT_SYMTAB | elf::SHT_DYNSYM))
    }

    fn names_of(&self, table: &Section) -> Option<&Section> {
        self.sections.get(table.link as usize).filter(|names| names.size <= TABLE_MAX)
    }

    /// Those of the functions that the file itself has, as its tables of symbols say.
    pub(super) fn functions<'a>(&self, wanted: &[&'a str]) -> Result<HashMap<&'a str, Function>, Error> {
        let mut found = HashMap::new();
        // Most files have none of them, which their names tell at once.
        let is_there =
            |names: &[u8]| wanted.iter().any(|name| memchr::memmem::find(names, name.as_bytes()).is_some());
        self.each_symbol(is_there, |name, function| {
            if let Some(name) = wanted.iter().find(|wanted| **wanted == name) {
                found.entry(*name).or_insert(function);
            }
        })?;
        Ok(found)
    }

    /// Shows all functions, by the names that the linker knew, if some name has such a part.
    pub(super) fn each_function(&self, part: &str, each: impl FnMut(&str, Function)) -> Result<(), Error> {
        let finder = memchr::memmem::Finder::new(part);
        self.each_symbol(|names| finder.find(names).is_some(), each)
    }

    /// Shows the functions of those tables of symbols whose names are of interest.
    fn each_symbol(
        &self,
        is_of_interest: impl Fn(&[u8]) -> bool,
        mut each: impl FnMut(&str, Function),
    ) -> Result<(), Error> {
        for table in self.tables() {
            let Some(names) = self.names_of(table) else { continue };
            let names = self.read(names.offset, names.size)?;
            if !is_of_interest(&names) {
                continue;
            }
            let stride = size_of::<Sym64<LE>>() as u64;
            let count = table.size / stride;
            for first in (0..count).step_by(SYMBOLS_READ as usize) {
                let part: Vec<Sym64<LE>> =
                    self.table(table.offset + first * stride, SYMBOLS_READ.min(count - first))?;
                for symbol in part.iter().filter(|symbol| is_function(symbol)) {
                    let name = text(&names, u64::from(symbol.st_name.get(LE)));
                    if let Some(function) = self.function(symbol.st_value.get(LE), symbol.st_size.get(LE)) {
                        each(name, function);
                    }
                }
            }
        }
        Ok(())
    }

    fn table<T: Pod + Copy>(&self, offset: u64, count: u64) -> Result<Vec<T>, Error> {
        if count > SYMBOLS_READ.max(HEADERS_MAX as u64) {
            return Err(Error::Form("too many headers"));
        }
        let bytes = self.read(offset, count * size_of::<T>() as u64)?;
        slice_from_all_bytes(&bytes)
            .map(<[T]>::to_vec)
            .map_err(|()| Error::Form("a table has a strange size"))
    }

    fn read(&self, offset: u64, size: u64) -> Result<Vec<u8>, Error> {
        if size > TABLE_MAX {
            return Err(Error::Form("a section is too large"));
        }
        let mut bytes = vec![0; size as usize];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }
}

/// Defined here, with code of its own: what a program takes from a library has no place in it.
fn is_function(symbol: &Sym64<LE>) -> bool {
    symbol.st_info & 0xf == elf::STT_FUNC && symbol.st_shndx.get(LE) != elf::SHN_UNDEF
}

/// The form that Go's linker packed sections in: a word, the size, the data.
fn zdebug<'a>(section: &Section, bytes: &'a [u8]) -> Option<(u64, &'a [u8])> {
    let rest = bytes.strip_prefix(b"ZLIB").filter(|_| section.name.starts_with(".zdebug_"))?;
    let (size, rest) = rest.split_first_chunk()?;
    Some((u64::from_be_bytes(*size), rest))
}

/// A text that ends with a zero.
pub(super) fn text(bytes: &[u8], at: u64) -> &str {
    let rest = usize::try_from(at).ok().and_then(|at| bytes.get(at..)).unwrap_or_default();
    let end = memchr::memchr(0, rest).unwrap_or(rest.len());
    std::str::from_utf8(&rest[..end]).unwrap_or_default()
}
