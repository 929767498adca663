//! What is mapped where in a process, as /proc/PID/maps says it. Pure.

/// A mapping that code can run in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) start: u64,
    pub(super) end: u64,
    /// Offset in the file of its first byte.
    pub(super) offset: u64,
    pub(super) device: String,
    /// 0: no file.
    pub(super) inode: u64,
    /// Empty for anonymous memory; `[vdso]` and the like for the kernel's own.
    pub(super) path: String,
}

impl Mapping {
    /// The last part of the path.
    pub(super) fn file_name(&self) -> &str {
        let path = self.path.strip_suffix(" (deleted)").unwrap_or(&self.path);
        path.rsplit('/').next().unwrap_or(path)
    }
}

/// Lines like `7f2c-7f3d r-xp 00001000 fd:01 123456   /usr/lib/libc.so.6`, in the order of addresses.
pub(super) fn parse(text: &str) -> Vec<Mapping> {
    text.lines().filter_map(line).collect()
}

fn line(line: &str) -> Option<Mapping> {
    let mut rest = line;
    let mut next = || {
        let trimmed = rest.trim_start();
        let (field, after) = trimmed.split_once(' ').unwrap_or((trimmed, ""));
        rest = after;
        (!field.is_empty()).then_some(field)
    };
    let (range, rights, offset, device, inode) = (next()?, next()?, next()?, next()?, next()?);
    if rights.as_bytes().get(2) != Some(&b'x') {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    let number = |text: &str| u64::from_str_radix(text, 16).ok();
    Some(Mapping {
        start: number(start)?,
        end: number(end)?,
        offset: number(offset)?,
        device: device.to_owned(),
        inode: inode.parse().ok()?,
        path: rest.trim_start().to_owned(),
    })
}

/// The mapping that an address lies in.
pub(super) fn find(mappings: &[Mapping], address: u64) -> Option<&Mapping> {
    let after = mappings.partition_point(|mapping| mapping.start <= address);
    mappings.get(after.checked_sub(1)?).filter(|mapping| address < mapping.end)
}

/// Functions of a just-in-time compiler, as `/tmp/perf-PID.map` lists them: `address size name`, hexadecimal. Sorted by address.
pub(super) fn perf_map(text: &str) -> Vec<(u64, u64, &str)> {
    let number = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok();
    let mut entries: Vec<_> = text
        .lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ' ');
            Some((number(fields.next()?)?, number(fields.next()?)?, fields.next()?))
        })
        .collect();
    // Of several for one place the last one counts: code was compiled anew.
    entries.reverse();
    entries.sort_by_key(|(start, _, _)| *start);
    entries.dedup_by_key(|(start, _, _)| *start);
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
5500-5600 r-xp 00001000 fd:01 11                         /opt/my app/server
5600-5700 r--p 00002000 fd:01 11                         /opt/my app/server
7f00-7f10 r-xp 00000000 00:00 0
7f20-7f30 r-xp 00000000 fd:01 12                         /usr/lib/libold.so (deleted)
7fff-8000 r-xp 00000000 00:00 0                          [vdso]
";

    #[test]
    fn addresses_are_found_in_executable_mappings() {
        let mappings = parse(TEXT);
        let check = |address: u64, expected: Option<&str>| {
            assert_eq!(find(&mappings, address).map(Mapping::file_name), expected, "{address:x}");
        };
        check(0x5500, Some("server"));
        check(0x55ff, Some("server"));
        check(0x5600, None);
        check(0x7f05, Some(""));
        check(0x7f25, Some("libold.so"));
        check(0x7fff, Some("[vdso]"));
        check(0x10, None);
        assert_eq!((mappings[0].offset, mappings[0].inode), (0x1000, 11));
    }

    #[test]
    fn the_latest_of_several_functions_at_one_place_counts() {
        let text =
            "7f0010 20 py::f:/app.py\n0x7f0000 10 py::g:/app.py\nnonsense\n7f0010 30 py::f2:/my app.py\n";
        assert_eq!(
            perf_map(text),
            [(0x7f_0000, 0x10, "py::g:/app.py"), (0x7f_0010, 0x30, "py::f2:/my app.py")]
        );
    }
}
