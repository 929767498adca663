//! The third-party statements of `sql/dialect.sql`: which compile, and which do not and why.
//!
//! The corpus lies in the folder of `METAFLOW_CORPUS`, by default `../shared/corpus` beside the workspace.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeMap, fs, path::PathBuf};

use metaflow_query::{Request, compile};

/// Statements that are refused: a piece that only they have, the reason as the error says it, and why that is right.
const REFUSED: &[(&str, &str, &str)] = &[
    ("as `k8s.label.abc`", "no tag or metric k8s.label.", "labels are not collected yet"),
    ("as `k8s.annotation.abc`", "no tag or metric k8s.annotation.", "annotations are not collected yet"),
    ("group by `k8s.env.statefulset", "no tag or metric k8s.env.", "environments are not collected yet"),
    ("as `k8s.env.abc`", "no tag or metric k8s.env.", "environments are not collected yet"),
    ("`cloud.tag.xx_0`", "no tag or metric cloud.tag.xx_0", "cloud tags are not collected yet"),
    ("`metrics.xxx.yyy`", "no tag or metric metrics.xxx.yyy", "requests have no metrics of their own"),
    ("from cpu where `tag.abc`", "no table cpu", "no such table"),
    ("Percentile(`metrics.xxx`", "no table cpu", "no such table"),
    ("`deepflow_server.queue`", "no table deepflow_server.queue", "another system's own telemetry"),
    ("time(time,5,1,0)", "no table deepflow_agent_collect_sender", "another system's own telemetry"),
    ("time(time,120,1,0)", "no table deepflow_agent_collect_sender", "another system's own telemetry"),
    ("from deepflow_agent_queue", "no table deepflow_agent_queue", "another system's own telemetry"),
    ("from l7_packet", "no table l7_packet", "no such table"),
    (
        "topK(pod, 10) from `vtap_app_port.1h`",
        "no table vtap_app_port.1h",
        "tables are kept by second and minute",
    ),
    ("any(pod) from `vtap_app_port.1h`", "no table vtap_app_port.1h", "tables are kept by second and minute"),
    (
        "GROUP BY l2_vpc_1",
        "pod is selected but not grouped by",
        "a group has many pods, and none is the right one",
    ),
    (
        "host_hostname_id",
        "Unterminated string literal",
        "the line is damaged: several statements cut into one another",
    ),
    ("tag host_ip values", "no tag or metric host_ip", "hosts have one name"),
    ("tag chost_ip values", "no tag or metric chost_ip", "machines have one name"),
    ("FROM log WHERE", "no table log", "no such table"),
];

fn statements() -> Vec<String> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let corpus =
        std::env::var_os("METAFLOW_CORPUS").map_or_else(|| root.join("../shared/corpus"), PathBuf::from);
    let path = corpus.join("sql/dialect.sql");
    let text = fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}; METAFLOW_CORPUS names the corpus", path.display()));
    text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect()
}

#[test]
fn statements_of_the_corpus_compile_or_are_refused_for_a_reason() {
    let mut refused: BTreeMap<&str, usize> = BTreeMap::new();
    for statement in statements() {
        let expected = REFUSED.iter().find(|(piece, ..)| statement.contains(piece));
        let result =
            compile(&statement, &Request { database: None, now_seconds: 1_705_370_600, shards: None });
        match (expected, result) {
            (None, Ok(_)) => {}
            (Some((piece, message, _)), Err(error)) => {
                assert!(error.message.contains(message), "{statement}\nis refused with: {error}");
                *refused.entry(piece).or_default() += 1;
            }
            (None, Err(error)) => panic!("{statement}\nis refused: {error}"),
            (Some((_, message, _)), Ok(_)) => panic!("{statement}\ncompiles, expected: {message}"),
        }
    }
    assert_eq!(refused.len(), REFUSED.len(), "a reason that no statement has: {refused:?}");
    assert!(refused.values().all(|times| *times == 1), "{refused:?}");
}
