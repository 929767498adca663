//! Bytes from a socket into a call's stream, and back.

use std::io;

use metaflow_wire::StoreBytes;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::tcp::{OwnedReadHalf, OwnedWriteHalf},
    sync::mpsc,
};
use tonic::Streaming;

/// Bytes of one message.
const CHUNK_BYTES: usize = 64 << 10;
/// Chunks on their way in one direction of a connection.
pub(super) const CHUNKS_MAX: usize = 4;

/// Reads the socket until its end or until nobody takes what comes.
pub(super) async fn out<T>(
    mut socket: OwnedReadHalf,
    chunks: mpsc::Sender<T>,
    wrap: impl Fn(StoreBytes) -> T,
) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let length = socket.read(&mut buffer).await?;
        if length == 0 || chunks.send(wrap(StoreBytes { bytes: buffer[..length].to_vec() })).await.is_err() {
            return Ok(());
        }
    }
}

/// Writes what comes into the socket, until the other side ends.
pub(super) async fn into(mut chunks: Streaming<StoreBytes>, mut socket: OwnedWriteHalf) -> io::Result<()> {
    while let Some(chunk) = chunks.message().await.map_err(io::Error::other)? {
        socket.write_all(&chunk.bytes).await?;
    }
    socket.shutdown().await
}
