//! Bodies cut anyhow, full budgets, slow and broken senders.

use std::convert::Infallible;

use futures::{FutureExt as _, StreamExt as _, stream};

use super::*;

const MIB: usize = 1 << 20;

/// A message as it comes over the wire.
fn message(length: usize) -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.extend(u32::try_from(length).unwrap().to_be_bytes());
    bytes.extend((0..length).map(|at| at as u8));
    bytes
}

fn terms(budget: usize) -> Terms {
    Terms { budget: Budget::new(budget), cost: ingester::intake, patience: Duration::from_millis(50) }
}

/// A body of these frames, which goes on for ever where it is not `whole`.
fn gate(frames: Vec<Vec<u8>>, whole: bool, terms: &Terms) -> (Gate, Admitted) {
    let frames = stream::iter(frames.into_iter().map(Ok::<_, Infallible>));
    let frames = if whole { frames.boxed() } else { frames.chain(stream::pending()).boxed() };
    let admitted = Admitted::default();
    let body = Body::new(axum::body::Body::from_stream(frames));
    (Gate::new(body, terms.clone(), admitted.clone()), admitted)
}

async fn next(gate: &mut Gate) -> Option<Result<Vec<u8>, Status>> {
    let frame = std::future::poll_fn(|ctx| Pin::new(&mut *gate).poll_frame(ctx)).await?;
    Some(frame.map(|frame| frame.into_data().unwrap().to_vec()))
}

#[tokio::test]
async fn what_is_cut_anyhow_arrives_whole_each_message_with_its_permit() {
    let lengths = [0, 1, 3_000, 7, 70_000];
    let bytes: Vec<u8> = lengths.iter().flat_map(|length| message(*length)).collect();
    for size in [1, 2, 5, 6, 1_000, bytes.len()] {
        let terms = terms(16 * MIB);
        let frames = bytes.chunks(size).map(<[u8]>::to_vec).collect();
        let (mut gate, admitted) = gate(frames, true, &terms);
        let (mut passed, mut permits) = (Vec::new(), Vec::new());
        while let Some(piece) = next(&mut gate).await {
            passed.extend(piece.unwrap());
            let permit = admitted.take();
            if permit.bytes() > 0 {
                permits.push(permit.bytes());
            }
        }
        assert_eq!(passed, bytes, "in frames of {size}");
        let expected: Vec<_> =
            lengths.iter().map(|length| ingester::intake(*length).next_multiple_of(64)).collect();
        assert_eq!(permits, expected);
        drop(gate);
        assert_eq!(terms.budget.available(), 16 * MIB);
    }
}

#[tokio::test]
async fn nothing_of_a_message_passes_before_there_is_room_for_it() {
    let terms = terms(16 * MIB);
    let held = terms.budget.acquire(16 * MIB - 4_096).await;
    let (mut gate, admitted) = gate(vec![[message(10), message(MIB), message(10)].concat()], true, &terms);
    // The first is small enough; the second waits, although all of it is there.
    assert_eq!(next(&mut gate).await.unwrap().unwrap().len(), HEAD_BYTES);
    assert_eq!(next(&mut gate).await.unwrap().unwrap().len(), 10);
    assert!(next(&mut gate).now_or_never().is_none());
    drop(held);
    assert!(next(&mut gate).await.unwrap().is_ok());
    assert!(admitted.take().bytes() > 0);
    assert_eq!(next(&mut gate).await.unwrap().unwrap().len(), MIB);
    let second = admitted.take();
    assert!(second.bytes() >= 3 * MIB);
    assert_eq!(terms.budget.available() + second.bytes(), 16 * MIB);
}

#[tokio::test]
async fn who_is_slow_gives_its_room_to_others_when_there_is_no_more() {
    let terms = terms(16 * MIB);
    let (mut slow, _admitted) = gate(vec![message(10)[..9].to_vec()], false, &terms);
    let pass = async {
        loop {
            match next(&mut slow).await {
                Some(Ok(_)) => {}
                Some(Err(status)) => break status,
                None => panic!("it does not end"),
            }
        }
    };
    tokio::pin!(pass);
    // Nobody waits: it has all the time it wants.
    let waited = tokio::time::timeout(terms.patience * 4, &mut pass).await;
    assert!(waited.is_err());
    let _others = terms.budget.acquire(15 * MIB).await;
    let status = tokio::time::timeout(Duration::from_secs(30), &mut pass).await.expect("it ends");
    assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
}

#[tokio::test]
async fn what_is_too_long_or_cut_off_is_left_to_fail() {
    let terms = terms(MIB);
    let mut head = message(0);
    head[1] = 0xff;
    let (mut endless, admitted) = gate(vec![head], false, &terms);
    assert_eq!(next(&mut endless).await.unwrap().unwrap().len(), HEAD_BYTES);
    assert_eq!((admitted.take().bytes(), terms.budget.available()), (0, MIB));

    let (mut cut, _) = gate(vec![message(10)[..3].to_vec()], true, &terms);
    assert_eq!(next(&mut cut).await.unwrap().unwrap_err().code(), tonic::Code::Internal);
    let (mut empty, _) = gate(vec![], true, &terms);
    assert!(next(&mut empty).await.is_none());
}

#[test]
fn a_greeting_is_free_and_a_bomb_of_facts_takes_the_whole_budget() {
    assert_eq!(control_cost(CONTROL_BYTES_FREE), 0);
    assert!(control_cost(MESSAGE_BYTES_MAX) >= CONTROL_BUDGET);
    // Two bytes make an empty process, and a list that has just grown has room for as many again.
    let process = size_of::<metaflow_wire::Process>();
    assert!(process <= MEMORY_OF_CONTROL_BYTE, "{process}");
}
