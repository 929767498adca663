//! The door of the gossip port: looks at each datagram before the gossip library does.
//!
//! The library trusts its network: a few bytes of compressed zeros become gigabytes, a key that begins with a letter beyond ASCII or
//! versions out of order end its task, and invented members fill its memory until nothing fits a datagram. So a datagram is passed
//! on only when it is what the library itself would have sent, and within limits. This authenticates nobody: the port belongs on a
//! private network. Pure: bytes in, verdict out.

mod reader;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
};

use reader::{Malformed, Reader, unpack};

/// First bytes of a datagram of the library, and the version of its format that we speak.
const MAGIC: u16 = 45_139;
const FORMAT_VERSION: u8 = 1;

/// Members that are known at one time, with all their generations. Their digest fits one datagram even when it cannot be compressed.
pub(super) const MEMBERS_MAX: usize = 1024;
/// Longest id of a node in gossip.
const NODE_ID_BYTES_MAX: usize = 8;
/// Keys of one member; today it has 15.
pub(super) const KEYS_MAX: usize = 64;
const KEY_BYTES_MAX: usize = 64;
const VALUE_BYTES_MAX: usize = 1024;
/// Decompressed size of the two parts of a message.
const DIGEST_BYTES_MAX: usize = MEMBERS_MAX * 69;
const DELTA_BYTES_MAX: usize = 1 << 20;
/// Heartbeats and versions count events: no honest one comes near, and arithmetic on them cannot overflow.
const NUMBER_MAX: u64 = 1 << 62;

/// Why a datagram was not passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Not of the gossip protocol at all.
    Foreign,
    /// Of another version of its format.
    Version,
    /// Of another cluster.
    Cluster,
    /// Cut off, or not as the library writes it.
    Malformed,
    /// More members than are allowed.
    Members,
    /// Keys or values beyond their limits.
    Keys,
    /// Says what only this node may say.
    OwnState,
    /// Passed the screen, but not the library.
    Undecodable,
}

impl Refusal {
    pub(super) const ALL: [Self; 8] = [
        Self::Foreign,
        Self::Version,
        Self::Cluster,
        Self::Malformed,
        Self::Members,
        Self::Keys,
        Self::OwnState,
        Self::Undecodable,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Foreign => "foreign",
            Self::Version => "version",
            Self::Cluster => "cluster",
            Self::Malformed => "malformed",
            Self::Members => "members",
            Self::Keys => "keys",
            Self::OwnState => "own_state",
            Self::Undecodable => "undecodable",
        }
    }
}

impl From<Malformed> for Refusal {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

/// Who speaks: one start of the gossip of one node at one address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Identity {
    pub(super) node: Box<str>,
    pub(super) generation: u64,
    pub(super) address: SocketAddr,
}

/// The highest that others have heard in our name. More than we said means that somebody else said it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Claims {
    pub(super) heartbeat: u64,
    pub(super) version: u64,
    /// Of our node id, whatever the address.
    pub(super) generation: u64,
}

/// Limits, and what was let in so far.
#[derive(Debug)]
pub(super) struct Screen {
    cluster: String,
    own: Identity,
    claims: Claims,
    known: HashMap<Identity, HashSet<Box<str>>>,
}

impl Screen {
    pub(super) fn new(cluster: String, own: Identity) -> Self {
        let known = HashMap::from([(own.clone(), HashSet::new())]);
        Self { cluster, own, claims: Claims::default(), known }
    }

    pub(super) fn claims(&self) -> Claims {
        self.claims
    }

    /// Forgets who is no longer known to the library.
    pub(super) fn retain(&mut self, known: impl Fn(&Identity) -> bool) {
        self.known.retain(|identity, _| known(identity));
    }

    /// Whether the library may see the datagram.
    pub(super) fn look(&mut self, datagram: &[u8]) -> Result<(), Refusal> {
        let mut reader = Reader::new(datagram);
        if reader.u16() != Ok(MAGIC) {
            return Err(Refusal::Foreign);
        }
        if reader.u8()? != FORMAT_VERSION {
            return Err(Refusal::Version);
        }
        let (mut digest, mut delta) = (Vec::new(), Vec::new());
        match reader.u8()? {
            0 => {
                digest = unpack(&mut reader, DIGEST_BYTES_MAX)?;
                if reader.text()? != self.cluster {
                    return Err(Refusal::Cluster);
                }
            }
            1 => {
                digest = unpack(&mut reader, DIGEST_BYTES_MAX)?;
                delta = unpack(&mut reader, DELTA_BYTES_MAX)?;
            }
            2 => delta = unpack(&mut reader, DELTA_BYTES_MAX)?,
            // The other side says that we are not of its cluster.
            3 => return Err(Refusal::Cluster),
            _ => return Err(Refusal::Malformed),
        }
        if !reader.is_empty() {
            return Err(Refusal::Malformed);
        }
        let arrivals = self.digest(&digest)?;
        let keys = self.delta(&delta, &arrivals)?;
        for identity in arrivals {
            self.known.entry(identity).or_default();
        }
        for (identity, key) in keys {
            self.known.entry(identity).or_default().insert(key);
        }
        Ok(())
    }

    /// Gives the members that are new.
    fn digest(&mut self, bytes: &[u8]) -> Result<HashSet<Identity>, Refusal> {
        let mut reader = Reader::new(bytes);
        let mut arrivals = HashSet::new();
        let mut claims = self.claims;
        while !reader.is_empty() {
            let identity = identity(&mut reader)?;
            let heartbeat = reader.number(NUMBER_MAX)?;
            reader.number(NUMBER_MAX)?;
            let version = reader.number(NUMBER_MAX)?;
            if identity == self.own {
                claims.heartbeat = claims.heartbeat.max(heartbeat);
                claims.version = claims.version.max(version);
            }
            if identity.node == self.own.node {
                claims.generation = claims.generation.max(identity.generation);
            }
            if !self.known.contains_key(&identity) {
                arrivals.insert(identity);
            }
            if self.known.len() + arrivals.len() > MEMBERS_MAX {
                return Err(Refusal::Members);
            }
        }
        self.claims = claims;
        Ok(arrivals)
    }

    /// Gives the keys that are new to their members.
    fn delta(
        &self,
        bytes: &[u8],
        arrivals: &HashSet<Identity>,
    ) -> Result<HashSet<(Identity, Box<str>)>, Refusal> {
        let mut reader = Reader::new(bytes);
        let mut new_keys = HashSet::new();
        let mut members = HashSet::new();
        // Who is spoken of, its last version, and how many keys it would have.
        let mut current: Option<(Identity, u64, usize)> = None;
        while !reader.is_empty() {
            match reader.u8()? {
                0 => {
                    let identity = identity(&mut reader)?;
                    reader.number(NUMBER_MAX)?;
                    reader.number(NUMBER_MAX)?;
                    if identity == self.own {
                        return Err(Refusal::OwnState);
                    }
                    if !members.insert(identity.clone()) {
                        return Err(Refusal::Malformed);
                    }
                    let keys = self.known.get(&identity).map_or(0, HashSet::len);
                    current = Some((identity, 0, keys));
                }
                1 => {
                    let (identity, last, keys) = current.as_mut().ok_or(Malformed)?;
                    let key = key_value(&mut reader, last)?;
                    let is_known = self.known.get(identity).is_some_and(|keys| keys.contains(key));
                    if is_known {
                        continue;
                    }
                    *keys += 1;
                    if *keys > KEYS_MAX {
                        return Err(Refusal::Keys);
                    }
                    // What is said of a member that is in no digest, the library ignores.
                    if self.known.contains_key(identity) || arrivals.contains(identity) {
                        new_keys.insert((identity.clone(), key.into()));
                    }
                }
                // The library writes a bare version only for a member without keys; beside keys it could go backwards.
                2 => match current.as_mut() {
                    Some((_, last @ 0, _)) => *last = reader.number(NUMBER_MAX)?.max(1),
                    _ => return Err(Refusal::Malformed),
                },
                _ => return Err(Refusal::Malformed),
            }
        }
        Ok(new_keys)
    }
}

fn identity(reader: &mut Reader<'_>) -> Result<Identity, Refusal> {
    let node = reader.text()?;
    if node.is_empty() || node.len() > NODE_ID_BYTES_MAX || !node.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Refusal::Malformed);
    }
    Ok(Identity { node: node.into(), generation: reader.u64()?, address: reader.address()? })
}

/// Reads a key and its value; `last` is the version before it, and becomes its own.
fn key_value<'a>(reader: &mut Reader<'a>, last: &mut u64) -> Result<&'a str, Refusal> {
    let (key, value) = (reader.text()?, reader.text()?);
    let version = reader.number(NUMBER_MAX)?;
    if version <= *last || reader.u8()? > 2 {
        return Err(Refusal::Malformed);
    }
    *last = version;
    let is_key = !key.is_empty() && key.len() <= KEY_BYTES_MAX && key.bytes().all(|b| b.is_ascii_graphic());
    if !is_key || value.len() > VALUE_BYTES_MAX {
        return Err(Refusal::Keys);
    }
    Ok(key)
}
