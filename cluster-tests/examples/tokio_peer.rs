//! A program to be traced: tasks of tokio on several threads. `front PORT BACKEND` serves HTTP (axum) and asks a gRPC server (tonic) over one
//! connection of all, `back PORT` is that server. The path says which trace a request is of.

use std::{convert::Infallible, net::SocketAddr, task};

use anyhow::{Result, bail};
use axum::{
    Router,
    extract::{Path, State},
    http::StatusCode,
    routing::get,
};
use tokio::net::TcpListener;
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
    let channel = Channel::from_shared(format!("http://{backend}"))?.connect().await?;
    let router = Router::new().route("/t/{number}", get(ask)).with_state(channel);
    Ok(axum::serve(TcpListener::bind(address).await?, router).await?)
}

async fn ask(State(channel): State<Channel>, Path(number): Path<String>) -> Result<&'static str, StatusCode> {
    let answer = async {
        let path = PathAndQuery::try_from(format!("/judging.Peer/t{number}"))?;
        let mut client = Grpc::new(channel);
        client.ready().await?;
        let codec = ProstCodec::<String, String>::default();
        client.unary(Request::new(String::new()), path, codec).await?;
        anyhow::Ok("ok")
    };
    answer.await.map_err(|_| StatusCode::BAD_GATEWAY)
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
