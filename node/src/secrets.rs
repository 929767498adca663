//! Random secrets and their digests: what tokens and the cluster's secret have in common.
//!
//! Secrets here are long and random, so one round of SHA-256 keeps them: there is nothing to guess.

use std::fmt;

use ring::{
    digest::{SHA256, SHA256_OUTPUT_LEN},
    rand::{SecureRandom as _, SystemRandom},
};
use subtle::ConstantTimeEq as _;

/// Bytes of a new secret.
const SECRET_BYTES: usize = 32;

/// SHA-256 of a secret. Comparing takes the same time wherever two differ.
#[derive(Clone, Copy)]
pub(crate) struct Digest([u8; SHA256_OUTPUT_LEN]);

impl Digest {
    pub(crate) fn of(secret: &[u8]) -> Self {
        let mut bytes = [0; SHA256_OUTPUT_LEN];
        bytes.copy_from_slice(ring::digest::digest(&SHA256, secret).as_ref());
        Self(bytes)
    }

    pub(crate) fn equals(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }

    pub(crate) fn to_hex(self) -> String {
        hex(&self.0)
    }

    pub(crate) fn from_hex(text: &str) -> Option<Self> {
        let mut bytes = [0; SHA256_OUTPUT_LEN];
        if text.len() != 2 * bytes.len() || !text.is_ascii() {
            return None;
        }
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("(hidden)")
    }
}

/// A new secret of 256 random bits, as text; none when the system has no randomness.
pub(crate) fn generate() -> Option<String> {
    let mut bytes = [0; SECRET_BYTES];
    SystemRandom::new().fill(&mut bytes).ok()?;
    Some(hex(&bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_sha_256_and_survive_their_text() {
        let digest = Digest::of(b"abc");
        let text = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest.to_hex(), text);
        assert!(Digest::from_hex(text).unwrap().equals(&digest));
        assert!(!Digest::of(b"abc ").equals(&digest));
        for wrong in ["", &text[1..], &text.replace('b', "g"), &"é".repeat(32), &"+1".repeat(32)] {
            assert!(Digest::from_hex(wrong).is_none_or(|other| !other.equals(&digest)), "{wrong}");
        }
        assert!(!format!("{digest:?}").contains(&text[..8]));
    }

    #[test]
    fn secrets_differ() {
        let (one, other) = (generate().unwrap(), generate().unwrap());
        assert_eq!(one.len(), 64);
        assert_ne!(one, other);
    }
}
