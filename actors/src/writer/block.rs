//! A block of one partition and the batches that its rows came with. Pure.

use std::{collections::HashSet, ops::Range};

use crate::rows::{BatchId, Rows};

/// The rows of one batch in a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) id: BatchId,
    pub(super) rows: Range<u32>,
    /// It may be stored already.
    pub(super) uncertain: bool,
}

/// Rows that are inserted together.
#[derive(Debug, Clone)]
pub struct Block {
    pub(super) partition: u32,
    pub(super) rows: Rows,
    pub(super) pieces: Vec<Piece>,
}

impl Block {
    pub fn rows(&self) -> &Rows {
        &self.rows
    }

    pub(super) fn new(partition: u32, id: BatchId, uncertain: bool, rows: Rows) -> Self {
        let pieces = vec![Piece { id, rows: 0..count(&rows), uncertain }];
        Self { partition, rows, pieces }
    }

    /// Puts another block of the same table and partition behind this one.
    pub(super) fn append(&mut self, other: Self) -> Result<(), crate::rows::OtherTable> {
        let shift = count(&self.rows);
        self.rows.append(other.rows)?;
        self.pieces.extend(
            other
                .pieces
                .into_iter()
                .map(|piece| Piece { rows: piece.rows.start + shift..piece.rows.end + shift, ..piece }),
        );
        Ok(())
    }

    pub(super) fn uncertain(&self) -> Vec<BatchId> {
        self.pieces.iter().filter(|piece| piece.uncertain).map(|piece| piece.id).collect()
    }

    /// The certain batches together, if there are any, and each uncertain one alone.
    pub(super) fn apart(self) -> (Option<Self>, Vec<Self>) {
        if self.pieces.iter().all(|piece| !piece.uncertain) {
            return (Some(self), vec![]);
        }
        let certain: Vec<_> = self.pieces.iter().filter(|piece| !piece.uncertain).collect();
        let alone = self.pieces.iter().filter(|piece| piece.uncertain);
        (self.pick(&certain), alone.filter_map(|piece| self.pick(&[piece])).collect())
    }

    /// These batches may be stored by somebody else.
    pub(super) fn doubt(&mut self, ids: &HashSet<BatchId>) {
        for piece in self.pieces.iter_mut().filter(|piece| ids.contains(&piece.id)) {
            piece.uncertain = true;
        }
    }

    /// Takes the batches out that are stored; none when nothing is left. The rest is certain now.
    pub(super) fn without(self, stored: &HashSet<BatchId>) -> Option<Self> {
        let mut left = if stored.is_empty() {
            self
        } else {
            let kept: Vec<_> = self.pieces.iter().filter(|piece| !stored.contains(&piece.id)).collect();
            self.pick(&kept)?
        };
        for piece in &mut left.pieces {
            piece.uncertain = false;
        }
        Some(left)
    }

    /// Two blocks of about half of the batches each; none when there is one batch only.
    pub(super) fn halves(&self) -> Option<(Self, Self)> {
        let (first, second) = self.pieces.split_at(self.pieces.len() / 2);
        Some((self.pick(&first.iter().collect::<Vec<_>>())?, self.pick(&second.iter().collect::<Vec<_>>())?))
    }

    fn pick(&self, pieces: &[&Piece]) -> Option<Self> {
        if pieces.is_empty() {
            return None;
        }
        let mut rows = Vec::new();
        let mut picked = Vec::with_capacity(pieces.len());
        for piece in pieces {
            let start = u32::try_from(rows.len()).unwrap_or(u32::MAX);
            rows.extend(piece.rows.clone());
            let end = u32::try_from(rows.len()).unwrap_or(u32::MAX);
            picked.push(Piece { rows: start..end, ..(*piece).clone() });
        }
        Some(Self { partition: self.partition, rows: self.rows.select(&rows), pieces: picked })
    }
}

/// Splits a batch by partition. The columns must be even.
pub(super) fn split(id: BatchId, uncertain: bool, rows: Rows) -> Vec<Block> {
    let length = rows.len();
    let Some(first) = (length > 0).then(|| rows.partition(0)) else { return Vec::new() };
    if (1..length).all(|row| rows.partition(row) == first) {
        return vec![Block::new(first, id, uncertain, rows)];
    }
    let mut partitions: Vec<(u32, Vec<u32>)> = Vec::new();
    for row in 0..count(&rows) {
        let partition = rows.partition(row as usize);
        match partitions.iter_mut().find(|(known, _)| *known == partition) {
            Some((_, rows)) => rows.push(row),
            None => partitions.push((partition, vec![row])),
        }
    }
    partitions
        .into_iter()
        .map(|(partition, chosen)| Block::new(partition, id, uncertain, rows.select(&chosen)))
        .collect()
}

fn count(rows: &Rows) -> u32 {
    // A batch has at most 100,000 rows and a block is cut at 65,536 more.
    u32::try_from(rows.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use metaflow_schema::{
        block::Group,
        tables::{NETWORK_1S, Network, NetworkRow},
    };

    use super::*;

    const HOUR: u32 = 3_600;

    fn batch(seq: u64, seconds: &[u32]) -> (BatchId, Rows) {
        let mut block = Network::default();
        for &second in seconds {
            let mut row = NetworkRow::default();
            row.interval.time = second;
            row.interval.batch_seq = seq;
            block.push(&row);
        }
        (BatchId { agent_id: 1, seq }, Rows::Network(&NETWORK_1S, Box::new(block)))
    }

    fn seqs(block: &Block) -> Vec<u64> {
        let Rows::Network(_, network) = &block.rows else { panic!("another table") };
        network.interval.batch_seq.clone()
    }

    #[test]
    fn uncertain_batches_stand_alone_with_their_own_rows() {
        let mut block = None::<Block>;
        for (seq, uncertain) in [(1, false), (2, true), (3, false), (4, true)] {
            let (id, rows) = batch(seq, &[0, 1]);
            let next = Block::new(0, id, uncertain, rows);
            match &mut block {
                None => block = Some(next),
                Some(block) => block.append(next).unwrap(),
            }
        }
        let (certain, alone) = block.unwrap().apart();
        assert_eq!(seqs(&certain.unwrap()), [1, 1, 3, 3]);
        assert_eq!(alone.iter().map(seqs).collect::<Vec<_>>(), [[2, 2], [4, 4]]);
    }

    #[test]
    fn a_batch_across_an_hour_becomes_two_blocks() {
        let (id, rows) = batch(1, &[HOUR - 1, HOUR, HOUR - 2]);
        let blocks = split(id, true, rows);
        let summary: Vec<_> =
            blocks.iter().map(|block| (block.partition, block.rows.len(), block.uncertain())).collect();
        assert_eq!(summary, [(0, 2, vec![id]), (1, 1, vec![id])]);
    }

    #[test]
    fn stored_batches_are_left_out_and_the_rest_keeps_its_rows() {
        let mut block: Option<Block> = None;
        for seq in 1..=3 {
            let (id, rows) = batch(seq, &[1, 2]);
            for part in split(id, seq == 2, rows) {
                match &mut block {
                    Some(block) => block.append(part).unwrap(),
                    None => block = Some(part),
                }
            }
        }
        let block = block.unwrap();
        assert_eq!(block.uncertain(), [BatchId { agent_id: 1, seq: 2 }]);
        let (first, second) = block.halves().unwrap();
        assert_eq!((seqs(&first), seqs(&second)), (vec![1, 1], vec![2, 2, 3, 3]));
        assert!(first.halves().is_none());

        let left = block.without(&HashSet::from([BatchId { agent_id: 1, seq: 2 }])).unwrap();
        assert_eq!(seqs(&left), [1, 1, 3, 3]);
        assert_eq!(left.pieces[1].rows, 2..4);
        let all = left.pieces.iter().map(|piece| piece.id).collect();
        assert!(left.without(&all).is_none());
    }
}
