//! Encryption and tokens: who is let in, who is not, and what they are told.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Instant,
};

use metaflow_tls::{Client, ClientFiles, HTTP_1, HTTP_2, Identity};
use metaflow_wire::{
    ForwardRequest, Hello, LearnRequest, PROTOCOL_VERSION, SyncRequest, TellDocumentsRequest,
    agent_service_client::AgentServiceClient, fleet_service_client::FleetServiceClient,
    node_service_client::NodeServiceClient, sync_request,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, Command},
};
use tonic::transport::{Channel, Endpoint};

use crate::kit::{Node, PATIENCE, configure, program};

/// A node with certificates and tokens, and who may speak to it.
struct Secured {
    _child: Child,
    folder: PathBuf,
    http_port: u16,
    grpc_port: u16,
    read: String,
    admin: String,
}

/// Exit code and what was printed.
async fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(program());
    let output = command.args(arguments).kill_on_drop(true).output();
    let output = tokio::time::timeout(PATIENCE, output).await.expect("it ends").unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

fn port(url: &str) -> u16 {
    url.rsplit_once(':').unwrap().1.parse().unwrap()
}

async fn token(file: &Path, name: &str, scope: &str) -> String {
    let file = file.to_str().unwrap();
    let (code, text) =
        run(&["ctl", "token", "create", "--name", name, "--scope", scope, "--file", file]).await;
    assert_eq!(code, Some(0), "{text}");
    text.trim().to_owned()
}

async fn bootstrap(directory: &Path) {
    let directory = directory.to_str().unwrap();
    let (code, text) =
        run(&["ctl", "cert", "bootstrap", "--directory", directory, "--node", "n1", "--agents"]).await;
    assert_eq!(code, Some(0), "{text}");
}

impl Secured {
    async fn start(folder: &Path) -> Self {
        let tls = folder.join("tls");
        bootstrap(&tls).await;
        let tokens = folder.join("tokens.toml");
        let (read, admin) = (token(&tokens, "reader", "read").await, token(&tokens, "root", "admin").await);
        let (file, http, grpc) = configure(folder);
        let text = std::fs::read_to_string(&file).unwrap();
        let text = text.replace("[http]\n", &format!("[http]\ntokens_file = {tokens:?}\n"));
        let text = format!(
            "{text}[tls]\ncertificate = {:?}\nkey = {:?}\nclient_authority = {:?}\n",
            tls.join("n1.crt"),
            tls.join("n1.key"),
            tls.join("ca.crt")
        );
        std::fs::write(&file, text).unwrap();
        let child = Command::new(program())
            .args(["node", "--config"])
            .arg(&file)
            .stderr(Stdio::from(std::fs::File::create(folder.join("log")).unwrap()))
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let node = Self {
            _child: child,
            folder: folder.to_owned(),
            http_port: port(&http),
            grpc_port: port(&grpc),
            read,
            admin,
        };
        let deadline = Instant::now() + PATIENCE;
        while !matches!(node.try_get("/health/ready", None).await, Some(answer) if answer.contains(" 200 ")) {
            assert!(Instant::now() < deadline, "the node is not ready: {}", node.log());
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        node
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    fn client(&self, folder: &str, identity: bool, protocol: &'static [u8]) -> Client {
        let folder = self.folder.join(folder);
        let identity = identity
            .then(|| Identity { certificate: folder.join("agent.crt"), key: folder.join("agent.key") });
        Client::load(ClientFiles { authority: folder.join("ca.crt"), identity }, protocol).unwrap()
    }

    async fn try_get(&self, path: &str, token: Option<&str>) -> Option<String> {
        self.ask("GET", path, token).await
    }

    /// Head and body of an answer over HTTPS; none while nobody listens.
    async fn ask(&self, method: &str, path: &str, token: Option<&str>) -> Option<String> {
        let client = self.client("tls", false, HTTP_1);
        let mut stream = client.connect("127.0.0.1", self.http_port).await.ok()?;
        let token = token.map_or_else(String::new, |token| format!("authorization: Bearer {token}\r\n"));
        let request = format!("{method} {path} HTTP/1.1\r\nhost: n1\r\nconnection: close\r\n{token}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok();
        Some(String::from_utf8_lossy(&answer).into_owned())
    }

    /// Says Hello over an encrypted connection.
    async fn hello(&self, client: &Client) -> Result<(), String> {
        let endpoint = Endpoint::from_shared(format!("https://127.0.0.1:{}", self.grpc_port)).unwrap();
        let channel = endpoint.connect_with_connector(client.connector()).await;
        say_hello(channel.map_err(|error| format!("{:?}", error))?).await
    }
}

async fn say_hello(channel: Channel) -> Result<(), String> {
    let hello = Hello {
        protocol_version: PROTOCOL_VERSION,
        machine_id: "m".to_owned(),
        hostname: "h".to_owned(),
        agent_version: "0.0.0".to_owned(),
        ..Default::default()
    };
    let request = SyncRequest { body: Some(sync_request::Body::Hello(hello)) };
    let answers = AgentServiceClient::new(channel).sync(tokio_stream::once(request)).await;
    let mut answers = answers.map_err(|status| format!("{status:?}"))?.into_inner();
    answers.message().await.map(drop).map_err(|status| format!("{status:?}"))
}

#[tokio::test]
async fn only_those_with_certificate_and_token_are_let_in() {
    let folder = tempfile::tempdir().unwrap();
    let node = Secured::start(folder.path()).await;
    agents(&node).await;
    requests(&node).await;
    commands(&node).await;

    let metrics = node.try_get("/metrics", Some(&node.read)).await.unwrap();
    for name in [
        "metaflow_tls_certificate_end_seconds",
        "http_requests_unauthorized_total{reason=\"no_token\"}",
        "http_requests_unauthorized_total{reason=\"unknown_token\"}",
        "http_requests_unauthorized_total{reason=\"scope\"}",
        "connections_refused_total{listener=\"Grpc\",reason=\"handshake\"}",
        "connections_refused_total{listener=\"Grpc\",reason=\"plain_text\"}",
        "connections_refused_total{listener=\"Http\",reason=\"plain_text\"}",
    ] {
        assert!(metrics.contains(name), "{name} is not in\n{metrics}");
    }
    let log = node.log();
    for secret in [&node.read, &node.admin, "mf_wrong", "PRIVATE KEY"] {
        assert!(!log.contains(secret), "{log}");
    }
}

async fn agents(node: &Secured) {
    node.hello(&node.client("tls", true, HTTP_2)).await.unwrap();
    let without = node.hello(&node.client("tls", false, HTTP_2)).await.unwrap_err();
    assert!(without.contains("CertificateRequired"), "{without}");
    bootstrap(&node.folder.join("other")).await;
    let strange = node.hello(&node.client("other", true, HTTP_2)).await.unwrap_err();
    assert!(strange.contains("UnknownIssuer"), "{strange}");
    let plain = Endpoint::from_shared(format!("http://127.0.0.1:{}", node.grpc_port)).unwrap();
    let refused = match plain.connect().await {
        Ok(channel) => say_hello(channel).await.unwrap_err(),
        Err(error) => format!("{error:?}"),
    };
    assert!(refused.contains("this node speaks TLS"), "{refused}");
}

async fn requests(node: &Secured) {
    for (method, path, token, status, part) in [
        ("GET", "/health/live", None, 200, "alive"),
        ("GET", "/metrics", None, 401, "scope read"),
        ("GET", "/metrics", Some("mf_wrong"), 401, "scope read"),
        ("GET", "/metrics", Some(node.read.as_str()), 200, "metaflow_uptime_seconds"),
        ("GET", "/v1/query?sql=SHOW%20TABLES", None, 401, "\"OPT_STATUS\":\"UNAUTHORIZED\""),
        ("GET", "/v1/query?sql=SHOW%20TABLES", Some(&node.read), 200, "l7_flow_log"),
        ("DELETE", "/v1/agents", Some(&node.read), 403, "does not have the scope admin"),
        ("DELETE", "/v1/agents", Some(&node.admin), 405, ""),
        ("GET", "/v1/status", Some(&node.admin), 200, "\"ready\":true"),
    ] {
        let answer = node.ask(method, path, token).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{method} {path}: {answer}");
        assert!(answer.contains(part), "{method} {path}: {answer}");
        assert_eq!(answer.contains("www-authenticate: Bearer"), status == 401, "{answer}");
    }
}

async fn commands(node: &Secured) {
    let (http, https) =
        (format!("http://127.0.0.1:{}", node.http_port), format!("https://127.0.0.1:{}", node.http_port));
    let (ca, other) = (node.folder.join("tls/ca.crt"), node.folder.join("other/ca.crt"));
    let (ca, other) = (ca.to_str().unwrap(), other.to_str().unwrap());
    let query = &["ctl", "query", "SHOW TABLES"];
    for (arguments, code, part) in [
        (&["--url", &https, "--ca", ca, "--token", &node.read][..], 0, "l7_flow_log"),
        (&["--url", &https, "--ca", ca], 1, "scope read"),
        (&["--url", &https, "--ca", ca, "--token", "mf_wrong"], 1, "not known"),
        (&["--url", &https, "--ca", other, "--token", &node.read], 2, "UnknownIssuer"),
        (&["--url", &https, "--token", &node.read], 1, "--ca"),
        (&["--url", &http, "--token", &node.read], 1, "https://"),
    ] {
        let (exit, text) = run(&[query, arguments].concat()).await;
        assert_eq!(exit, Some(code), "{arguments:?}: {text}");
        assert!(text.contains(part), "{arguments:?}: {text}");
    }
}

#[tokio::test]
async fn a_node_that_would_be_open_to_strangers_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    for (settings, part) in [
        ("[grpc]\nlisten = \"0.0.0.0:0\"", "tls.certificate"),
        ("[http]\nlisten = \"0.0.0.0:0\"", "insecure = true"),
        (
            "[http]\nlisten = \"0.0.0.0:0\"\n[tls]\ncertificate = \"/none.crt\"\nkey = \"/none.key\"",
            "http.tokens_file",
        ),
        ("[tls]\ncertificate = \"/none.crt\"\nkey = \"/none.key\"", "/none.crt"),
        ("[http]\ntokens_file = \"/none.toml\"", "/none.toml"),
        ("[cluster]\nsecret_file = \"/none.secret\"", "/none.secret"),
    ] {
        let file = folder.path().join("node.toml");
        std::fs::write(&file, format!("data_dir = {data:?}\n{settings}\n")).unwrap();
        let (code, text) = run(&["node", "--config", file.to_str().unwrap()]).await;
        assert_eq!(code, Some(1), "{settings}: {text}");
        assert!(text.contains(part), "{settings}: {text}");
    }
    assert!(!data.exists());
}

/// Nobody else is a node there: who can connect as an agent must not ask or set what only nodes may.
#[tokio::test]
async fn a_node_that_is_alone_answers_no_call_between_nodes() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path()).await;
    let channel = Endpoint::new(node.grpc.clone()).unwrap().connect().await.unwrap();
    let mut nodes = NodeServiceClient::new(channel.clone());
    let mut fleet = FleetServiceClient::new(channel);
    let refused = [
        nodes.forward(ForwardRequest::default()).await.map(drop).unwrap_err(),
        nodes.learn(LearnRequest::default()).await.map(drop).unwrap_err(),
        fleet.tell_documents(TellDocumentsRequest::default()).await.map(drop).unwrap_err(),
    ];
    for status in refused {
        assert_eq!(status.code(), tonic::Code::Unauthenticated, "{status}");
        assert!(status.message().contains("cluster.secret_file"), "{status}");
    }
}
