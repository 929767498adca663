//! What shows that a node of this cluster gave an agent its id.
//!
//! An agent comes to nodes that have not heard of it yet, and its batches are known by its id, so it must keep it. But an id names one
//! machine for ever, and the node that hears of it first writes that down. So nobody believes an agent's word: the node that gave the id
//! signed it with the cluster's secret, together with the machine's identity. Nobody needs to be asked, not even the node that gave it.
//!
//! A node that is alone believes nobody: no other gave anything. Nodes that share no secret, because the operator wrote `insecure = true`,
//! sign with an empty one: that finds mistakes, no more. Whoever reaches them can name things anyway.

use metaflow_actors::controller::Introduction;
use metaflow_wire::{Hello, Welcome};
use ring::hmac;

use super::Trust;

#[derive(Clone, Debug)]
pub(crate) struct Proofs(Trust);

impl Proofs {
    pub(crate) fn new(trust: Trust) -> Self {
        Self(trust)
    }

    /// Looks whether the id that an agent says it has was given to it.
    pub(super) fn check(&self, mut hello: Hello) -> Introduction {
        let proof = std::mem::take(&mut hello.agent_id_proof);
        let signed = signed(hello.agent_id, &hello.machine_id);
        let fits = |key: &hmac::Key| hmac::verify(key, &signed, &proof).is_ok();
        let is_proven = match &self.0 {
            Trust::Nobody => false,
            Trust::Shared(secret) => secret.keys(|keys| keys.iter().any(fits)),
            Trust::Everybody => fits(&key(b"")),
        };
        Introduction { hello, is_proven }
    }

    /// Adds the proof of the id that an agent is given.
    pub(super) fn sign(&self, welcome: &mut Welcome, machine_id: &str) {
        let signed = signed(welcome.agent_id, machine_id);
        let sign = |key: &hmac::Key| hmac::sign(key, &signed).as_ref().to_vec();
        welcome.agent_id_proof = match &self.0 {
            Trust::Nobody => Vec::new(),
            Trust::Shared(secret) => secret.keys(|keys| keys.first().map(sign)).unwrap_or_default(),
            Trust::Everybody => sign(&key(b"")),
        };
    }
}

/// The key of a secret.
pub(super) fn key(secret: &[u8]) -> hmac::Key {
    // The secret itself is for calls between nodes: what agents can see must say nothing of it, nor stand for it.
    let purpose = hmac::Key::new(hmac::HMAC_SHA256, b"metaflow agent id");
    hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&purpose, secret).as_ref())
}

fn signed(agent_id: u32, machine_id: &str) -> Vec<u8> {
    [&agent_id.to_be_bytes(), machine_id.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::Secret;

    const ONE: &str = "11111111111111111111111111111111";
    const TWO: &str = "22222222222222222222222222222222";

    /// With secrets from a file in `folder`.
    fn proofs(folder: &tempfile::TempDir, lines: &[&str]) -> Proofs {
        let file = folder.path().join(lines.join("-"));
        std::fs::write(&file, lines.join("\n")).unwrap();
        Proofs::new(Trust::Shared(Secret::load(file).unwrap()))
    }

    fn is_believed(by: &Proofs, giver: &Proofs, change: impl Fn(&mut Hello)) -> bool {
        let mut welcome = Welcome { agent_id: 7 << 22 | 5, ..Welcome::default() };
        giver.sign(&mut welcome, "machine");
        let mut hello = Hello {
            agent_id: welcome.agent_id,
            machine_id: "machine".to_owned(),
            agent_id_proof: welcome.agent_id_proof,
            ..Hello::default()
        };
        change(&mut hello);
        let Introduction { hello, is_proven } = by.check(hello);
        assert!(hello.agent_id_proof.is_empty(), "it is not kept");
        is_proven
    }

    #[test]
    fn what_another_node_gave_is_believed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let [node, other] = [(); 2].map(|()| proofs(&folder, &[ONE]));
        let stranger = proofs(&folder, &[TWO]);
        let (insecure, open) = (Proofs::new(Trust::Everybody), Proofs::new(Trust::Everybody));
        let alone = Proofs::new(Trust::Nobody);
        assert!(is_believed(&other, &node, |_| {}));
        assert!(is_believed(&open, &insecure, |_| {}));
        let strangers = [
            (&stranger, &node),
            (&insecure, &node),
            (&node, &insecure),
            (&alone, &alone),
            (&alone, &insecure),
            (&alone, &node),
        ];
        for (by, giver) in strangers {
            assert!(!is_believed(by, giver, |_| {}));
        }
        for by in [&other, &open] {
            assert!(!is_believed(by, by, |hello| hello.agent_id += 1));
            assert!(!is_believed(by, by, |hello| hello.machine_id.push('x')));
            assert!(!is_believed(by, by, |hello| hello.agent_id_proof.clear()));
            assert!(!is_believed(by, by, |hello| hello.agent_id_proof[3] ^= 1));
        }
    }

    #[test]
    fn a_proof_outlives_a_change_of_the_secret() {
        let folder = tempfile::tempdir().unwrap();
        let [old, both, new] = [&[ONE][..], &[TWO, ONE], &[TWO]].map(|lines| proofs(&folder, lines));
        assert!(is_believed(&both, &old, |_| {}) && is_believed(&new, &both, |_| {}));
        assert!(!is_believed(&new, &old, |_| {}));
    }
}
