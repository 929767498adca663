//! The page at `/`: what this is and where to ask.

/// Path, example, what it gives.
const ENDPOINTS: &[(&str, &str)] = &[
    (
        "/v1/query/",
        "SQL: POST form with <code>db</code> and <code>sql</code>, or GET with the same parameters",
    ),
    (
        "/v1/stats/querier/L7FlowTracing",
        "the trace of a <code>trace_id</code> or of a row (<code>_id</code>) as a tree: POST JSON, with <code>time_start</code> and \
         <code>time_end</code> in seconds",
    ),
    (
        "/api/traces/TRACE_ID",
        "the same as OTLP in JSON, as Tempo answers; <code>start</code>, <code>end</code>",
    ),
    (
        "/v1/profile/ProfileTracing",
        "where a process (<code>app_service</code>) spends its time, as a tree of functions: POST JSON, with \
         <code>profile_event_type</code> (<code>on-cpu</code>, <code>off-cpu</code>), <code>time_start</code>, <code>time_end</code>",
    ),
    (
        "/v1/profile/folded?app_service=nginx",
        "the same as text for flame graph programs; <code>profile_event_type</code>, <code>start</code>, <code>end</code>",
    ),
    ("/v1/agents", "the agents that this node knows"),
    ("/v1/cluster/agents", "the agents of the whole cluster"),
    ("/v1/agent-groups", "groups of agents and what they set"),
    ("/v1/observe", "requests of the whole cluster as they come, a JSON object a line"),
    ("/v1/cluster/members", "the nodes of the cluster, as this one sees them"),
    ("/v1/status", "the node's state"),
    ("/v1/shard?agent=1", "why an agent (id, host name or machine id) is where it is"),
    (
        "/v1/balance",
        "how evenly work is spread; with <code>without=n2</code> or <code>with=WEIGHT</code> (<code>region</code>, \
         <code>zone</code>) what would move",
    ),
    ("/v1/dictionary/stats", "names by kind and node, and how much of the ids is used up"),
    ("/v1/dictionary/lookup?kind=process&amp;name=nginx", "the ids of a name, and the nodes that hold it"),
    ("/v1/dictionary/resolve?kind=process&amp;id=4194305", "what an id names, on each node and in the store"),
    (
        "/v1/dictionary/verify",
        "compares names between nodes and with the store, and the ids in rows of the last <code>hours</code>",
    ),
    ("/v1/wal", "the write-ahead log of each node"),
    ("/v1/ingest/trace?agent=1&amp;seq=1:1", "where a batch is now"),
    ("/v1/doctor", "checks of each node, its machine and its store, with advice"),
    (
        "/v1/events",
        "what happened lately, by node; <code>kind</code>, <code>limit</code>, <code>after</code> (what <code>next</code> said: \
         <code>1:17,2:5</code>)",
    ),
    ("/v1/logs", "the latest lines of each node's log; <code>limit</code>"),
    ("/v1/settings", "what each node runs with, without secrets"),
    ("/v1/metrics", "the metrics of each node, as text in JSON"),
    ("/metrics", "the node's own metrics, for Prometheus"),
    ("/health/live", "200 while the process runs"),
    ("/health/ready", "200 when rows are taken and queries are answered"),
];

pub(super) fn index() -> String {
    let list: String = ENDPOINTS
        .iter()
        .map(|(path, what)| format!("<dt><a href=\"{path}\">{path}</a></dt><dd>{what}</dd>\n"))
        .collect();
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>MetaFlow</title>\n\
         <style>body{{font:16px/1.5 sans-serif;max-width:44em;margin:3em auto}}dd{{margin-bottom:.5em}}</style>\n\
         <h1>MetaFlow {}</h1>\n<dl>\n{list}</dl>\n\
         <pre>curl -d db=flow_metrics --data-urlencode 'sql=SHOW TABLES' http://HOST:PORT/v1/query/</pre>\n</html>\n",
        env!("CARGO_PKG_VERSION")
    )
}
