//! Agents over gRPC: rows come in, acknowledgements go out, names come out of SQL; what is wrong is refused with its reason.

use metaflow_wire::{
    BATCH_BYTES_MAX, Batch, Heartbeat, Hello, PROTOCOL_VERSION, PROTOCOL_VERSION_OLDEST, SyncRequest,
    UNKNOWN_AGENT, Welcome, seq, sync_request, sync_response,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::kit::{Node, PATIENCE, acks_until, covers, requests};

/// A second of today, since tables forget old rows.
#[allow(clippy::disallowed_methods, reason = "a test has no clock of the process")]
pub(crate) fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

#[tokio::test]
async fn rows_become_named_answers_and_survive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path()).await;
    let agent_id = node.agent_id("machine-1").await;
    assert_ne!(agent_id, 0);
    let (sender, mut acks) = node.ingest().await;
    let batch = seq(1, 1);
    sender.send(requests(agent_id, batch, 7, now())).await.unwrap();
    acks_until(&mut acks, |ack| covers(&ack.received, batch)).await;
    let ack = acks_until(&mut acks, |ack| covers(&ack.committed, batch)).await;
    assert!(ack.credit_bytes > 0);

    let sql = "SELECT request_domain, endpoint, request_type, Enum(l7_protocol), Sum(request) AS requests, Avg(rrt) \
               FROM l7_flow_log WHERE time > now() - 600 GROUP BY request_domain, endpoint, request_type, Enum(l7_protocol)";
    let rows = node.sql("flow_log", sql).await.rows();
    let names: Vec<_> = rows[0][..4].iter().map(|cell| cell.as_str().unwrap()).collect();
    assert_eq!(names, ["shop.example", "/cart", "GET", "HTTP"]);
    assert_eq!((rows.len(), rows[0][4].as_f64(), rows[0][5].as_f64()), (1, Some(7.0), Some(500.0)));
    assert_eq!(node.metric("metaflow_ingest_rows_total").await, 7.0);
    assert_eq!(node.metric("metaflow_wal_batches").await, 0.0);

    // The same batch again is known, and stored once.
    let mut again = requests(agent_id, batch, 7, now());
    again.resent = true;
    sender.send(again).await.unwrap();
    acks_until(&mut acks, |ack| covers(&ack.committed, batch)).await;
    drop((sender, acks));
    assert_eq!(node.terminate().await, Some(0));

    let node = Node::start(folder.path()).await;
    let count = "SELECT Count(row) FROM l7_flow_log WHERE time > now() - 600";
    assert_eq!(node.sql("flow_log", count).await.rows()[0][0], 7);
    assert_eq!(node.agent_id("machine-1").await, agent_id, "an agent keeps its id");
    assert_eq!(node.terminate().await, Some(0));
}

#[tokio::test]
async fn an_agent_keeps_the_id_that_another_node_gave_it_if_it_can_show_so() {
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let secret = folders[0].path().join("secret");
    std::fs::write(&secret, "what the nodes of one cluster share, and nobody else\n").unwrap();
    let cluster = format!("[cluster]\nsecret_file = {secret:?}\n");
    let giver = Node::start_with(folders[0].path(), "", &cluster).await;
    // It has never heard of the other one.
    let node = Node::start_with(folders[1].path(), "node_id = 2\n", &cluster).await;
    let given = giver.welcome("machine-1", &Welcome::default()).await;
    assert_eq!((given.agent_id >> 22, given.agent_id_unknown), (1, false));
    assert_eq!(node.welcome("machine-1", &given).await.agent_id, given.agent_id);

    let borrowed = node.welcome("machine-2", &given).await;
    assert_eq!((borrowed.agent_id >> 22, borrowed.agent_id_unknown), (2, false), "it is another's");
    let made_up = Welcome { agent_id: given.agent_id + 1, ..given.clone() };
    let refused = node.welcome("machine-3", &made_up).await;
    assert_eq!((refused.agent_id >> 22, refused.agent_id_unknown), (2, true), "nobody gave it");

    // Batches under two ids of one machine come on one stream; one under an id of nobody ends it, so that it is sent again.
    let (sender, mut acks) = node.ingest().await;
    for (number, agent_id) in [(1, given.agent_id), (2, borrowed.agent_id)] {
        sender.send(requests(agent_id, seq(1, number), 1, now())).await.unwrap();
        acks_until(&mut acks, |ack| covers(&ack.committed, seq(1, number))).await;
    }
    sender.send(requests(made_up.agent_id, seq(1, 3), 1, now())).await.unwrap();
    let status = loop {
        match tokio::time::timeout(PATIENCE, acks.message()).await.unwrap() {
            Ok(ack) => assert!(ack.is_some_and(|ack| ack.rejected.is_empty()), "the stream goes on"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), tonic::Code::FailedPrecondition, "{status}");
    assert_eq!((giver.terminate().await, node.terminate().await), (Some(0), Some(0)));
}

/// Neighbouring releases work together: nodes are updated first, so agents of the release before come to them.
const PREVIOUS: u32 = PROTOCOL_VERSION - 1;

#[tokio::test]
async fn an_agent_of_the_previous_release_is_served_in_its_own_version() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path()).await;
    let hello = |protocol_version| {
        let hello = Hello {
            protocol_version,
            machine_id: "old-machine".to_owned(),
            hostname: "old".to_owned(),
            agent_version: "0.0.9".to_owned(),
            ..Default::default()
        };
        SyncRequest { body: Some(sync_request::Body::Hello(hello)) }
    };
    let (sender, requests_of_agent) = mpsc::channel(4);
    sender.send(hello(PREVIOUS)).await.unwrap();
    let mut answers =
        node.agent().await.sync(ReceiverStream::new(requests_of_agent)).await.unwrap().into_inner();
    let Some(sync_response::Body::Welcome(welcome)) = answers.message().await.unwrap().unwrap().body else {
        panic!("no Welcome")
    };
    assert_eq!(welcome.protocol_version, PREVIOUS);
    let beat = SyncRequest { body: Some(sync_request::Body::Heartbeat(Heartbeat::default())) };
    sender.send(beat).await.unwrap();
    loop {
        match answers.message().await.unwrap().unwrap().body {
            Some(sync_response::Body::Heartbeat(_)) => break,
            // What such an agent knows as well.
            Some(sync_response::Body::Config(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    let (batches, mut acks) = node.ingest().await;
    let mut batch = requests(welcome.agent_id, seq(1, 1), 3, now());
    batch.protocol_version = PREVIOUS;
    batches.send(batch).await.unwrap();
    acks_until(&mut acks, |ack| covers(&ack.committed, seq(1, 1))).await;

    for version in [PROTOCOL_VERSION_OLDEST - 1, PROTOCOL_VERSION + 1] {
        let mut answers =
            node.agent().await.sync(tokio_stream::once(hello(version))).await.unwrap().into_inner();
        let refused = answers.message().await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
        assert!(refused.message().contains("update nodes before agents"), "{refused}");
    }
    assert_eq!(node.terminate().await, Some(0));
}

#[tokio::test]
async fn what_is_wrong_with_batches_is_said_and_the_rest_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path()).await;
    let agent_id = node.agent_id("machine-1").await;
    let (sender, mut acks) = node.ingest().await;

    let good = requests(agent_id, seq(1, 1), 1, now());
    let mut damaged = requests(agent_id, seq(1, 2), 1, now());
    damaged.crc ^= 1;
    let mut version = requests(agent_id, seq(1, 4), 1, now());
    version.protocol_version = 99;
    for batch in [good, damaged, version] {
        sender.send(batch).await.unwrap();
    }
    let mut waiting: Vec<(u64, &str)> = vec![(seq(1, 2), "checksum"), (seq(1, 4), "version")];
    let mut committed = false;
    while !waiting.is_empty() || !committed {
        let ack = acks_until(&mut acks, |_| true).await;
        committed |= covers(&ack.committed, seq(1, 1));
        for rejection in ack.rejected {
            let at =
                waiting.iter().position(|(seq, _)| *seq == rejection.seq).expect("only these are refused");
            let (_, reason) = waiting.remove(at);
            assert!(rejection.reason.contains(reason), "{}", rejection.reason);
        }
    }

    // An agent that never said Hello: whether its batch is the first or not, nothing is refused for good.
    let (fresh, fresh_acks) = node.ingest().await;
    for (sender, mut acks) in [(sender, acks), (fresh, fresh_acks)] {
        sender.send(requests(12_345, seq(1, 9), 1, now())).await.unwrap();
        let status = loop {
            match tokio::time::timeout(PATIENCE, acks.message()).await.unwrap() {
                Ok(Some(ack)) => assert!(ack.rejected.is_empty(), "{ack:?}"),
                Ok(None) => panic!("the stream ended without a reason"),
                Err(status) => break status,
            }
        };
        assert_eq!(status.code(), tonic::Code::FailedPrecondition);
        assert_eq!(status.metadata().get(UNKNOWN_AGENT).unwrap(), "12345");
        assert!(status.message().contains("12345"), "{status}");
    }

    // A control stream that does not begin with a Hello.
    let nothing = tokio_stream::once(SyncRequest { body: None });
    let mut answers = node.agent().await.sync(nothing).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap_err().code(), tonic::Code::FailedPrecondition);
    assert_eq!(node.terminate().await, Some(0));
}

/// Each of them is refused, but nobody knows before it was read.
#[tokio::test(flavor = "multi_thread")]
async fn many_agents_that_send_the_largest_batches_at_once_stay_within_the_memory_budget() {
    const AGENTS: usize = 60;
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start_with(folder.path(), "", "[memory]\nbudget = \"192MiB\"\n").await;
    let largest = Batch {
        payload: vec![7; BATCH_BYTES_MAX].into(),
        uncompressed_bytes: 1,
        ..requests(0, seq(1, 1), 1, now())
    };
    let mut streams = Vec::new();
    for agent in 0..AGENTS {
        let agent_id = node.agent_id(&format!("machine-{agent}")).await;
        streams.push((Batch { agent_id, ..largest.clone() }, node.ingest().await));
    }
    let sending = streams.into_iter().map(async |(batch, (sender, mut acks))| {
        sender.send(batch).await.unwrap();
        acks_until(&mut acks, |ack| !ack.rejected.is_empty()).await;
    });
    futures::future::join_all(sending).await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.child.id().unwrap())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 192 << 10, "{peak} KiB were in memory");
    assert_eq!(node.terminate().await, Some(0));
}

#[tokio::test]
async fn a_caller_that_gives_a_call_a_time_gets_its_end_when_that_is_over() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path()).await;
    let mut request = tonic::Request::new(tokio_stream::pending());
    request.set_timeout(std::time::Duration::from_millis(300));
    // The client itself looks at the time only until the stream has begun; the node would wait ten seconds for a Hello.
    let mut answers = node.agent().await.sync(request).await.unwrap().into_inner();
    let status = answers.message().await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::DeadlineExceeded, "{status:?}");
    assert!(status.message().contains("the caller gave"), "{status:?}");
    assert_eq!(node.terminate().await, Some(0));
}
