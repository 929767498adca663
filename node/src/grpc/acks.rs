//! From what became of single batches to one message: equal neighbours become ranges.

use metaflow_actors::ingester::Ack;
use metaflow_wire::{IngestAck, Rejection, SeqRange};

/// One message that says all of it, with the credit of now.
pub(super) fn gather(acks: impl IntoIterator<Item = Ack>, credit_bytes: u64) -> IngestAck {
    let (mut received, mut committed, mut rejected) = (Vec::new(), Vec::new(), Vec::new());
    for ack in acks {
        match ack {
            Ack::Received(seq) => received.push(seq),
            Ack::Committed(seq) => committed.push(seq),
            Ack::Rejected { seq, reason } => rejected.push(Rejection { seq, reason }),
        }
    }
    IngestAck { received: ranges(received), committed: ranges(committed), rejected, credit_bytes }
}

fn ranges(mut seqs: Vec<u64>) -> Vec<SeqRange> {
    seqs.sort_unstable();
    seqs.dedup();
    seqs.chunk_by(|one, next| one.checked_add(1) == Some(*next))
        .map(|run| SeqRange { first: run[0], last: run[run.len() - 1] })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_become_ranges_in_any_order_of_arrival() {
        let acks = [
            Ack::Received(7),
            Ack::Committed(u64::MAX),
            Ack::Received(5),
            Ack::Rejected { seq: 9, reason: "checksum".into() },
            Ack::Received(6),
            Ack::Received(6),
            Ack::Committed(0),
            Ack::Received(10),
        ];
        let ack = gather(acks, 42);
        let pairs = |ranges: &[SeqRange]| ranges.iter().map(|r| (r.first, r.last)).collect::<Vec<_>>();
        assert_eq!(pairs(&ack.received), [(5, 7), (10, 10)]);
        assert_eq!(pairs(&ack.committed), [(0, 0), (u64::MAX, u64::MAX)]);
        assert_eq!(ack.rejected[0].seq, 9);
        assert_eq!(ack.credit_bytes, 42);
    }
}
