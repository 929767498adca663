//! Nodes that name things together, over real connections.

use std::{collections::BTreeSet, path::Path};

use metaflow_actors::{
    dictionary::{Config, Digest},
    disk::Disk,
};
use metaflow_wire::node_service_server::NodeServiceServer;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tokio_stream::wrappers::TcpListenerStream;

use super::*;
use crate::grpc::{Trust, nodes::Nodes};

/// A node's dictionary, its service, and its way to the others.
struct Member {
    dictionary: Dictionary,
    tasks: Vec<JoinHandle<()>>,
    guides: watch::Sender<Arc<Guide>>,
}

impl Member {
    fn start(folder: &Path, node: u16, secret: Option<Secret>) -> Self {
        let own = NodeId::new(node).unwrap();
        let disk = Disk::open(folder).unwrap();
        let dictionary = Dictionary::open(disk, Config::new(own), &HashMap::new()).unwrap();
        let (guides, receiver) = watch::channel(Arc::default());
        let peers = Peers::new(own, receiver, secret, None);
        dictionary.set_owners(Arc::new(peers.clone()));
        let tasks = vec![tokio::spawn(peers.keep_alike(dictionary.clone()))];
        Self { dictionary, tasks, guides }
    }

    fn serve(&mut self, listener: TcpListener, secret: Option<Secret>) {
        let nodes = Nodes {
            dictionary: self.dictionary.clone(),
            trust: Trust::new(secret, true),
            parts: None,
            engine: None,
            copies: None,
            pages: axum::Router::new(),
        };
        let nodes = NodeServiceServer::new(nodes);
        let serving = tonic::transport::Server::builder()
            .add_service(nodes)
            .serve_with_incoming(TcpListenerStream::new(listener));
        self.tasks.push(tokio::spawn(async move { serving.await.unwrap() }));
    }

    async fn ids(&self, names: &[String]) -> Vec<u32> {
        let (dictionary, names) = (self.dictionary.clone(), names.to_vec());
        let asking = tokio::task::spawn_blocking(move || {
            let wanted: Vec<_> = names.iter().map(|name| (Kind::Endpoint, name.as_str())).collect();
            dictionary.ids(&wanted).unwrap()
        });
        asking.await.unwrap()
    }

    fn digests(&self) -> Vec<Digest> {
        PartitionId::all().map(|partition| self.dictionary.digest(partition)).collect()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Two members that know each other, and their sockets.
async fn two(folders: [&Path; 2], secrets: [Option<Secret>; 2]) -> ([Member; 2], [TcpListener; 2]) {
    let bind = async || TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listeners = [bind().await, bind().await];
    let [first, second] = secrets;
    let members = [Member::start(folders[0], 1, first), Member::start(folders[1], 2, second)];
    let address = |at: usize| listeners[at].local_addr().unwrap();
    let guide = Guide::of(&[(NodeId::new(1).unwrap(), address(0)), (NodeId::new(2).unwrap(), address(1))]);
    let guide = Arc::new(guide);
    for member in &members {
        member.guides.send_replace(Arc::clone(&guide));
    }
    (members, listeners)
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting)
        .await
        .unwrap_or_else(|_| panic!("waited for {what}"));
}

fn names(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|number| format!("/path/{number}")).collect()
}

fn nodes_of(ids: &[u32]) -> BTreeSet<u32> {
    ids.iter().map(|id| id >> 22).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_gets_one_id_from_its_owner_whichever_node_meets_it_first() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let ([mut one, mut two], [first, second]) =
        two([folders[0].path(), folders[1].path()], [None, None]).await;
    one.serve(first, None);
    two.serve(second, None);
    let names = names(0..400);
    let (here, there) = tokio::join!(one.ids(&names), two.ids(&names));
    assert_eq!(here, there);
    assert_eq!(nodes_of(&here), [1, 2].into(), "both own some");
    assert!(one.dictionary.stats().iter().chain(&two.dictionary.stats()).all(|stats| stats.aliases == 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_were_given_apart_become_one_when_the_nodes_meet() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let ([mut one, mut two], [first, second]) =
        two([folders[0].path(), folders[1].path()], [None, None]).await;
    let addresses = [first, second].map(|listener| listener.local_addr().unwrap());
    // Nothing listens any more. (A question that waited at a socket would be answered late, with an alias.)
    let (some, others) = (names(0..300), names(200..500));
    let (here, there) = tokio::join!(one.ids(&some), two.ids(&others));
    assert_eq!((nodes_of(&here), nodes_of(&there)), ([1].into(), [2].into()), "labelling goes on alone");
    one.serve(TcpListener::bind(addresses[0]).await.unwrap(), None);
    two.serve(TcpListener::bind(addresses[1]).await.unwrap(), None);
    until("both nodes to know the same", || one.digests() == two.digests()).await;
    let all = names(0..500);
    assert_eq!(one.ids(&all).await, two.ids(&all).await);
    let aliases = |member: &Member| member.dictionary.stats()[0].aliases;
    assert_eq!((aliases(&one), aliases(&two)), (100, 100), "for what both had named");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_know_the_secret_learns_nothing_and_names_alone() {
    let folder = tempfile::tempdir().unwrap();
    let secret = |name: &str| {
        let file = folder.path().join(name);
        std::fs::write(&file, format!("{name} {}", "x".repeat(40))).unwrap();
        Some(Secret::load(file).unwrap())
    };
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let secrets = [secret("right"), secret("wrong")];
    let ([mut one, two], [first, _second]) = two([folders[0].path(), folders[1].path()], secrets).await;
    one.serve(first, secret("right"));
    assert_eq!(nodes_of(&two.ids(&names(0..100)).await), [2].into());
    assert!(one.dictionary.stats().is_empty(), "nothing was named or learnt for it");
}
