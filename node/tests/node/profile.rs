//! Flame data and events of processes: rows come in, a tree, a text and SQL come out.

use metaflow_wire::{Batch, Columns, FileEvent, InProcess, ProcessEvent, Table, columns::Rows, seal, seq};
use serde_json::json;

use crate::agents::now;
use crate::kit::{Node, acks_until, covers};

fn strings(texts: &[&str]) -> Vec<String> {
    std::iter::once("").chain(texts.iter().copied()).map(str::to_owned).collect()
}

/// 3 s and 1 s of computing, 5 s of waiting of `shop`, and 1 s of another process.
fn stacks(agent_id: u32, second: u64) -> Batch {
    let texts = [
        "shop",
        "on-cpu",
        "eBPF",
        "microseconds",
        "[t] shop;main;work;[k] read",
        "[t] shop;main",
        "off-cpu",
        "[t] shop;poll",
        "other",
    ];
    let rows = InProcess {
        pid: vec![7, 7, 7, 8],
        start_time: vec![(second - 5) * 1_000_000; 4],
        end_time: vec![second * 1_000_000; 4],
        app_service: vec![1, 1, 1, 9],
        profile_event_type: vec![2, 2, 7, 2],
        profile_language_type: vec![3; 4],
        profile_value_unit: vec![4; 4],
        profile_location_str: vec![5, 6, 8, 6],
        profile_value: vec![3_000_000, 1_000_000, 5_000_000, 1_000_000],
    };
    let columns = Columns { strings: strings(&texts), addresses: vec![], rows: Some(Rows::InProcess(rows)) };
    seal(agent_id, seq(1, 1), Table::InProcess, 4, &columns)
}

fn slow_file(agent_id: u32, second: u64) -> Batch {
    let rows = FileEvent {
        pid: vec![7],
        start_time: vec![second * 1_000_000],
        end_time: vec![second * 1_000_000 + 25_000],
        event_type: vec![1],
        process_kname: vec![2],
        file_dir: vec![3],
        file_name: vec![4],
        bytes: vec![4_096],
        duration: vec![25_000],
        ..FileEvent::default()
    };
    let texts = strings(&["read", "shop", "/var/lib/shop", "orders.db"]);
    let columns = Columns { strings: texts, addresses: vec![], rows: Some(Rows::FileEvent(rows)) };
    seal(agent_id, seq(1, 2), Table::FileEvent, 1, &columns)
}

fn killed(agent_id: u32, second: u64) -> Batch {
    let rows = ProcessEvent {
        pid: vec![7, 7],
        time: vec![second * 1_000_000; 2],
        event_type: vec![1, 2],
        process_kname: vec![3, 3],
        signal: vec![0, 9],
        signal_name: vec![0, 4],
        exit_code: vec![0, 0],
        duration: vec![0, 60_000_000],
        ..ProcessEvent::default()
    };
    let texts = strings(&["oom", "exit", "shop", "SIGKILL"]);
    let columns = Columns { strings: texts, addresses: vec![], rows: Some(Rows::ProcessEvent(rows)) };
    seal(agent_id, seq(1, 3), Table::ProcessEvent, 2, &columns)
}

#[tokio::test]
async fn time_files_and_ends_of_processes_are_answered_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path()).await;
    let agent_id = node.agent_id("machine-1").await;
    let (sender, mut acks) = node.ingest().await;
    let second = now();
    for batch in [stacks(agent_id, second), slow_file(agent_id, second), killed(agent_id, second)] {
        let number = batch.seq;
        sender.send(batch).await.unwrap();
        acks_until(&mut acks, |ack| covers(&ack.committed, number)).await;
    }
    flame_data(&node).await;
    sql(&node).await;
    commands(&node).await;
    assert_eq!(node.terminate().await, Some(0));
}

async fn flame_data(node: &Node) {
    let post = async |body: serde_json::Value| {
        let request = node.http.post(format!("{}/v1/profile/ProfileTracing", node.url)).json(&body);
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json::<serde_json::Value>().await.unwrap())
    };
    let (status, answer) = post(
        json!({ "app_service": "shop", "profile_event_type": "on-cpu", "profile_language_type": "eBPF" }),
    )
    .await;
    let data = &answer["DATA"];
    assert_eq!((status, &data["functions"]), (200, &json!(["shop", "[t] shop", "main", "work", "[k] read"])));
    let million =
        |numbers: [[i64; 4]; 5]| numbers.map(|[a, b, own, all]| [a, b, own * 1_000_000, all * 1_000_000]);
    assert_eq!(
        data["node_values"]["values"],
        json!(million([[0, -1, 0, 4], [1, 0, 0, 4], [2, 1, 1, 4], [3, 2, 0, 3], [4, 3, 3, 3]]))
    );
    let (_, waits) = post(json!({ "app_service": "shop", "profile_event_type": "off-cpu" })).await;
    assert_eq!(waits["DATA"]["functions"], json!(["shop", "[t] shop", "poll"]));
    let (_, one) = post(json!({ "tag_filter": "pid = 8" })).await;
    assert_eq!(one["DATA"]["functions"], json!(["Total", "[t] shop", "main"]));
    let (_, none) = post(json!({ "app_service": "shop", "time_end": 1_000 })).await;
    assert_eq!(none["DATA"]["functions"], json!(["shop"]));
    let (status, refused) = post(json!({ "tag_filter": "nonsense = 1" })).await;
    assert!(status == 400 && refused["DESCRIPTION"].as_str().unwrap().contains("nonsense"), "{refused}");

    let page = format!("{}/v1/profile/folded?app_service=shop", node.url);
    let text = node.http.get(page).send().await.unwrap().text().await.unwrap();
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["shop;[t] shop;main 1000000", "shop;[t] shop;main;work;[k] read 3000000"]);
}

async fn sql(node: &Node) {
    let sql = "SELECT app_service, profile_event_type, Sum(profile_value) AS value FROM in_process WHERE time > now() - 600 \
               GROUP BY app_service, profile_event_type ORDER BY value DESC";
    let rows = node.sql("profile", sql).await.rows();
    assert_eq!(
        (&rows[0][0], &rows[0][1], rows[0][2].as_f64()),
        (&json!("shop"), &json!("off-cpu"), Some(5e6))
    );
    let sql = "SELECT file_dir, file_name, event_type, bytes, duration, host FROM file_event WHERE duration > 10000";
    let rows = node.sql("event", sql).await.rows();
    assert_eq!(rows[0][..3], [json!("/var/lib/shop"), json!("orders.db"), json!("read")]);
    assert_eq!((rows[0][3].as_f64(), rows[0][4].as_f64()), (Some(4096.0), Some(25_000.0)));
    // A process that is not known is one of the agent's host.
    assert_eq!(rows[0][5], "machine-1-host");
    let sql =
        "SELECT event_type, process_kname, signal_name FROM process_event WHERE pid = 7 ORDER BY event_type";
    let rows = node.sql("event", sql).await.rows();
    assert_eq!(
        rows,
        [[json!("exit"), json!("shop"), json!("SIGKILL")], [json!("oom"), json!("shop"), json!("")]]
    );
}

async fn commands(node: &Node) {
    for (arguments, code, part) in [
        (&["profile", "shop"][..], 0, "[k] read"),
        (&["profile", "shop", "--folded"], 0, "shop;[t] shop;main;work;[k] read 3000000"),
        (&["profile", "shop", "--event", "off-cpu", "-o", "csv"], 0, "5.00s,100.0,5.00s,100.0,poll"),
        (&["profile", "--where", "pid = 8", "--folded"], 0, "Total;[t] shop;main 1000000"),
        (&["profile", "nobody"], 3, "no on-cpu time of nobody"),
    ] {
        let (status, text) = node.ctl(arguments).await;
        assert_eq!(status, Some(code), "{arguments:?}: {text}");
        assert!(text.contains(part), "{arguments:?}: {text}");
    }
}
