//! The HTTP interface: SQL, health, metrics, and what it says to nonsense.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::kit::{Node, program};

#[tokio::test]
async fn sql_health_and_metrics_answer_and_nonsense_gets_a_clear_error() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path()).await;

    let tables = node.sql("", "SHOW TABLES").await;
    assert_eq!((tables.status, tables.body["OPT_STATUS"].as_str()), (200, Some("SUCCESS")));
    assert!(tables.rows().iter().any(|row| row[0] == "l7_flow_log"), "{tables:?}");
    let empty = node
        .sql(
            "flow_metrics",
            "SELECT auto_service_1, Sum(request) AS requests FROM application GROUP BY auto_service_1",
        )
        .await;
    assert_eq!(empty.body["result"]["columns"], serde_json::json!(["auto_service_1", "requests"]));
    assert_eq!(empty.body["result"]["schemas"][1]["type"], 1);
    assert!(empty.rows().is_empty());

    let deep = format!("SELECT {}1{} FROM application", "(".repeat(5000), ")".repeat(5000));
    let long = format!("SELECT '{}' FROM application", "x".repeat(70_000));
    for (sql, part) in [
        ("SELECT nonsense FROM application", "nonsense"),
        ("SELECT * FROM url('http://127.0.0.1/')", "line 1"),
        ("DROP TABLE flow_log.l7_flow_log", "DROP"),
        ("SELECT 1; SELECT 2", ""),
        ("\u{0}\u{202e}'\"`", ""),
        (&deep, ""),
        (&long, ""),
    ] {
        let answer = node.sql("flow_metrics", sql).await;
        assert_eq!(answer.status, 400, "{answer:?}");
        assert_eq!(answer.body["OPT_STATUS"], "INVALID_PARAMETERS");
        let description = answer.description();
        assert!(!description.is_empty() && description.contains(part), "{part}: {description}");
    }

    nonsense_bodies(&node).await;
    raw_nonsense(&node).await;
    assert!(node.metric("metaflow_queries_total{outcome=\"Refused\"}").await >= 7.0);
    assert!(node.metric("metaflow_query_seconds_count").await >= 9.0);
    pages(&node).await;
    commands(&node).await;
    assert_eq!(node.terminate().await, Some(0));
}

/// Bodies that are no question, and the two forms of those that are.
async fn nonsense_bodies(node: &Node) {
    let post = |content_type: &'static str, body: Vec<u8>| {
        node.http
            .post(format!("{}/v1/query/", node.url))
            .header("content-type", content_type)
            .body(body)
            .send()
    };
    const FORM: &str = "application/x-www-form-urlencoded";
    for (content_type, body, status) in [
        (FORM, b"".to_vec(), 400),
        (FORM, b"sql=%ff%fe&&&=".to_vec(), 400),
        ("application/json", b"{\"sql\":".to_vec(), 400),
        ("application/json", b"[]".to_vec(), 400),
        ("text/plain", b"SELECT".to_vec(), 400),
    ] {
        let answer = post(content_type, body).await.unwrap();
        assert_eq!(answer.status(), status, "{content_type}");
        assert!(answer.text().await.unwrap().contains("DESCRIPTION"));
    }
    // Who sends more than is read may lose the answer with the connection, which is not used again.
    let large = node.http.post(format!("{}/v1/query/", node.url)).header("connection", "close");
    if let Ok(answer) = large.header("content-type", FORM).body(vec![b'a'; 1 << 20]).send().await {
        assert_eq!(answer.status(), 413);
    }
    let json = post("application/json", b"{\"sql\":\"SHOW TABLES\"}".to_vec()).await.unwrap();
    assert_eq!(json.status(), 200);
}

/// Every page there is, and one that is not.
async fn pages(node: &Node) {
    for (path, status, part) in [
        ("/", 200, "/v1/query/"),
        ("/health/live", 200, "alive"),
        ("/health/ready", 200, "ready"),
        ("/v1/status", 200, "\"ready\":true"),
        ("/v1/agents", 200, "[]"),
        ("/nothing", 404, "nothing"),
    ] {
        let answer = node.http.get(format!("{}{path}", node.url)).send().await.unwrap();
        assert_eq!(answer.status(), status, "{path}");
        assert!(answer.text().await.unwrap().contains(part), "{path}");
    }
}

/// Bytes that are not HTTP close their connection and nothing else.
async fn raw_nonsense(node: &Node) {
    let address = node.url.trim_start_matches("http://");
    for bytes in [
        &b"\x16\x03\x01\x02\x00"[..],
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/query/ HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // A reset is an answer too.
        stream.read_to_end(&mut answer).await.ok();
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"), "{answer:?}");
    }
}

/// The commands of `ctl` and their exit codes.
async fn commands(node: &Node) {
    for (arguments, code, part) in [
        (&["query", "SHOW TABLES", "-o", "csv"][..], 0, "l7_flow_log"),
        (&["query", "SELECT nonsense FROM application"], 1, "nonsense"),
        (&["top", "--once"], 3, "SERVICE"),
        (&["agent", "list"], 0, "no agents"),
        (&["status"], 0, "1 of 1 nodes ready, 0 agents"),
        (&["member", "list"], 0, "NODE  NAME"),
        (&["member", "list", "-o", "wide"], 0, "GENERATION"),
        (&["member", "list", "-o", "json"], 0, "\"state\": \"ready\""),
        (&["status", "-o", "yaml"], 0, "ready: true"),
        (&["--member", "n1", "status", "-o", "wide"], 0, "MEMORY"),
        (&["--member", "n7", "status"], 1, "there are n1"),
        (&["member", "show", "n1"], 0, "state"),
        (&["member", "reachability"], 0, "FROM"),
        (&["member", "drain", "n1", "--dry-run"], 4, "last ready node"),
        (&["member", "drain", "n1"], 4, "--force"),
        (&["member", "remove", "1"], 4, "not dead"),
        (&["member", "show", "a/b"], 1, "cannot stand"),
        (&["agent", "list", "-o", "json"], 0, "[]"),
        (&["member", "list", "--watch", "soon"], 1, "5s"),
        (&["conquer"], 1, "conquer"),
        (&["query", "SHOW TABLES", "--url", "http://127.0.0.1:1"], 2, "no node answers"),
    ] {
        let output = tokio::process::Command::new(program())
            .arg("ctl")
            .args(arguments)
            .env("METAFLOW_URL", &node.url)
            .output()
            .await
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        assert!(text.contains(part), "{arguments:?}: {text}");
    }
}
