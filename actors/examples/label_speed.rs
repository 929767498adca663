//! How much CPU a row costs a node on the way from the wire to the bytes that the store takes.
//!
//! ```text
//! cargo run --release --example label_speed
//! ```
//!
//! Batches of `flow_log.l7_flow_log` with every column of the wire filled: decompressed and decoded, labelled with a real dictionary
//! and the facts of a host with a thousand processes, encoded as Native. One thread; CPU time, so a busy machine does not matter.
#![expect(clippy::print_stdout, reason = "prints its result")]

use std::{collections::HashMap, hint::black_box, sync::Arc};

use anyhow::Context;
use metaflow_actors::{
    dictionary::{self, Dictionary, NodeId},
    disk::Disk,
    labeler::{AgentView, HostTags, Input, Listening, ProcessTags, Snapshot, Subnet},
    rows::{BatchId, Rows},
};
use metaflow_schema::{encode_native, enums::Kind, tables::L7_FLOW_LOG, types::ip_cell};
use metaflow_wire::{self as wire, Columns, Endpoints, L7FlowLog, Table};
use prost::Message;

/// Rows of one batch: what an agent cuts.
const ROWS: u32 = 8_192;
const AGENT_ID: u32 = 1 << 22 | 1;
/// CPU time of one measurement: enough that the clock's resolution does not matter.
const MEASURE_NS: u64 = 2_000_000_000;
/// Rows per second and core that the node's part must reach.
const MARK: u64 = 300_000;

fn main() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let config = dictionary::Config::new(NodeId::new(1).context("1 is a node's number")?);
    let dictionary = Dictionary::open(Disk::open(folder.path())?, config, &HashMap::new())?;
    // The first id of a kind on node 1 is [`AGENT_ID`].
    dictionary.id(Kind::Agent, "agent")?;
    let snapshot = host(&dictionary)?;
    let batch = wire::seal(AGENT_ID, 1, Table::L7FlowLog, ROWS, &columns());
    let payload = batch.payload.len();
    let message = batch.encode_to_vec();
    let input = Input { snapshot: &snapshot, names: &dictionary, id: BatchId { agent_id: AGENT_ID, seq: 1 } };

    let open = || -> anyhow::Result<Columns> {
        let batch = wire::Batch::decode(message.as_slice())?;
        Ok(wire::open(&batch)?.1)
    };
    let label =
        || -> anyhow::Result<Rows> { Ok(input.label_columns(Table::L7FlowLog, ROWS as usize, open()?)?) };
    let encode = || -> anyhow::Result<Vec<u8>> {
        match label()? {
            Rows::L7FlowLog(block) => Ok(encode_native(block.as_ref(), ROWS as usize)?),
            other => anyhow::bail!("labelled as {other:?}"),
        }
    };
    let native = encode()?.len();
    println!(
        "{} columns, {} bytes a row on the wire, {} bytes a row as Native",
        (L7_FLOW_LOG.columns)().len(),
        payload / ROWS as usize,
        native / ROWS as usize
    );
    let opened = measure(|| open().map(|columns| drop(black_box(columns))))?;
    let labelled = measure(|| label().map(|rows| drop(black_box(rows))))?;
    let encoded = measure(|| encode().map(|bytes| drop(black_box(bytes))))?;
    println!("decompress and decode  {opened:>6} ns a row");
    println!("label                  {:>6} ns a row", labelled.saturating_sub(opened));
    println!("encode                 {:>6} ns a row", encoded.saturating_sub(labelled));
    let rate = 1_000_000_000 / encoded.max(1);
    println!("wire to Native         {encoded:>6} ns a row: {rate} rows/s a core, mark {MARK}");
    Ok(())
}

/// Nanoseconds of CPU time a row.
fn measure(mut batch: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<u64> {
    batch()?;
    let start = cpu_ns()?;
    let mut rows = 0;
    loop {
        batch()?;
        rows += u64::from(ROWS);
        let spent = cpu_ns()? - start;
        if spent >= MEASURE_NS {
            return Ok(spent / rows);
        }
    }
}

/// CPU time of this thread.
fn cpu_ns() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").context("failed to read CPU time")?;
    text.split(' ')
        .next()
        .and_then(|first| first.parse().ok())
        .context("no CPU time in /proc/thread-self/schedstat")
}

/// A host with a thousand processes of which fifty listen.
fn host(dictionary: &Dictionary) -> anyhow::Result<Snapshot> {
    let own = ip_cell([10, 0, 0, 1].into());
    let mut processes = Vec::new();
    for pid in 1..=1_000 {
        let name = format!("service-{}", pid % 100);
        let process_id = dictionary.id(Kind::Process, &name)?;
        let unit_id = if pid % 2 == 0 { dictionary.id(Kind::Unit, &name)? } else { 0 };
        processes.push(ProcessTags { pid, process_id, unit_id, container_id: 0 });
    }
    let listening = (1..=50_u16).map(|at| Listening {
        ip: [0; 16],
        port: 8_000 + at,
        ip_protocol: 6,
        pid: u32::from(at) * 20,
    });
    let view = AgentView::new(
        HostTags {
            host_id: dictionary.id(Kind::Host, "host")?,
            vpc_id: dictionary.id(Kind::Vpc, "default")?,
        },
        processes,
        listening,
        vec![own],
        vec![Subnet { ip: own, prefix_length: 120, subnet_id: dictionary.id(Kind::Subnet, "10.0.0.0/24")? }],
    );
    Ok(Snapshot::default().with([(AGENT_ID, Arc::new(view))]))
}

/// Numbers that do not compress better than real ones (xorshift, Marsaglia 2003).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u32) -> u32 {
        (self.next() % u64::from(limit)) as u32
    }

    fn column(&mut self, limit: u32) -> Vec<u32> {
        (0..ROWS).map(|_| self.below(limit)).collect()
    }

    fn wide(&mut self, limit: u32) -> Vec<u64> {
        (0..ROWS).map(|_| u64::from(self.below(limit))).collect()
    }
}

/// Texts of a batch, each listed once.
struct Texts(Vec<String>);

impl Texts {
    /// A column of texts of which `distinct` are different.
    fn column(&mut self, random: &mut Random, distinct: u32, text: impl Fn(u64) -> String) -> Vec<u32> {
        let first = self.0.len() as u32;
        self.0.extend((0..distinct).map(|_| text(random.next())));
        (0..ROWS).map(|row| first + if distinct == ROWS { row } else { random.below(distinct) }).collect()
    }
}

fn columns() -> Columns {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let random = &mut random;
    let mut texts = Texts(vec![String::new()]);
    let start: Vec<u64> = (0..u64::from(ROWS)).map(|row| 1_700_000_000_000_000 + row * 120).collect();
    let duration = random.wide(50_000);
    let end = start.iter().zip(&duration).map(|(start, duration)| start + duration).collect();
    let rows = L7FlowLog {
        endpoints: Some(endpoints(random)),
        client_port: random.column(28_000),
        flow_id: random.wide(1 << 20),
        start_time: start,
        end_time: end,
        response_duration: duration,
        l7_protocol: vec![20; ROWS as usize],
        l7_type: vec![2; ROWS as usize],
        response_status: random.column(5),
        signal_source: vec![3; ROWS as usize],
        version: texts.column(random, 2, |at| format!("1.{}", at % 2)),
        request_type: texts.column(random, 5, |at| format!("VERB{}", at % 9)),
        request_domain: texts.column(random, 40, |at| format!("shop-{}.example.com", at % 99)),
        request_resource: texts
            .column(random, ROWS, |at| format!("/api/v1/products/{}?page=2", at % 100_000)),
        endpoint: texts.column(random, 300, |at| format!("/api/v1/{}/items", at % 999)),
        response_exception: texts.column(random, 10, |at| format!("error number {}", at % 10)),
        response_result: texts.column(random, 20, |at| format!("result {}", at % 20)),
        trace_id: texts.column(random, ROWS, |at| format!("{at:016x}{:016x}", at.rotate_left(31) ^ 0xabcd)),
        span_id: texts.column(random, ROWS, |at| format!("{at:016x}")),
        parent_span_id: texts.column(random, 500, |at| format!("{at:016x}")),
        x_request_id_0: texts.column(random, ROWS, |at| format!("{at:016x}-{:016x}", at.rotate_left(7))),
        x_request_id_1: texts.column(random, 1, |_| String::new()),
        user_agent: texts.column(random, 30, |at| format!("Mozilla/5.0 (X11; Linux) Client/{}", at % 50)),
        referer: texts.column(random, 50, |at| format!("https://shop.example.com/{}", at % 50)),
        http_proxy_client: texts.column(random, 200, |at| format!("192.0.2.{}", at % 250)),
        socket_path: texts.column(random, 1, |_| String::new()),
        request_id: random.wide(1 << 16),
        response_code: (0..ROWS).map(|_| 200 + random.below(4).cast_signed() * 100).collect(),
        request_length: random.wide(2_000),
        response_length: random.wide(60_000),
        captured_request_byte: random.column(2_000),
        captured_response_byte: random.column(60_000),
        req_tcp_seq: random.column(u32::MAX),
        resp_tcp_seq: random.column(u32::MAX),
        syscall_trace_id_request: random.wide(u32::MAX),
        syscall_trace_id_response: random.wide(u32::MAX),
        syscall_thread_0: random.column(30_000),
        syscall_thread_1: random.column(30_000),
        syscall_coroutine_0: random.wide(1 << 20),
        syscall_coroutine_1: random.wide(1 << 20),
        syscall_trace_source: random.column(4),
    };
    let addresses = (0..=255).map(|last| vec![10, 0, 0, last]).collect();
    Columns { strings: texts.0, addresses, rows: Some(wire::columns::Rows::L7FlowLog(rows)) }
}

/// Clients all over a network of 256 addresses, fifty services on this host.
fn endpoints(random: &mut Random) -> Endpoints {
    Endpoints {
        client_ip: random.column(256),
        server_ip: vec![1; ROWS as usize],
        server_port: random.column(50).into_iter().map(|at| 8_001 + at).collect(),
        client_pid: vec![0; ROWS as usize],
        server_pid: vec![],
        ip_protocol: vec![6; ROWS as usize],
        observation_point: vec![2; ROWS as usize],
        interface_index: vec![2; ROWS as usize],
    }
}
