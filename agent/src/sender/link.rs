//! One connection: Hello and Welcome, then heartbeats, facts and batches until it breaks.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use metaflow_wire::{
    Batch, Heartbeat, IngestAck, MESSAGE_BYTES_MAX, SyncRequest, SyncResponse, UNKNOWN_AGENT, Welcome,
    agent_service_client::AgentServiceClient, sync_request, sync_response,
};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Channel};

use super::{End, NoWelcome, Sender, Servers, Session, connect::connect, random};
use crate::{control::Stand, facts::Snapshot};

/// Control messages that wait for the transport.
const CONTROL_QUEUE: usize = 8;
/// Batches that wait for the transport.
const BATCH_QUEUE: usize = 2;

type Client = AgentServiceClient<Channel>;

/// A welcomed connection.
struct Link {
    control: mpsc::Sender<SyncRequest>,
    replies: Streaming<SyncResponse>,
    batches: mpsc::Sender<Batch>,
    acks: Streaming<IngestAck>,
    session: Session,
    facts_sent: Option<Arc<Snapshot>>,
}

impl Sender {
    pub(super) async fn connect_and_serve(
        &mut self,
        server: &str,
        servers: &mut Servers,
        welcomed: &AtomicBool,
    ) -> anyhow::Result<End> {
        let limit = self.config.connect_timeout;
        let channel = connect(&self.config, server).await?;
        let mut client = Client::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let (control, replies, welcome) =
            timeout(limit, self.greet(&mut client)).await.map_err(|_| NoWelcome(limit))??;
        servers.welcome(server, &welcome.servers);
        self.spool.lock().take_identity(&welcome).context("failed to store the agent's id")?;
        let (batches, queue) = mpsc::channel(BATCH_QUEUE);
        let acks = timeout(limit, client.ingest(ReceiverStream::new(queue)))
            .await
            .with_context(|| format!("no stream for batches from {server} within {limit:?}"))?
            .context("node refused the stream of batches")?
            .into_inner();
        tracing::info!(
            server,
            agent_id = welcome.agent_id,
            vpc_id = welcome.vpc_id,
            node_version = welcome.node_version,
            "connected to node"
        );
        welcomed.store(true, Ordering::Relaxed);
        self.metrics.tell_error_again();
        self.state.connections.fetch_add(1, Ordering::Relaxed);
        self.state.connected.store(true, Ordering::Relaxed);
        let session = Session::new(Instant::now());
        let link = Link { control, replies, batches, acks, session, facts_sent: None };
        self.serve(link, server, servers).await
    }

    async fn greet(
        &self,
        client: &mut Client,
    ) -> anyhow::Result<(mpsc::Sender<SyncRequest>, Streaming<SyncResponse>, Welcome)> {
        let (control, queue) = mpsc::channel(CONTROL_QUEUE);
        let mut hello = self.hello.clone();
        hello.config_version = self.state.config_version.load(Ordering::Relaxed);
        {
            let spool = self.spool.lock();
            hello.agent_id = spool.agent_id();
            hello.agent_id_proof = spool.agent_id_proof().to_vec();
        }
        control.send(SyncRequest { body: Some(sync_request::Body::Hello(hello)) }).await?;
        let mut replies = client
            .sync(ReceiverStream::new(queue))
            .await
            .context("node refused the control stream")?
            .into_inner();
        loop {
            let reply = replies.message().await?.context("node closed the control stream")?;
            match reply.body {
                Some(sync_response::Body::Welcome(welcome)) if welcome.agent_id == 0 => {
                    bail!("node gave no agent id")
                }
                Some(sync_response::Body::Welcome(welcome)) => return Ok((control, replies, welcome)),
                // A node may send configuration first; it comes again with the next change of version.
                _ => tracing::debug!("control message before the welcome"),
            }
        }
    }

    async fn serve(&mut self, mut link: Link, server: &str, servers: &mut Servers) -> anyhow::Result<End> {
        let mut heartbeat = interval(self.config.heartbeat);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // A look at the clock more often than heartbeats, so that silence is noticed in time.
        let mut watchdog = interval((self.config.silence_max / 8).max(Duration::from_millis(10)));
        watchdog.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let durable = Arc::clone(&self.spool.durable);
        self.facts.mark_changed();
        self.plan_move(&mut link, servers);
        loop {
            let mut bell = pin!(durable.notified());
            // Heard from here on: a batch that becomes durable after `send_batches` looked is not missed.
            bell.as_mut().enable();
            self.send_batches(&mut link)?;
            let now = Instant::now();
            if link.session.goes(&self.spool.lock(), now) {
                return Ok(End::Moves);
            }
            // Once that moment has come, acknowledgements and the watchdog bring the next look.
            let leaves_at = link.session.leaves_at().filter(|moment| *moment > now);
            tokio::select! {
                reply = link.replies.message() => match reply.context("control stream broke")? {
                    Some(SyncResponse { body: Some(sync_response::Body::Servers(told)) }) => {
                        link.session.hear(Instant::now());
                        servers.welcome(server, &told.servers);
                        self.plan_move(&mut link, servers);
                    }
                    Some(SyncResponse { body: Some(sync_response::Body::Heartbeat(told)) }) => {
                        link.session.hear(Instant::now());
                        servers.spread(told.spread_ms);
                    }
                    Some(reply) => self.handle_reply(&mut link, reply)?,
                    None => return Ok(End::Closed),
                },
                ack = link.acks.message() => match ack {
                    Ok(Some(ack)) => link.session.take_ack(ack, &mut self.spool.lock(), Instant::now()),
                    Ok(None) => return Ok(End::Closed),
                    Err(status) => return Err(self.broken(status)),
                },
                () = sleep_until(leaves_at), if leaves_at.is_some() => {}
                _ = heartbeat.tick() => self.send_heartbeat(&link)?,
                _ = watchdog.tick() => {
                    link.session.check(Instant::now(), &self.config)?;
                    if link.session.leaves_at().is_none() {
                        self.plan_move(&mut link, servers);
                    }
                }
                changed = self.facts.changed() => {
                    changed.context("facts ended")?;
                    self.send_facts(&mut link)?;
                },
                () = bell => {}
                // A place for a batch came free.
                free = has_room(&link.batches), if link.batches.capacity() == 0 => free?,
            }
        }
    }

    /// Why the stream of batches broke. When the node does not know an agent of which a batch is, the spool hears so.
    fn broken(&self, status: Status) -> anyhow::Error {
        let unknown = status.metadata().get(UNKNOWN_AGENT).and_then(|id| id.to_str().ok()?.parse().ok());
        if let Some(unknown) = unknown
            && let Err(error) = self.spool.lock().forget_agent_id(unknown)
        {
            tracing::warn!(%error, "failed to store which id is not known");
        }
        anyhow::Error::new(status).context("stream of batches broke")
    }

    fn plan_move(&self, link: &mut Link, servers: &Servers) {
        link.session.plan_move(servers, Instant::now(), &self.config, random());
    }

    /// Fills the window from the spool.
    fn send_batches(&self, link: &mut Link) -> anyhow::Result<()> {
        while link.batches.capacity() > 0 {
            let next = link.session.next_batch(&mut self.spool.lock(), Instant::now());
            let Some(batch) = next.context("failed to read the spool")? else { return Ok(()) };
            link.batches.try_send(batch).context("stream of batches is closed")?;
        }
        Ok(())
    }

    fn handle_reply(&mut self, link: &mut Link, reply: SyncResponse) -> anyhow::Result<()> {
        link.session.hear(Instant::now());
        match reply.body {
            Some(sync_response::Body::Config(config)) => {
                self.control.take(config.version, &config.toml);
                self.state.config_version.store(self.control.stand().version, Ordering::Relaxed);
                // The node hears at once what became of it.
                self.send_heartbeat(link)?;
            }
            Some(sync_response::Body::ResendFacts(_)) => {
                link.facts_sent = None;
                self.send_facts(link)?;
            }
            // A second welcome says nothing new on this connection.
            Some(
                sync_response::Body::Heartbeat(_)
                | sync_response::Body::Welcome(_)
                | sync_response::Body::Servers(_),
            )
            | None => {}
        }
        Ok(())
    }

    fn send_heartbeat(&self, link: &Link) -> anyhow::Result<()> {
        let mut losses = self.metrics.losses();
        let spool = self.spool.lock();
        losses.merge(spool.losses());
        let spool_bytes = spool.stats().disk_bytes;
        drop(spool);
        let Stand { version, pending, problem } = self.control.stand().clone();
        let heartbeat = Heartbeat {
            config_version: version,
            config_pending: pending,
            config_error: problem,
            last_error: self.metrics.error_to_tell(),
            shedding: self.metrics.shedding.load(Ordering::Relaxed),
            losses: losses.to_wire(),
            spool_bytes,
            memory_bytes: self.metrics.memory_bytes.load(Ordering::Relaxed),
            cpu_percent: self.metrics.cpu_percent.load(Ordering::Relaxed),
        };
        send_control(link, sync_request::Body::Heartbeat(heartbeat)).map(|_| ())
    }

    /// Sends what changed since the last facts of this connection, or all.
    fn send_facts(&mut self, link: &mut Link) -> anyhow::Result<()> {
        let current = Arc::clone(&self.facts.borrow_and_update());
        let version = self.facts_version + 1;
        let facts = match &link.facts_sent {
            Some(sent) => current.delta(sent, version),
            None => Some(current.full(version)),
        };
        // What finds no place now goes with the next facts, which compare with what was sent.
        if let Some(facts) = facts
            && send_control(link, sync_request::Body::Facts(facts))?
        {
            self.facts_version = version;
            link.facts_sent = Some(current);
        }
        Ok(())
    }
}

async fn sleep_until(moment: Option<Instant>) {
    if let Some(moment) = moment {
        tokio::time::sleep_until(moment.into()).await;
    }
}

async fn has_room(batches: &mpsc::Sender<Batch>) -> anyhow::Result<()> {
    batches.reserve().await.map(drop).context("stream of batches is closed")
}

/// Queues a control message; false when the queue is full, which the watchdog of silence ends if it lasts.
fn send_control(link: &Link, body: sync_request::Body) -> anyhow::Result<bool> {
    match link.control.try_send(SyncRequest { body: Some(body) }) {
        Ok(()) => Ok(true),
        Err(mpsc::error::TrySendError::Full(_)) => Ok(false),
        Err(mpsc::error::TrySendError::Closed(_)) => bail!("control stream is closed"),
    }
}
