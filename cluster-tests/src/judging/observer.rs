//! The agent's probes and sockets in this process, and what they saw as rows.

use std::{
    ops::ControlFlow,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use metaflow_actors::querier::trace::Row as TraceRow;
use metaflow_agent::{
    clock, events,
    probes::{Probes, Settings},
    session,
    sockets::{Call, Config, Sockets},
};
use metaflow_schema::enums::{ObservationPoint, SignalSource};

use super::Chain;

const PATIENCE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(5);

/// What was seen.
#[derive(Debug, Default)]
pub struct Seen {
    pub rows: Vec<TraceRow>,
    /// Records that found no room, and transfers whose bytes could not be read.
    pub dropped: u64,
    pub unseen: u64,
}

/// Looks at the ports of a chain until it is told to stop.
pub struct Observer {
    calls: Arc<Mutex<Vec<Call>>>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(u64, u64)>,
}

impl Observer {
    pub fn start(chain: &Chain) -> Result<Self> {
        let ports = chain.ports();
        let settings = Settings { only_ports: ports.clone(), ..Settings::default() };
        let (probes, report) = Probes::open(&settings);
        let mut probes = probes.with_context(|| format!("no eBPF here: {report:#?}"))?;
        let begin = Instant::now();
        while !chain.looked_into.iter().all(|pid| probes.looks_into(*pid)) {
            ensure!(begin.elapsed() < PATIENCE, "no probes in one of {:?}", chain.looked_into);
            probes.search_libraries(u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX));
            std::thread::park_timeout(POLL);
        }
        // Of the texts of requests the numbers are needed.
        let session = session::Config { redact: false, ..session::Config::default() };
        let mut sockets = Sockets::new(Config {
            sockets_max: 65_536,
            session: Arc::new(session),
            tls: true,
            trace_base: 0,
        });
        sockets.set_clock(clock::wall_minus_monotonic_us());
        ports.iter().for_each(|port| sockets.server_port(*port));
        let calls = Arc::<Mutex<Vec<Call>>>::default();
        let stop = Arc::new(AtomicBool::new(false));
        let (into, halt) = (Arc::clone(&calls), Arc::clone(&stop));
        let thread = std::thread::Builder::new()
            .name("observer".to_owned())
            .spawn(move || look(probes, sockets, begin, &into, &halt))?;
        Ok(Self { calls, stop, thread })
    }

    /// Stops when so many views were seen, or nothing more comes.
    pub fn finish(self, is_all: impl Fn(&[Call]) -> bool) -> Result<Seen> {
        let deadline = Instant::now() + PATIENCE;
        while !is_all(&self.calls.lock().unwrap_or_else(PoisonError::into_inner)) && Instant::now() < deadline
        {
            std::thread::park_timeout(POLL * 10);
        }
        self.stop.store(true, Ordering::Relaxed);
        let (dropped, unseen) = self.thread.join().ok().context("the observer panicked")?;
        let calls = std::mem::take(&mut *self.calls.lock().unwrap_or_else(PoisonError::into_inner));
        ensure!(!calls.is_empty(), "nothing was seen");
        Ok(Seen { rows: calls.into_iter().map(row).collect(), dropped, unseen })
    }
}

fn look(
    mut probes: Probes,
    mut sockets: Sockets,
    started: Instant,
    into: &Mutex<Vec<Call>>,
    halt: &AtomicBool,
) -> (u64, u64) {
    let mut calls = Vec::new();
    while !halt.load(Ordering::Relaxed) {
        let mut began = Vec::new();
        probes.poll(&mut |record| {
            if let Ok(event) = events::read(record) {
                if let events::Event::Exec { task } = event {
                    began.push(task.pid);
                }
                sockets.event(&event, &mut calls);
            }
            ControlFlow::Continue(())
        });
        let now_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        began.into_iter().for_each(|pid| probes.began(pid, now_ms));
        probes.search_libraries(now_ms);
        sockets.tick(clock::monotonic_ns(), &mut calls);
        for (socket, judgement) in sockets.take_judgements() {
            probes.judge_socket(socket, judgement);
        }
        into.lock().unwrap_or_else(PoisonError::into_inner).append(&mut calls);
        std::thread::park_timeout(POLL);
    }
    let losses = probes.losses();
    (losses.dropped, losses.unseen)
}

/// As the store has it.
fn row(call: Call) -> TraceRow {
    let Call { facts, point, client_pid, server_pid, threads, coroutines, traces, source, session } = call;
    let (session, is_client) = (*session, point == ObservationPoint::ClientProcess);
    TraceRow {
        start_time: session.start_time,
        end_time: session.end_time,
        agent_id: 1,
        flow_id: facts.flow_id,
        observation_point: point as u8,
        signal_source: SignalSource::Ebpf as u8,
        req_tcp_seq: session.req_tcp_seq,
        resp_tcp_seq: session.resp_tcp_seq,
        request_id: session.request_id,
        syscall_trace_id_request: traces[0],
        syscall_trace_id_response: traces[1],
        syscall_thread_0: if is_client { threads[0] } else { 0 },
        syscall_thread_1: if is_client { 0 } else { threads[0] },
        syscall_coroutine_0: coroutines[0],
        syscall_coroutine_1: coroutines[1],
        syscall_trace_source: source as u8,
        l7_type: session.l7_type as u8,
        l7_protocol: session.protocol.name().to_owned(),
        client_port: facts.ends.client_port,
        server_port: facts.ends.server_port,
        ip_0: facts.ends.client_ip.to_string(),
        ip_1: facts.ends.server_ip.to_string(),
        pid_0: client_pid,
        pid_1: server_pid,
        trace_id: session.trace_id,
        span_id: session.span_id,
        parent_span_id: session.parent_span_id,
        x_request_id_0: session.x_request_id_request,
        x_request_id_1: session.x_request_id_response,
        request_resource: session.request_resource,
        ..TraceRow::default()
    }
}
