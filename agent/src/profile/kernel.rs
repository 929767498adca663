//! Functions of the kernel, as /proc/kallsyms lists them.

/// Names by address; the names lie in one text.
#[derive(Debug, Default)]
pub(super) struct KernelSymbols {
    /// Sorted: address, place and length of the name.
    symbols: Vec<(u64, u32, u16)>,
    names: String,
}

impl KernelSymbols {
    /// Lines like `ffffffff81000000 T _stext [module]`. Without the right to see addresses they are all 0, and there are no names.
    pub(super) fn parse(text: &str) -> Self {
        let mut found = Self::default();
        for line in text.lines() {
            let mut fields = line.split_ascii_whitespace();
            let (Some(address), Some(kind), Some(name)) = (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            let Ok(address) = u64::from_str_radix(address, 16) else { continue };
            if address == 0 || !matches!(kind, "t" | "T" | "w" | "W") {
                continue;
            }
            let (Ok(at), Ok(length)) = (u32::try_from(found.names.len()), u16::try_from(name.len())) else {
                break;
            };
            found.names.push_str(name);
            found.symbols.push((address, at, length));
        }
        found.symbols.sort_unstable_by_key(|(address, _, _)| *address);
        found.symbols.shrink_to_fit();
        found.names.shrink_to_fit();
        found
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
        let symbols = KernelSymbols::parse(text);
        let names = [0xffff05, 0xffff10, 0xffff1f, 0xffff20, 0xffff99].map(|address| symbols.name(address));
        assert_eq!(names, [None, Some("first"), Some("first"), Some("second"), Some("third")]);
        assert!(KernelSymbols::parse("0000000000000000 T hidden\n").is_empty());
    }
}
