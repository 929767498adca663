//! Offsets of fields, as the debug information of a Go program has them.

use gimli::{DebuggingInformationEntry, EndianSlice, LittleEndian, constants};

use super::Error;
use super::elf::Elf;

type Slice<'a> = EndianSlice<'a, LittleEndian>;
type Dwarf<'a> = gimli::Dwarf<Slice<'a>>;
type Unit<'a> = gimli::Unit<Slice<'a>>;

/// The part of a program that Go's runtime is.
const RUNTIME: &[u8] = b"runtime";

/// Offsets of fields of the runtime's structures (`runtime.g`, `goid`), in their order; none without debug information.
pub(super) fn offsets<const N: usize>(
    elf: &Elf,
    fields: [(&str, &str); N],
) -> Result<Option<[u64; N]>, Error> {
    let load = |id: gimli::SectionId| {
        let name = id.name();
        let section =
            elf.section(name).cloned().or_else(|| elf.section(&name.replacen('.', ".z", 1)).cloned());
        section.map_or(Ok(Vec::new()), |section| elf.bytes(&section))
    };
    let sections = gimli::DwarfSections::load(|id| match id {
        gimli::SectionId::DebugInfo
        | gimli::SectionId::DebugAbbrev
        | gimli::SectionId::DebugStr
        | gimli::SectionId::DebugLineStr
        | gimli::SectionId::DebugStrOffsets
        | gimli::SectionId::DebugAddr => load(id),
        _ => Ok(Vec::new()),
    })?;
    let dwarf = sections.borrow(|bytes| EndianSlice::new(bytes, LittleEndian));
    of_runtime(&dwarf, fields).map_err(|_| Error::Form("the debug information cannot be read"))
}

fn of_runtime<const N: usize>(
    dwarf: &Dwarf<'_>,
    fields: [(&str, &str); N],
) -> gimli::Result<Option<[u64; N]>> {
    let mut units = dwarf.units();
    while let Some(header) = units.next()? {
        let unit = dwarf.unit(header)?;
        if unit.name.is_some_and(|name| name.slice() == RUNTIME) {
            return of_unit(dwarf, &unit, fields);
        }
    }
    Ok(None)
}

fn of_unit<const N: usize>(
    dwarf: &Dwarf<'_>,
    unit: &Unit<'_>,
    fields: [(&str, &str); N],
) -> gimli::Result<Option<[u64; N]>> {
    let mut found = [None; N];
    let mut structure: &[u8] = &[];
    let mut entries = unit.entries();
    while let Some(entry) = entries.next_dfs()? {
        match entry.tag() {
            constants::DW_TAG_structure_type => structure = name_of(dwarf, unit, entry)?,
            constants::DW_TAG_member => {
                if fields.iter().all(|(of, _)| of.as_bytes() != structure) {
                    continue;
                }
                let field = name_of(dwarf, unit, entry)?;
                for (at, (of, name)) in fields.iter().enumerate() {
                    if of.as_bytes() == structure && name.as_bytes() == field {
                        found[at] = entry
                            .attr(constants::DW_AT_data_member_location)
                            .and_then(|attribute| attribute.udata_value());
                    }
                }
            }
            _ => {}
        }
        if let Some(all) = all(&found) {
            return Ok(Some(all));
        }
    }
    Ok(None)
}

fn all<const N: usize>(found: &[Option<u64>; N]) -> Option<[u64; N]> {
    let mut all = [0; N];
    for (to, from) in all.iter_mut().zip(found) {
        *to = (*from)?;
    }
    Some(all)
}

fn name_of<'a>(
    dwarf: &Dwarf<'a>,
    unit: &Unit<'a>,
    entry: &DebuggingInformationEntry<Slice<'a>>,
) -> gimli::Result<&'a [u8]> {
    let name = entry.attr_value(constants::DW_AT_name);
    name.map_or(Ok(&[][..]), |name| Ok(dwarf.attr_string(unit, name)?.slice()))
}
