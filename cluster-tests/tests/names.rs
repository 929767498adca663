//! Every id in a stored row names something (D3), with real rows of real captures.

use std::time::Duration;

use anyhow::{Result, ensure};
use metaflow_cluster_tests::{
    corpus,
    process::{Node, Replay, number},
};
use metaflow_schema::{Role, TABLES};

#[tokio::test]
async fn every_stored_id_of_the_corpus_resolves_to_a_name() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut node = Node::start(&folder.path().join("node")).await?;
    let captures = ["http/httpv1.pcap", "dns/dns.pcap", "redis/redis.pcap", "mysql/171-mysql.pcap"];
    let agent = Replay {
        folder: &folder.path().join("agent"),
        server: node.grpc_address(),
        machine_id: "names",
        captures: captures.iter().map(|capture| corpus().join("packets").join(capture)).collect(),
        more_arguments: vec!["--at".into(), "now".into()],
    };
    agent.run(Duration::from_secs(60)).await?;
    let mut resolved = 0;
    for table in TABLES.iter().filter(|table| table.database != "flow_tag") {
        for column in (table.columns)() {
            if !matches!(column.role, Role::Dictionary(_)) {
                continue;
            }
            let tag = column.name.replace("_id", "");
            let sql = format!(
                "SELECT {}, {tag} FROM `{}` GROUP BY {}, {tag} LIMIT 10000",
                column.name, table.name, column.name
            );
            for row in node.sql(table.database, &sql).await? {
                let id = number(row.first()).unwrap_or(0.0);
                let name = row[1].as_str().unwrap_or_default();
                ensure!(id == 0.0 || !name.is_empty(), "{}.{}: id {id} has no name", table.name, column.name);
                resolved += usize::from(id != 0.0);
            }
        }
    }
    ensure!(resolved > 30, "only {resolved} ids were seen: the check saw nothing");
    node.terminate().await
}
