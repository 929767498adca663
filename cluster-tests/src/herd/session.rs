//! One agent of a herd: its connection, heartbeats, and the way to the next server. Which one and when is decided by the agent's own code.

use std::{
    cell::RefCell,
    future::poll_fn,
    hash::{BuildHasher as _, RandomState},
    io,
    net::{Ipv4Addr, SocketAddr},
    pin::{Pin, pin},
    sync::{Arc, atomic::Ordering},
    task::{Context as TaskContext, Poll},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use metaflow_agent::sender::{self, Ended, NoWelcome, Servers};
use metaflow_wire::{
    Heartbeat, Hello, PROTOCOL_VERSION, SyncRequest, SyncResponse, sync_request, sync_response,
};
use prost::Message as _;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::TcpSocket,
    time::{sleep_until, timeout},
};

use super::{Shared, frames::Connection};

/// Agents with one source address: few enough for the ports that the kernel picks from.
const AGENTS_AN_ADDRESS: u32 = 4_000;
const INPUT_BYTES: usize = 32 << 10;

thread_local! {
    /// Shared by all agents of a thread: each takes what it read before another one reads.
    static INPUT: RefCell<Vec<u8>> = RefCell::new(vec![0; INPUT_BYTES]);
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

pub(super) struct Session {
    pub(super) index: u32,
    pub(super) shared: Arc<Shared>,
    pub(super) servers: Servers,
    pub(super) agent_id: u32,
    /// What came with the id.
    pub(super) proof: Vec<u8>,
    pub(super) config_version: u64,
    /// Its node was lost, and no other has welcomed it since.
    pub(super) is_lost: bool,
}

/// What there is of one connection.
struct Link {
    io: Box<dyn Io>,
    http: Connection,
    decides: sender::Session,
    heard: Instant,
    next_beat: Instant,
    /// Counts as served while it is kept.
    served: Option<Served>,
}

struct Served {
    shared: Arc<Shared>,
    place: usize,
    is_away: bool,
}

impl Served {
    /// Says whether the node that serves is on the agent's list.
    fn settle(&mut self, is_away: bool) {
        match (self.is_away, is_away) {
            (false, true) => self.shared.away.fetch_add(1, Ordering::Relaxed),
            (true, false) => self.shared.away.fetch_sub(1, Ordering::Relaxed),
            _ => return,
        };
        self.is_away = is_away;
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.settle(false);
        self.shared.places[self.place].1.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Session {
    /// Runs until the herd ends.
    pub(super) async fn run(mut self, starts_after: Duration) {
        tokio::time::sleep(starts_after).await;
        while let Some(server) = self.servers.current() {
            let mut was_welcome = false;
            let ended = Box::pin(self.connect_and_serve(&server, &mut was_welcome)).await;
            let how = match (&ended, was_welcome) {
                (Ok(()), _) => Ended::Moves,
                (Err(_), true) => Ended::Lost,
                (Err(error), false) if error.is::<NoWelcome>() => Ended::Late,
                (Err(_), false) => Ended::NotReached,
            };
            if how != Ended::Moves {
                self.shared.breaks.fetch_add(1, Ordering::Relaxed);
            }
            if how == Ended::Lost {
                self.is_lost = true;
                self.shared.lost.fetch_add(1, Ordering::Relaxed);
            }
            let pause = self.servers.next(how, Instant::now(), &self.shared.config.sender, random());
            tokio::time::sleep(pause).await;
        }
    }

    /// One connection; without an error it ends because the agent belongs elsewhere.
    async fn connect_and_serve(&mut self, server: &str, was_welcome: &mut bool) -> Result<()> {
        let limit = self.shared.config.sender.connect_timeout;
        let io = timeout(limit, self.connect(server)).await.context("no connection in time")??;
        let now = Instant::now();
        let mut link = Link {
            io,
            http: Connection::new(),
            decides: sender::Session::new(now),
            heard: now,
            next_beat: now,
            served: None,
        };
        let mut out = Vec::new();
        link.http.open(server, self.shared.config.batches, &mut out);
        link.send(sync_request::Body::Hello(self.hello()), &mut out)?;
        link.io.write_all(&out).await?;
        drop(out);
        let welcome = async {
            while link.served.is_none() {
                self.read(&mut link, server).await?;
            }
            anyhow::Ok(())
        };
        timeout(limit, welcome).await.map_err(|_| NoWelcome(limit))??;
        *was_welcome = true;
        if std::mem::take(&mut self.is_lost) {
            self.shared.lost.fetch_sub(1, Ordering::Relaxed);
        }
        self.serve(link, server).await
    }

    async fn serve(&mut self, mut link: Link, server: &str) -> Result<()> {
        let mut alarm = pin!(sleep_until(self.wakes_at(&link).into()));
        loop {
            tokio::select! {
                read = self.read(&mut link, server) => read?,
                () = &mut alarm => {
                    let now = Instant::now();
                    if link.decides.leaves_at().is_some_and(|moment| moment <= now) {
                        return Ok(());
                    }
                    if let Err(broken) = link.decides.check(now, &self.shared.config.sender) {
                        self.shared.silences.fetch_add(1, Ordering::Relaxed);
                        return Err(broken.into());
                    }
                    if link.next_beat <= now {
                        self.beat(&mut link, now).await?;
                    }
                    alarm.as_mut().reset(self.wakes_at(&link).into());
                }
            }
        }
    }

    /// The earliest moment at which there may be something to do.
    fn wakes_at(&self, link: &Link) -> Instant {
        let silent = link.heard + self.shared.config.sender.silence_max + Duration::from_millis(1);
        let next = link.next_beat.min(silent);
        link.decides.leaves_at().map_or(next, |moment| moment.min(next))
    }

    async fn beat(&mut self, link: &mut Link, now: Instant) -> Result<()> {
        let config = &self.shared.config.sender;
        link.next_beat = now + config.heartbeat;
        if link.decides.leaves_at().is_none() {
            link.decides.plan_move(&self.servers, now, config, random());
        }
        let mut out = Vec::new();
        let heartbeat = Heartbeat {
            config_version: self.config_version,
            memory_bytes: 60_000_000,
            cpu_percent: 120,
            ..Heartbeat::default()
        };
        link.send(sync_request::Body::Heartbeat(heartbeat), &mut out)?;
        link.io.write_all(&out).await?;
        self.shared.heartbeats.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Waits for bytes and does what they say.
    async fn read(&mut self, link: &mut Link, server: &str) -> Result<()> {
        let mut out = Vec::new();
        let mut replies = Vec::new();
        poll_fn(|ctx| poll_read(link, ctx, &mut out, &mut replies)).await?;
        for reply in replies {
            self.handle(link, server, reply, &mut out)?;
        }
        if !out.is_empty() {
            link.io.write_all(&out).await?;
        }
        Ok(())
    }

    fn handle(
        &mut self,
        link: &mut Link,
        server: &str,
        reply: SyncResponse,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let now = Instant::now();
        match reply.body {
            Some(sync_response::Body::Welcome(welcome)) => {
                ensure!(welcome.agent_id != 0, "node gave no agent id");
                ensure!(self.agent_id == 0 || self.agent_id == welcome.agent_id, "the agent id changed");
                self.agent_id = welcome.agent_id;
                self.proof.clone_from(&welcome.agent_id_proof);
                link.served = self.shared.served(server);
                self.follow(link, server, &welcome.servers, now);
                // Spread over the time between two, as agents that start at differing times are.
                let beat = self.shared.config.sender.heartbeat;
                link.next_beat = now + beat.mul_f64((random() % 1_000) as f64 / 1_000.0);
            }
            Some(sync_response::Body::Servers(told)) => self.follow(link, server, &told.servers, now),
            Some(sync_response::Body::Config(config)) => {
                self.shared.configured(self.config_version, config.version);
                self.config_version = config.version;
                let heartbeat = Heartbeat { config_version: config.version, ..Heartbeat::default() };
                link.send(sync_request::Body::Heartbeat(heartbeat), out)?;
            }
            Some(sync_response::Body::Heartbeat(told)) => {
                self.servers.spread(told.spread_ms);
                self.shared.replies.fetch_add(1, Ordering::Relaxed);
            }
            Some(sync_response::Body::ResendFacts(_)) | None => {}
        }
        Ok(())
    }

    fn follow(&mut self, link: &mut Link, server: &str, told: &[String], now: Instant) {
        self.servers.welcome(server, told);
        if let Some(served) = &mut link.served {
            served.settle(!self.servers.is_named());
        }
        link.decides.plan_move(&self.servers, now, &self.shared.config.sender, random());
    }

    fn hello(&self) -> Hello {
        Hello {
            protocol_version: PROTOCOL_VERSION,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            machine_id: format!("{:032x}", self.index),
            hostname: format!("host-{}.example", self.index),
            config_version: self.config_version,
            kernel_release: "6.12.0".to_owned(),
            architecture: "x86_64".to_owned(),
            os: "Debian GNU/Linux 13".to_owned(),
            agent_id: self.agent_id,
            agent_id_proof: self.proof.clone(),
            ..Hello::default()
        }
    }

    async fn connect(&self, server: &str) -> Result<Box<dyn Io>> {
        let address: SocketAddr = server.parse().with_context(|| format!("server {server}"))?;
        if let Some(tls) = &self.shared.config.sender.tls {
            let stream = tls.connect(&address.ip().to_string(), address.port()).await?;
            return Ok(Box::new(stream));
        }
        let [high, low] = ((self.index / AGENTS_AN_ADDRESS + 1) as u16).to_be_bytes();
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from((Ipv4Addr::new(127, 1 + high, low, 1), 0)))?;
        let stream = socket.connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }
}

impl Link {
    fn send(&mut self, body: sync_request::Body, out: &mut Vec<u8>) -> Result<()> {
        let message = SyncRequest { body: Some(body) }.encode_to_vec();
        ensure!(self.http.send(&message, out), "the node takes no more messages");
        Ok(())
    }
}

fn poll_read(
    link: &mut Link,
    ctx: &mut TaskContext<'_>,
    out: &mut Vec<u8>,
    replies: &mut Vec<SyncResponse>,
) -> Poll<Result<()>> {
    INPUT.with_borrow_mut(|input| {
        let mut input = ReadBuf::new(input);
        match Pin::new(&mut link.io).poll_read(ctx, &mut input) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
            Poll::Ready(Ok(())) if input.filled().is_empty() => {
                return Poll::Ready(Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()));
            }
            Poll::Ready(Ok(())) => {}
        }
        // Acknowledgements of the stream of batches are signs of life, too.
        link.heard = Instant::now();
        link.decides.hear(link.heard);
        Poll::Ready(link.http.receive(input.filled(), out, |message| {
            replies.push(SyncResponse::decode(message)?);
            Ok(())
        }))
    })
}

/// Differs between calls, as the agent's own.
fn random() -> u64 {
    RandomState::new().hash_one(0_u8)
}

impl Shared {
    /// Counts an agent as served by this server until it is dropped.
    fn served(self: &Arc<Self>, server: &str) -> Option<Served> {
        let place = self.places.iter().position(|(name, _)| name == server)?;
        self.places[place].1.fetch_add(1, Ordering::Relaxed);
        Some(Served { shared: Arc::clone(self), place, is_away: false })
    }
}
