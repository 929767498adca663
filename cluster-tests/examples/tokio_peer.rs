//! A program to be traced: tasks of tokio on several threads. `front PORT BACKEND` serves HTTP and asks a gRPC server over one connection of
//! all, `back PORT` is that server. The path says which trace a request is of.

use std::{convert::Infallible, net::SocketAddr, task};

use anyhow::{Context as _, Result, bail};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tonic::{
    Request, Response, Status,
    body::Body,
    client::Grpc,
    codegen::{
        BoxFuture, Service,
        http::{self, uri::PathAndQuery},
    },
    server::{NamedService, UnaryService},
    transport::{Channel, Server},
};
use tonic_prost::ProstCodec;

#[tokio::main(flavor = "multi_thread", worker_threads = 4)]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let address = |port: &str| -> Result<SocketAddr> { Ok(format!("127.0.0.1:{port}").parse()?) };
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["front", port, backend] => front(address(port)?, address(backend)?).await,
        ["back", port] => Ok(Server::builder().add_service(Peer).serve(address(port)?).await?),
        _ => bail!("front PORT BACKEND or back PORT"),
    }
}

async fn front(address: SocketAddr, backend: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(address).await?;
    let channel = Channel::from_shared(format!("http://{backend}"))?.connect().await?;
    loop {
        let (stream, _) = listener.accept().await?;
        let channel = channel.clone();
        // A client that goes away ends its task.
        tokio::spawn(async move { serve(stream, channel).await.ok() });
    }
}

async fn serve(mut stream: TcpStream, channel: Channel) -> Result<()> {
    let mut buffer = vec![0; 4_096];
    loop {
        let mut length = 0;
        while !buffer[..length].ends_with(b"\r\n\r\n") {
            let read = stream.read(&mut buffer[length..]).await?;
            if read == 0 {
                return Ok(());
            }
            length += read;
        }
        let head = std::str::from_utf8(&buffer[..length])?;
        let target = head.split(' ').nth(1).context("no target")?;
        let number = target.rsplit('/').next().unwrap_or_default();
        let path = PathAndQuery::try_from(format!("/judging.Peer/t{number}"))?;
        let mut client = Grpc::new(channel.clone());
        client.ready().await?;
        let codec = ProstCodec::<String, String>::default();
        client.unary(Request::new(String::new()), path, codec).await?;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await?;
    }
}

/// Answers every method of the service.
#[derive(Clone)]
struct Peer;

impl NamedService for Peer {
    const NAME: &'static str = "judging.Peer";
}

impl Service<http::Request<Body>> for Peer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> task::Poll<Result<(), Infallible>> {
        task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move {
            let codec = ProstCodec::<String, String>::default();
            Ok(tonic::server::Grpc::new(codec).unary(Echo, request).await)
        })
    }
}

struct Echo;

impl UnaryService<String> for Echo {
    type Response = String;
    type Future = BoxFuture<Response<String>, Status>;

    fn call(&mut self, request: Request<String>) -> Self::Future {
        Box::pin(async move { Ok(Response::new(request.into_inner())) })
    }
}
