//! Functions of an executable file or library (ELF): their addresses are held, their names are read from the file when they are asked for.
//!
//! The file stays open, so names are found after its process ended. Files are read as far as needed, never as a whole: executables of a
//! gigabyte exist. What is malformed gives no names.

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use object::{
    Endianness, ReadCache, ReadRef,
    elf::{
        ELF_NOTE_GNU, FileHeader32, FileHeader64, NT_GNU_BUILD_ID, PT_LOAD, SHT_DYNSYM, SHT_NOTE, SHT_SYMTAB,
        STT_FUNC, STT_GNU_IFUNC,
    },
    read::elf::{FileHeader, ProgramHeader as _, SectionHeader as _, SectionTable, Sym as _},
};

/// Bytes of a table of symbols that are read: more than two million functions.
const TABLE_BYTES_MAX: u64 = 48 << 20;
/// Longest name that is read.
const NAME_MAX: usize = 1_024;
/// Where distributions put the symbols that they take out of programs.
const DEBUG_FOLDER: &str = "usr/lib/debug/.build-id";

/// Functions of one file.
#[derive(Debug)]
pub(super) struct Functions {
    /// Parts of the file that are mapped: offset, bytes, address.
    segments: Vec<(u64, u64, u64)>,
    symbols: Vec<Symbol>,
    /// The names are in this file, from this place on.
    names: Option<(File, u64)>,
}

#[derive(Debug, Clone, Copy)]
struct Symbol {
    address: u64,
    size: u32,
    /// Place of the name among the names.
    name: u32,
}

/// What is read of one file.
struct Read {
    segments: Vec<(u64, u64, u64)>,
    symbols: Vec<Symbol>,
    names_at: u64,
    /// All symbols, and not those alone that others may link with.
    is_full: bool,
    build_id: Vec<u8>,
}

impl Functions {
    /// `root` is the root directory that the file's process sees.
    pub(super) fn open(file: File, root: &Path) -> Option<Self> {
        let Read { segments, mut symbols, mut names_at, is_full, build_id } = read(&file)?;
        let mut names = file;
        if !is_full
            && let Some(path) = debug_file(&build_id)
            && let Some((debug, full)) = [root, Path::new("/")].iter().find_map(|root| {
                let file = File::open(root.join(&path)).ok()?;
                let read = read(&file).filter(|read| read.is_full && read.build_id == build_id)?;
                Some((file, read))
            })
        {
            (names, symbols, names_at) = (debug, full.symbols, full.names_at);
        }
        symbols.sort_unstable_by_key(|symbol| (symbol.address, std::cmp::Reverse(symbol.size)));
        // Other names of the same function say no more.
        symbols.dedup_by_key(|symbol| symbol.address);
        symbols.shrink_to_fit();
        let names = (!symbols.is_empty()).then_some((names, names_at));
        Some(Self { segments, symbols, names })
    }

    /// The name of the function at a place of the file, as the compiler wrote it.
    pub(super) fn name(&self, offset: u64) -> Option<String> {
        let (names, names_at) = self.names.as_ref()?;
        let address = self.segments.iter().find_map(|(start, bytes, address)| {
            offset.checked_sub(*start).filter(|within| within < bytes).map(|within| address + within)
        })?;
        let after = self.symbols.partition_point(|symbol| symbol.address <= address);
        let symbol = self.symbols.get(after.checked_sub(1)?)?;
        // A function written in assembly may have no size: it goes to the next one.
        if symbol.size > 0 && address - symbol.address >= u64::from(symbol.size) {
            return None;
        }
        let mut name = vec![0; NAME_MAX];
        let read = names.read_at(&mut name, names_at + u64::from(symbol.name)).ok()?;
        let end = name[..read].iter().position(|byte| *byte == 0).unwrap_or(read);
        name.truncate(end);
        String::from_utf8(name).ok().filter(|name| !name.is_empty())
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(self.symbols.as_slice()) + size_of_val(self.segments.as_slice()) + size_of::<Self>()
    }
}

fn read(file: &File) -> Option<Read> {
    let cache = ReadCache::new(file.try_clone().ok()?);
    match *cache.read_bytes_at(0, 5).ok()? {
        [0x7f, b'E', b'L', b'F', 1] => read_as::<FileHeader32<Endianness>>(&cache),
        [0x7f, b'E', b'L', b'F', 2] => read_as::<FileHeader64<Endianness>>(&cache),
        _ => None,
    }
}

fn read_as<Elf: FileHeader<Endian = Endianness>>(cache: &ReadCache<File>) -> Option<Read> {
    let header = Elf::parse(cache).ok()?;
    let endian = header.endian().ok()?;
    let segments = header.program_headers(endian, cache).ok()?.iter();
    let segments = segments
        .filter(|segment| segment.p_type(endian) == PT_LOAD)
        .map(|segment| {
            let place = (segment.p_offset(endian), segment.p_filesz(endian), segment.p_vaddr(endian));
            (place.0.into(), place.1.into(), place.2.into())
        })
        .collect();
    let sections = header.sections(endian, cache).ok()?;
    let full = symbols(&sections, endian, cache, SHT_SYMTAB);
    let is_full = full.as_ref().is_some_and(|(symbols, _)| !symbols.is_empty());
    let found = if is_full { full } else { symbols(&sections, endian, cache, SHT_DYNSYM) };
    let (symbols, names_at) = found.unwrap_or_default();
    let build_id = build_id::<Elf>(&sections, endian, cache).unwrap_or_default();
    Some(Read { segments, symbols, names_at, is_full, build_id })
}

/// The functions of a table, and where their names begin in the file.
fn symbols<'a, Elf: FileHeader<Endian = Endianness>>(
    sections: &SectionTable<'a, Elf, &'a ReadCache<File>>,
    endian: Endianness,
    cache: &'a ReadCache<File>,
    kind: u32,
) -> Option<(Vec<Symbol>, u64)> {
    let section = sections.iter().find(|section| section.sh_type(endian) == kind)?;
    let bytes: u64 = section.sh_size(endian).into();
    if bytes > TABLE_BYTES_MAX {
        return None;
    }
    let table = sections.symbols(endian, cache, kind).ok()?;
    let names = sections.section(table.string_section()).ok()?;
    let functions = table.iter().filter_map(|symbol| {
        let is_function = matches!(symbol.st_type(), STT_FUNC | STT_GNU_IFUNC);
        let address: u64 = symbol.st_value(endian).into();
        if !is_function || address == 0 {
            return None;
        }
        let size: u64 = symbol.st_size(endian).into();
        Some(Symbol { address, size: u32::try_from(size).unwrap_or(u32::MAX), name: symbol.st_name(endian) })
    });
    Some((functions.collect(), names.sh_offset(endian).into()))
}

fn build_id<'a, Elf: FileHeader<Endian = Endianness>>(
    sections: &SectionTable<'a, Elf, &'a ReadCache<File>>,
    endian: Endianness,
    cache: &'a ReadCache<File>,
) -> Option<Vec<u8>> {
    /// Notes are a few dozen bytes.
    const NOTES_BYTES_MAX: u64 = 64 << 10;
    sections
        .iter()
        .filter(|section| {
            section.sh_type(endian) == SHT_NOTE && section.sh_size(endian).into() < NOTES_BYTES_MAX
        })
        .find_map(|section| {
            let mut notes = section.notes(endian, cache).ok()??;
            while let Ok(Some(note)) = notes.next() {
                if note.name() == ELF_NOTE_GNU && note.n_type(endian) == NT_GNU_BUILD_ID {
                    return Some(note.desc().to_vec());
                }
            }
            None
        })
}

/// Where the symbols of a file with this id are, below the root directory.
fn debug_file(build_id: &[u8]) -> Option<PathBuf> {
    let (first, rest) = build_id.split_first().filter(|(_, rest)| !rest.is_empty())?;
    let rest: String = rest.iter().map(|byte| format!("{byte:02x}")).collect();
    Some(Path::new(DEBUG_FOLDER).join(format!("{first:02x}")).join(format!("{rest}.debug")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Has a symbol in every profile: the compiler puts it into no other function.
    #[inline(never)]
    fn known_by_its_name(number: u64) -> u64 {
        std::hint::black_box(number).rotate_left(7) ^ 0x6d65_7461_666c_6f77
    }

    #[test]
    fn this_program_knows_its_own_functions() {
        assert_ne!(known_by_its_name(1), 1);
        let file = File::open("/proc/self/exe").unwrap();
        let functions = Functions::open(file, Path::new("/")).unwrap();
        assert!(functions.symbols.len() > 1_000);
        let known = functions.symbols.iter().find_map(|symbol| {
            let segment = functions
                .segments
                .iter()
                .find(|(_, bytes, address)| symbol.address >= *address && symbol.address < address + bytes)?;
            let offset = symbol.address - segment.2 + segment.0;
            functions.name(offset).filter(|name| name.contains("known_by_its_name"))
        });
        assert!(known.is_some());
        assert_eq!(functions.name(u64::MAX), None);
    }

    #[test]
    fn what_is_no_executable_has_no_functions() {
        for bytes in [&b""[..], b"\x7fELF", b"\x7fELF\x02\x01\x01", b"#!/bin/sh\n"] {
            let mut file = tempfile::tempfile().unwrap();
            std::io::Write::write_all(&mut file, bytes).unwrap();
            assert!(Functions::open(file, Path::new("/")).is_none(), "{bytes:?}");
        }
        let mut cut = tempfile::tempfile().unwrap();
        let whole = std::fs::read("/proc/self/exe").unwrap();
        std::io::Write::write_all(&mut cut, &whole[..whole.len() / 2]).unwrap();
        // The table of sections is at the end.
        assert!(Functions::open(cut, Path::new("/")).is_none());
    }

    #[test]
    fn symbols_that_were_taken_out_are_looked_for_by_build_id() {
        assert_eq!(
            debug_file(&[0xab, 0xcd, 0x01]).unwrap(),
            Path::new("usr/lib/debug/.build-id/ab/cd01.debug")
        );
        assert_eq!(debug_file(&[0xab]), None);
    }
}
