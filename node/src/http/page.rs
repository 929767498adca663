//! The page at `/`: what this is and where to ask.

/// Path, example, what it gives.
const ENDPOINTS: &[(&str, &str)] = &[
    (
        "/v1/query/",
        "SQL: POST form with <code>db</code> and <code>sql</code>, or GET with the same parameters",
    ),
    ("/v1/agents", "the agents that this node knows"),
    ("/v1/cluster/members", "the nodes of the cluster, as this one sees them"),
    ("/v1/status", "the node's state"),
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
