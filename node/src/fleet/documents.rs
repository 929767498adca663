//! How nodes come to keep the same documents: told at once, compared round by round.

use std::{net::SocketAddr, time::Duration};

use metaflow_actors::documents::{BUCKETS, Document, Stamp};
use metaflow_wire::{self as wire, CompareDocumentsRequest, CompareDocumentsResponse, TellDocumentsRequest};
use tonic::Status;

use super::{Fleet, Missing};

/// Between two rounds of comparing.
const ROUND: Duration = Duration::from_secs(1);
/// Time for a node to hear of a change; whoever changed something waits for it.
const TELL_WITHIN: Duration = Duration::from_secs(2);
const COMPARE_WITHIN: Duration = Duration::from_secs(10);
/// Documents of one message.
const BYTES_MAX: usize = 2 << 20;

impl Fleet {
    /// Compares with the others, one a round, until it is aborted.
    pub(crate) async fn keep_alike(self) {
        let mut rounds = tokio::time::interval(ROUND);
        rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        for round in 0_usize.. {
            rounds.tick().await;
            let others = self.peers.others();
            let Some((_, address)) = others.get(round % others.len().max(1)) else { continue };
            let compared = tokio::time::timeout(COMPARE_WITHIN, self.compare(*address)).await;
            if let Ok(Err(status)) = compared {
                tracing::debug!(%address, %status, "what operators set could not be compared");
            }
        }
    }

    /// Makes both nodes know what either knew. Ends when they are alike.
    async fn compare(&self, address: SocketAddr) -> Result<(), Status> {
        let mut client = self.peers.fleet(address)?;
        // Each turn settles one bucket at least.
        for _ in 0..BUCKETS {
            let request = CompareDocumentsRequest { digests: self.registry.documents().digests() };
            let CompareDocumentsResponse { buckets, documents } =
                client.compare_documents(request).await?.into_inner();
            let buckets: Vec<usize> = buckets.into_iter().map(|bucket| bucket as usize).collect();
            if buckets.is_empty() || buckets.iter().any(|bucket| *bucket >= BUCKETS) {
                return Ok(());
            }
            let theirs: Vec<Document> = documents.into_iter().filter_map(from_wire).collect();
            let known = theirs.clone();
            self.learn(theirs).await?;
            let ours = self.registry.documents().of_buckets(&buckets, usize::MAX).1;
            let lacking = ours.into_iter().filter(|document| !known.contains(document)).collect();
            for documents in parts(lacking) {
                client.tell_documents(TellDocumentsRequest { documents }).await?;
            }
        }
        Ok(())
    }

    /// Answers another node's digests.
    pub(crate) fn compared(&self, theirs: &[u64]) -> CompareDocumentsResponse {
        let own = self.registry.documents().digests();
        // Another number of buckets is that of another release: all differ for it.
        let differing: Vec<usize> =
            (0..BUCKETS).filter(|bucket| theirs.get(*bucket) != own.get(*bucket)).collect();
        if differing.is_empty() {
            return CompareDocumentsResponse::default();
        }
        let (buckets, documents) = self.registry.documents().of_buckets(&differing, BYTES_MAX);
        CompareDocumentsResponse {
            buckets: buckets.into_iter().filter_map(|bucket| u32::try_from(bucket).ok()).collect(),
            documents: documents.into_iter().map(to_wire).collect(),
        }
    }

    /// Takes what another node tells.
    pub(crate) async fn told(&self, documents: Vec<wire::Document>) -> Result<(), Status> {
        self.learn(documents.into_iter().filter_map(from_wire).collect()).await
    }

    async fn learn(&self, documents: Vec<Document>) -> Result<(), Status> {
        let registry = self.registry.clone();
        tokio::task::spawn_blocking(move || registry.learn(documents))
            .await
            .map_err(|error| Status::internal(error.to_string()))?
            .map(drop)
            .map_err(|error| Status::unavailable(error.to_string()))
    }

    /// Tells all others at once; answers who did not hear.
    pub(super) async fn tell(&self, documents: Vec<Document>) -> Vec<Missing> {
        let messages = parts(documents);
        let telling = self.peers.others().into_iter().map(async |(node, address)| {
            let tell = async {
                let mut client = self.peers.fleet(address)?;
                for documents in messages.clone() {
                    client.tell_documents(TellDocumentsRequest { documents }).await?;
                }
                Ok::<_, Status>(())
            };
            let told = tokio::time::timeout(TELL_WITHIN, tell).await;
            let told = told.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer came in time")));
            told.err().map(|status| Missing {
                node_id: node.get(),
                address,
                reason: status.message().to_owned(),
            })
        });
        futures::future::join_all(telling).await.into_iter().flatten().collect()
    }
}

/// Messages that are not too large.
fn parts(documents: Vec<Document>) -> Vec<Vec<wire::Document>> {
    let mut parts: Vec<Vec<wire::Document>> = Vec::new();
    let mut bytes = usize::MAX;
    for document in documents {
        let own = document.key.len() + document.body.as_ref().map_or(0, String::len) + 64;
        if bytes.saturating_add(own) > BYTES_MAX {
            parts.push(vec![]);
            bytes = 0;
        }
        bytes += own;
        if let Some(part) = parts.last_mut() {
            part.push(to_wire(document));
        }
    }
    parts
}

fn to_wire(document: Document) -> wire::Document {
    let Document { key, stamp: Stamp { counter, node }, body } = document;
    wire::Document { key, counter, node: node.into(), body }
}

fn from_wire(document: wire::Document) -> Option<Document> {
    let wire::Document { key, counter, node, body } = document;
    Some(Document { key, stamp: Stamp { counter, node: u16::try_from(node).ok()? }, body })
}
