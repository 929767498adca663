//! Requests of made-up traces, sent as an agent does: a user asks a front, which asks so many services in turn, each of which asks a
//! database. What belongs together is known, so that what a node says of it can be judged.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use metaflow_wire::{
    Batch, Columns, Endpoints, Hello, L7FlowLog, PROTOCOL_VERSION, SyncRequest, Table,
    agent_service_client::AgentServiceClient, columns::Rows, seal, seq, sync_request, sync_response,
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Thread of the front; those of the services follow.
const FRONT: u32 = 500;
/// Rows of each service that the front asks: what it sends and what the service gets, and the same of the database.
const ROWS_A_SERVICE: u32 = 4;

/// Sends one batch and waits until it is stored. Answers the agent's id.
pub async fn deliver(server: &str, machine_id: &str, make: impl FnOnce(u32, u64) -> Batch) -> Result<u32> {
    let mut client = AgentServiceClient::connect(server.to_owned()).await?;
    let (hello_sender, hellos) = mpsc::channel(1);
    let hello = Hello {
        protocol_version: PROTOCOL_VERSION,
        machine_id: machine_id.to_owned(),
        hostname: machine_id.to_owned(),
        ..Default::default()
    };
    hello_sender.send(SyncRequest { body: Some(sync_request::Body::Hello(hello)) }).await?;
    let mut answers = timeout(ANSWER_TIMEOUT, client.sync(ReceiverStream::new(hellos))).await??.into_inner();
    let answer = timeout(ANSWER_TIMEOUT, answers.message()).await??.context("the Sync stream ended")?;
    let Some(sync_response::Body::Welcome(welcome)) = answer.body else {
        bail!("the first answer is not a Welcome")
    };
    let seq = seq(1, 0);
    let (sender, batches) = mpsc::channel(1);
    let mut acks = timeout(ANSWER_TIMEOUT, client.ingest(ReceiverStream::new(batches))).await??.into_inner();
    sender.send(make(welcome.agent_id, seq)).await?;
    loop {
        let ack = timeout(ANSWER_TIMEOUT, acks.message()).await??.context("the Ingest stream ended")?;
        if ack.committed.iter().any(|range| (range.first..=range.last).contains(&seq)) {
            return Ok(welcome.agent_id);
        }
        anyhow::ensure!(ack.rejected.is_empty(), "rejected: {:?}", ack.rejected);
    }
}

/// Rows of a trace that asks so many services.
pub fn rows(services: u32) -> u32 {
    2 + services * ROWS_A_SERVICE
}

/// A row as this file makes it.
struct Made {
    point: u32,
    path: String,
    /// Microseconds from the trace's begin.
    time: (u64, u64),
    seq: u32,
    syscalls: (u64, u64),
    /// Of the side that the row was seen at.
    thread: u32,
    ends: (u32, u32),
    traced: bool,
}

/// One trace. Only what the user asked carries its id; the rest hangs together by system calls and sequence numbers.
pub fn batch(agent_id: u32, seq: u64, trace_id: &str, services: u32, start: u64) -> Batch {
    const POINT: [u32; 4] = [3, 1, 2, 4];
    let [client_process, _, server, server_process] = POINT;
    let step = 200;
    let last = u64::from(services) * step + 100;
    let base = (u64::from(agent_id) << 32) | ((start % 100_000) << 12);
    let mut made = Vec::new();
    let mut push = |point, path: String, time, seq, (syscalls, thread), ends, traced| {
        made.push(Made { point, path, time, seq, syscalls, thread, ends, traced });
    };
    // As agents number them: an id with each request that is served, and what is sent meanwhile carries it.
    push(server, "/front".into(), (0, last + 20), 1, ((0, 0), 0), (0, 1), true);
    push(server_process, "/front".into(), (5, last + 10), 1, ((base, base), FRONT), (0, 1), true);
    for nth in 0..u64::from(services) {
        let (begin, number) = (50 + nth * step, nth as u32);
        let path = format!("/service/{nth}");
        let front = (base, base);
        let own = (base + 1 + nth, base + 1 + nth);
        push(client_process, path.clone(), (begin, begin + 180), 10 + number, (front, FRONT), (1, 2), false);
        push(
            server_process,
            path,
            (begin + 10, begin + 170),
            10 + number,
            (own, FRONT + 1 + number),
            (1, 2),
            false,
        );
        let query = format!("/data/{nth}");
        push(
            client_process,
            query.clone(),
            (begin + 20, begin + 150),
            10_000 + number,
            (own, FRONT + 1 + number),
            (2, 3),
            false,
        );
        push(server, query, (begin + 30, begin + 140), 10_000 + number, ((0, 0), 0), (2, 3), false);
    }
    seal(agent_id, seq, Table::L7FlowLog, made.len() as u32, &columns(&made, trace_id, start))
}

fn columns(made: &[Made], trace_id: &str, start: u64) -> Columns {
    let mut strings = vec![String::new(), "GET".to_owned(), trace_id.to_owned()];
    let path = strings.len() as u32;
    strings.extend(made.iter().map(|row| row.path.clone()));
    let each = |value: &dyn Fn(&Made) -> u64| made.iter().map(value).collect::<Vec<u64>>();
    let small = |value: &dyn Fn(&Made) -> u32| made.iter().map(value).collect::<Vec<u32>>();
    let all = |value: u32| vec![value; made.len()];
    // Sequence numbers of one trace are not those of another.
    let salt = (start as u32).wrapping_mul(2_654_435_761) & !0xffff;
    Columns {
        addresses: (0..4_u8).map(|host| vec![10, 9, 0, host + 1]).collect(),
        strings,
        rows: Some(Rows::L7FlowLog(L7FlowLog {
            endpoints: Some(Endpoints {
                client_ip: small(&|row| row.ends.0),
                server_ip: small(&|row| row.ends.1),
                server_port: all(80),
                ip_protocol: all(6),
                observation_point: small(&|row| row.point),
                ..Default::default()
            }),
            client_port: all(40_000),
            flow_id: each(&|row| u64::from(row.seq)),
            start_time: each(&|row| start + row.time.0),
            end_time: each(&|row| start + row.time.1),
            response_duration: each(&|row| row.time.1 - row.time.0),
            l7_protocol: all(20),
            l7_type: all(2),
            signal_source: small(&|row| if row.syscalls.0 == 0 { 0 } else { 3 }),
            request_type: all(1),
            request_resource: (0..made.len() as u32).map(|nth| path + nth).collect(),
            trace_id: small(&|row| if row.traced { 2 } else { 0 }),
            response_code: vec![200; made.len()],
            req_tcp_seq: small(&|row| salt.wrapping_add(row.seq)),
            resp_tcp_seq: small(&|row| salt.wrapping_add(row.seq).wrapping_add(30_000)),
            syscall_thread_0: small(&|row| if row.point == 3 { row.thread } else { 0 }),
            syscall_thread_1: small(&|row| if row.point == 4 { row.thread } else { 0 }),
            syscall_trace_id_request: each(&|row| row.syscalls.0),
            syscall_trace_id_response: each(&|row| row.syscalls.1),
            ..Default::default()
        })),
    }
}
