//! Texts and addresses that rows refer to by index, and texts that keys share.

use std::{collections::hash_map::Entry, net::IpAddr, sync::Arc};

use rustc_hash::{FxHashMap, FxHashSet};

/// Longest text of a key column. Longer ones have no use as a group and would let a client fill memory.
pub(super) const KEY_TEXT_MAX: usize = 256;
/// Texts that are found without hashing them: rows that follow one another mostly have the same ones. A power of two.
const RECENT: usize = 64;
/// Distinct texts kept for sharing; then sharing starts anew.
const SYMBOLS_MAX: usize = 65_536;

/// Cuts a text at a character boundary.
pub(crate) fn truncate(text: &str, bytes_max: usize) -> &str {
    let mut end = bytes_max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Texts and addresses of one batch, each listed once.
#[derive(Debug)]
pub(super) struct Pool {
    strings: Vec<String>,
    string_indexes: FxHashMap<String, u32>,
    /// Indexes of texts used lately, by [`recent_slot`].
    recent: [u32; RECENT],
    addresses: Vec<Vec<u8>>,
    address_indexes: FxHashMap<IpAddr, u32>,
    /// Of addresses, and of texts for each of their uses.
    bytes: usize,
    /// Of texts that were listed already, for each further use.
    shared_bytes: usize,
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            // Index 0 is the empty text by contract.
            strings: vec![String::new()],
            string_indexes: FxHashMap::default(),
            recent: [0; RECENT],
            addresses: Vec::new(),
            address_indexes: FxHashMap::default(),
            bytes: 0,
            shared_bytes: 0,
        }
    }
}

impl Pool {
    pub(super) fn text(&mut self, text: &str, bytes_max: usize, truncated: &mut u64) -> u32 {
        let cut = truncate(text, bytes_max);
        *truncated += u64::from(cut.len() < text.len());
        if cut.is_empty() {
            return 0;
        }
        let slot = recent_slot(cut);
        let recent = self.recent[slot];
        // Each row gets a text of its own in the store, so each use counts, and not only the first.
        self.bytes += cut.len();
        if self.strings.get(recent as usize).is_some_and(|known| known == cut) {
            self.shared_bytes += cut.len();
            return recent;
        }
        let index = self.listed(cut);
        self.recent[slot] = index;
        index
    }

    fn listed(&mut self, text: &str) -> u32 {
        if let Some(index) = self.string_indexes.get(text) {
            self.shared_bytes += text.len();
            return *index;
        }
        // Batches are cut long before 2^32 texts.
        let index = u32::try_from(self.strings.len()).unwrap_or(0);
        self.bytes += 4;
        self.strings.push(text.to_owned());
        self.string_indexes.insert(text.to_owned(), index);
        index
    }

    pub(super) fn address(&mut self, address: IpAddr) -> u32 {
        match self.address_indexes.entry(address.to_canonical()) {
            Entry::Occupied(entry) => *entry.get(),
            Entry::Vacant(entry) => {
                let octets = match *entry.key() {
                    IpAddr::V4(address) => address.octets().to_vec(),
                    IpAddr::V6(address) => address.octets().to_vec(),
                };
                self.bytes += octets.len() + 2;
                self.addresses.push(octets);
                *entry.insert(u32::try_from(self.addresses.len() - 1).unwrap_or(0))
            }
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn shared_bytes(&self) -> usize {
        self.shared_bytes
    }

    pub(super) fn into_tables(self) -> (Vec<String>, Vec<Vec<u8>>) {
        (self.strings, self.addresses)
    }
}

/// Tells most texts apart by their length and three of their bytes.
fn recent_slot(text: &str) -> usize {
    let byte = |at: usize| text.as_bytes().get(at).map_or(0, |byte| usize::from(*byte));
    let last = byte(text.len().saturating_sub(1));
    (text.len() ^ (byte(0) << 1) ^ (byte(text.len() / 2) << 2) ^ (last << 3)) % RECENT
}

/// Shares equal texts among the keys of intervals.
#[derive(Debug, Default)]
pub(super) struct Symbols {
    known: FxHashSet<Arc<str>>,
}

impl Symbols {
    /// The shared text, and whether it was cut.
    pub(super) fn intern(&mut self, text: &str) -> (Arc<str>, bool) {
        let cut = truncate(text, KEY_TEXT_MAX);
        let truncated = cut.len() < text.len();
        if let Some(symbol) = self.known.get(cut) {
            return (Arc::clone(symbol), truncated);
        }
        if self.known.len() >= SYMBOLS_MAX {
            self.known.clear();
        }
        let symbol: Arc<str> = cut.into();
        self.known.insert(Arc::clone(&symbol));
        (symbol, truncated)
    }
}
