//! Real peers (the h2 crate on both sides) and an observer that joins at any point: what it says of a request is true or missing.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use anyhow::{Context as _, Result};
use h2::{client, server};
use http::{Request, Response};
use metaflow_agent::session::{Config, Conversation, Direction, Segment, Session, Transport};
use metaflow_schema::enums::ResponseStatus;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

const REQUESTS: usize = 40;

/// What was written, by whom, in the order of writing.
type Said = Arc<Mutex<Vec<(Direction, Vec<u8>)>>>;

/// A stream that writes down what goes out of it.
struct Tapped {
    inner: DuplexStream,
    direction: Direction,
    said: Said,
}

impl AsyncRead for Tapped {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for Tapped {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, buf);
        if let Poll::Ready(Ok(count)) = &written {
            self.said.lock().expect("no writer panicked").push((self.direction, buf[..*count].to_vec()));
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// Few values, so that the tables are used; status, host and path tell each other.
fn path(request: usize) -> String {
    format!("/orders/{}", request % 7)
}

fn status(path: &str) -> u16 {
    if path.ends_with('3') { 404 } else { 200 }
}

/// A conversation of two peers.
async fn converse() -> Result<Vec<(Direction, Vec<u8>)>> {
    let said = Said::default();
    let (near, far) = tokio::io::duplex(1 << 20);
    let tap = |inner, direction| Tapped { inner, direction, said: said.clone() };
    let serve = async move |io| {
        let mut connection = server::handshake(io).await?;
        while let Some(request) = connection.accept().await {
            let (request, mut respond) = request?;
            let path = request.uri().path().to_owned();
            let response = Response::builder()
                .status(status(&path))
                .header("x-request-id", format!("answer-of-{path}"))
                .header("server", "peer");
            let mut body = respond.send_response(response.body(())?, false)?;
            body.send_data(path.into(), true)?;
        }
        anyhow::Ok(())
    };
    let server = tokio::spawn(serve(tap(far, Direction::ToClient)));
    let (mut requests, connection) = client::handshake(tap(near, Direction::ToServer)).await?;
    let connection = tokio::spawn(connection);
    for request in 0..REQUESTS {
        let path = path(request);
        let asked = Request::builder()
            .uri(format!("http://shop{path}"))
            .header("user-agent", "peer/1")
            .header("x-request-id", format!("of-{path}"));
        requests = requests.ready().await?;
        let (response, _) = requests.send_request(asked.body(())?, true)?;
        let mut body = response.await?.into_body();
        while let Some(data) = body.data().await {
            data?;
        }
    }
    drop(requests);
    connection.await??;
    server.await??;
    let said = Arc::into_inner(said).context("both ends are closed")?;
    Ok(said.into_inner().expect("no writer panicked"))
}

/// Sessions of an observer who sees nothing before this write.
fn observe(said: &[(Direction, Vec<u8>)], first: usize) -> Vec<Session> {
    let mut conversation = Conversation::new(Transport::Tcp, 40_000, &Arc::new(Config::default()));
    let (mut sessions, mut next) = (Vec::new(), [1u32, 1]);
    for (time, (direction, bytes)) in said.iter().enumerate() {
        let tcp_seq = next[*direction as usize];
        next[*direction as usize] += bytes.len() as u32;
        if time >= first {
            let segment = Segment {
                timestamp: time as u64,
                direction: *direction,
                tcp_seq,
                payload: bytes,
                payload_length: bytes.len() as u32,
                gap: false,
            };
            conversation.segment(&segment, &mut sessions);
        }
    }
    conversation.finish(&mut sessions);
    sessions.into_iter().map(|session| *session).collect()
}

#[tokio::test]
async fn whatever_is_said_of_real_requests_is_true() -> Result<()> {
    let said = converse().await?;
    let mut known = 0;
    for first in 0..said.len() {
        let sessions = observe(&said, first);
        for session in &sessions {
            let nth = (session.request_id as usize - 1) / 2;
            let path = path(nth);
            let truth = |found: &str, expected: &str| found.is_empty() || found == expected;
            assert!(truth(&session.request_resource, &path), "{first} {nth} {session:?}");
            assert!(truth(&session.request_domain, "shop"), "{first} {session:?}");
            assert!(truth(&session.user_agent, "peer/1"), "{first} {session:?}");
            assert!(truth(&session.x_request_id_request, &format!("of-{path}")), "{first} {session:?}");
            assert!(
                truth(&session.x_request_id_response, &format!("answer-of-{path}")),
                "{first} {session:?}"
            );
            let code = session.response_code;
            assert!(code == 0 || code == i32::from(status(&path)), "{first} {session:?}");
            known += usize::from(!session.request_resource.is_empty());
        }
        if first == 0 {
            assert_eq!(sessions.len(), REQUESTS);
            assert_eq!(known, REQUESTS);
            let failed = sessions.iter().filter(|session| session.status == ResponseStatus::ClientError);
            assert_eq!(failed.count(), (0..REQUESTS).filter(|nth| status(&path(*nth)) == 404).count());
        }
    }
    assert!(known > REQUESTS);
    Ok(())
}
