//! The lines of a cluster: every byte between two of its places goes over one, and a line can be cut, slow, or lose an answer.
//!
//! A line has a direction: what goes from one to the other, and what comes back, are two. Bytes of a cut line wait, as packets do that are
//! sent again and again; datagrams are gone. What is passed on is not looked at, so encrypted connections have the same faults.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::watch,
};

/// Nodes by their numbers from 0 on, then agents, then the store.
pub type Place = usize;

#[derive(Debug, Clone, Copy, Default)]
struct Line {
    is_cut: bool,
    delay: Duration,
    /// The next answer that comes over it does not arrive, and the connection breaks.
    loses_answer: bool,
}

#[derive(Debug)]
pub struct Lines {
    lines: Mutex<BTreeMap<(Place, Place), Line>>,
    changes: watch::Sender<u64>,
}

impl Lines {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { lines: Mutex::default(), changes: watch::channel(0).0 })
    }

    pub fn cut(&self, from: Place, to: Place) {
        self.change(from, to, |line| line.is_cut = true);
    }

    pub fn slow(&self, from: Place, to: Place, delay: Duration) {
        self.change(from, to, |line| line.delay = delay);
    }

    /// The next answer of `to` does not come to `from`.
    pub fn lose_answer(&self, from: Place, to: Place) {
        self.change(to, from, |line| line.loses_answer = true);
    }

    pub fn mend(&self, from: Place, to: Place) {
        self.change(from, to, |line| *line = Line::default());
    }

    pub fn mend_all(&self) {
        self.lock().clear();
        self.changes.send_modify(|changes| *changes += 1);
    }

    fn change(&self, from: Place, to: Place, change: impl FnOnce(&mut Line)) {
        change(self.lock().entry((from, to)).or_default());
        self.changes.send_modify(|changes| *changes += 1);
    }

    fn line(&self, from: Place, to: Place) -> Line {
        self.lock().get(&(from, to)).copied().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(Place, Place), Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until bytes may go on.
    async fn pass(&self, from: Place, to: Place) {
        let mut changes = self.changes.subscribe();
        // The sender lives as long as this does.
        changes.wait_for(|_| !self.line(from, to).is_cut).await.ok();
        let delay = self.line(from, to).delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
    }

    fn takes_answer(&self, from: Place, to: Place) -> bool {
        let mut lines = self.lock();
        lines.get_mut(&(from, to)).is_some_and(|line| std::mem::take(&mut line.loses_answer))
    }

    /// A way from one place to another for connections; answers where it begins.
    pub async fn connect(self: &Arc<Self>, from: Place, to: Place, target: SocketAddr) -> Result<SocketAddr> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("failed to listen")?;
        let begin = listener.local_addr()?;
        let lines = Arc::clone(self);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(Arc::clone(&lines).serve(from, to, near, target));
            }
        });
        Ok(begin)
    }

    async fn serve(self: Arc<Self>, from: Place, to: Place, near: TcpStream, target: SocketAddr) {
        self.pass(from, to).await;
        // Nobody listens: the end that asked finds its connection closed.
        let Ok(far) = TcpStream::connect(target).await else { return };
        let (near_read, near_write) = near.into_split();
        let (far_read, far_write) = far.into_split();
        tokio::select! {
            () = self.pump(from, to, near_read, far_write) => {}
            () = self.pump(to, from, far_read, near_write) => {}
        }
    }

    /// Until one end closes, or an answer is lost.
    async fn pump(
        &self,
        from: Place,
        to: Place,
        mut read: impl AsyncRead + Unpin,
        mut write: impl AsyncWrite + Unpin,
    ) {
        let mut bytes = vec![0; 32 << 10];
        while let Ok(length @ 1..) = read.read(&mut bytes).await {
            self.pass(from, to).await;
            if self.takes_answer(from, to) || write.write_all(&bytes[..length]).await.is_err() {
                return;
            }
        }
    }

    /// Carries gossip: nodes listen at the second addresses, and know each other by those of the sockets.
    pub fn gossip(self: &Arc<Self>, nodes: Vec<(UdpSocket, SocketAddr)>) {
        let nodes = Arc::new(nodes);
        for to in 0..nodes.len() {
            let (lines, nodes) = (Arc::clone(self), Arc::clone(&nodes));
            tokio::spawn(async move {
                let mut bytes = vec![0; 64 << 10];
                loop {
                    // A port that nobody listens at now is said with the next datagram.
                    let Ok((length, sender)) = nodes[to].0.recv_from(&mut bytes).await else { continue };
                    let Some(from) = nodes.iter().position(|(_, listens)| *listens == sender) else {
                        continue;
                    };
                    if !lines.line(from, to).is_cut {
                        nodes[from].0.send_to(&bytes[..length], nodes[to].1).await.ok();
                    }
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    tokio::io::copy(&mut read, &mut write).await.ok();
                });
            }
        });
        address
    }

    async fn answer(stream: &mut TcpStream) -> std::io::Result<u8> {
        stream.write_u8(7).await?;
        stream.read_u8().await
    }

    #[tokio::test]
    async fn a_line_holds_loses_and_lets_through_what_it_is_told_to() {
        let lines = Lines::new();
        let begin = lines.connect(0, 1, echo().await).await.unwrap();
        let mut stream = TcpStream::connect(begin).await.unwrap();
        assert_eq!(answer(&mut stream).await.unwrap(), 7);
        // One way is enough to stop an answer, and it comes when the line is mended.
        for (from, to) in [(0, 1), (1, 0)] {
            lines.cut(from, to);
            let held = tokio::time::timeout(Duration::from_millis(150), answer(&mut stream)).await;
            assert!(held.is_err(), "{from} {to}: {held:?}");
            lines.mend_all();
            assert_eq!(stream.read_u8().await.unwrap(), 7);
        }
        lines.lose_answer(0, 1);
        assert!(answer(&mut stream).await.is_err(), "the answer came");
        let mut stream = TcpStream::connect(begin).await.unwrap();
        assert_eq!(answer(&mut stream).await.unwrap(), 7, "one answer was to be lost");
    }
}
