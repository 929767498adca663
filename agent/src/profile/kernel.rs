//! Functions of the kernel, as /proc/kallsyms lists them.

use std::io::BufRead;

/// Names by address; the names lie in one text.
#[derive(Debug, Default)]
pub(super) struct KernelSymbols {
    /// Sorted: address, place and length of the name.
    symbols: Vec<(u64, u32, u16)>,
    names: String,
}

impl KernelSymbols {
    /// Lines like `ffffffff81000000 T _stext [module]`. Without the right to see addresses they are all 0, and there are no names.
    /// Line by line: the whole text has several times the size of what is kept.
    pub(super) fn read(mut text: impl BufRead) -> Self {
        let mut found = Self::default();
        let mut line = String::new();
        while text.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
            found.add(&line);
            line.clear();
        }
        found.symbols.sort_unstable_by_key(|(address, _, _)| *address);
        found.symbols.shrink_to_fit();
        found.names.shrink_to_fit();
        found
    }

    /// A line that is no function adds nothing.
    fn add(&mut self, line: &str) {
        let mut fields = line.split_ascii_whitespace();
        let (Some(address), Some(kind), Some(name)) = (fields.next(), fields.next(), fields.next()) else {
            return;
        };
        let Ok(address) = u64::from_str_radix(address, 16) else { return };
        if address == 0 || !matches!(kind, "t" | "T" | "w" | "W") {
            return;
        }
        let (Ok(at), Ok(length)) = (u32::try_from(self.names.len()), u16::try_from(name.len())) else {
            return;
        };
        self.names.push_str(name);
        self.symbols.push((address, at, length));
    }

    /// The function that an address lies in.
    pub(super) fn name(&self, address: u64) -> Option<&str> {
        let after = self.symbols.partition_point(|(start, _, _)| *start <= address);
        let (_, at, length) = self.symbols.get(after.checked_sub(1)?)?;
        self.names.get(*at as usize..*at as usize + usize::from(*length))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.symbols.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_belongs_to_the_function_before_it() {
        let text = "ffff20 T second\nffff10 t first\nffff15 d data\nffff30 t third [module]\n";
        let symbols = KernelSymbols::read(text.as_bytes());
        let names = [0xffff05, 0xffff10, 0xffff1f, 0xffff20, 0xffff99].map(|address| symbols.name(address));
        assert_eq!(names, [None, Some("first"), Some("first"), Some("second"), Some("third")]);
        assert!(KernelSymbols::read(&b"0000000000000000 T hidden\n"[..]).is_empty());
    }
}
