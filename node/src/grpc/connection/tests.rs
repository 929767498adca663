//! Connections before they are served.

use std::sync::Arc;

use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

use super::{Door, Opening, accept};
use crate::metrics::Connections;

#[tokio::test]
async fn nothing_is_done_for_agents_that_gave_up_before_their_turn() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let metrics = Connections::default();
    let door = Door { tls: None, connections_max: 2, metrics: metrics.clone() };
    let opening = Opening { door, handshakes: Semaphore::new(1) };
    let room = Arc::new(Semaphore::new(2));
    let connect = async || {
        let mut agent = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        agent.write_all(b"PRI * HTTP/2.0").await.unwrap();
        let permit = Arc::clone(&room).acquire_owned().await.unwrap();
        (agent, accept(&listener).await, permit)
    };

    let (agent, stream, permit) = connect().await;
    drop(agent);
    assert!(opening.open(stream, permit).await.is_none());
    assert_eq!(metrics.refused("gave_up"), 1);
    assert_eq!(room.available_permits(), 2);

    let (_agent, stream, permit) = connect().await;
    assert!(opening.open(stream, permit).await.is_some(), "one that waits is served");
    assert_eq!(metrics.refused("gave_up"), 1);
}
