--> SHOW DATABASES
-- name
-- flow_log
-- flow_metrics
-- profile
-- event

--> SHOW TABLES
-- name | database | datasources | description
-- l4_flow_log | flow_log | l4_flow_log | Flows: a row for each minute of a flow and for its end
-- l7_flow_log | flow_log | l7_flow_log | Requests: a row for each request with its response
-- network | flow_metrics | network.1s,network.1m | Network metrics of each service
-- network_map | flow_metrics | network_map.1s,network_map.1m | Network metrics of each client and service
-- application | flow_metrics | application.1s,application.1m | Request metrics of each service
-- application_map | flow_metrics | application_map.1s,application_map.1m | Request metrics of each client and service
-- in_process | profile | in_process | Profiles: time that a process spent in a stack of functions, every few seconds
-- file_event | event | file_event | Files: a row for each slow read, write or sync
-- process_event | event | process_event | Processes: a row for each start, program, deadly signal, lack of memory and exit

--> SHOW TAG pod VALUES FROM application
-- Tag value []
-- Tag display_name []
-- at most 10000 rows
SELECT min(id) AS c0, name AS c1 FROM flow_tag.dictionary WHERE (kind = 11) GROUP BY name ORDER BY name LIMIT 10000;

--> SHOW TAG host VALUES FROM network WHERE host LIKE '*xx' LIMIT 5, 10
-- Tag value []
-- Tag display_name []
-- at most 10 rows
SELECT min(id) AS c0, name AS c1 FROM flow_tag.dictionary WHERE ((kind = 3) AND like(name, '%xx')) GROUP BY name ORDER BY name LIMIT 10 OFFSET 5;

--> SHOW TAG auto_service VALUES FROM application_map LIMIT 100
-- Tag value []
-- Tag display_name []
-- at most 100 rows
SELECT min(k1) AS c0, multiIf((k0 = 255), if((startsWith(toString(k2), '::ffff:') AND isIPv4String(substring(toString(k2), 8))), substring(toString(k2), 8), toString(k2)), (k0 = 254), 'internet', n0) AS c1 FROM (SELECT g.*, n.name AS n0 FROM (SELECT kind, id, name FROM flow_tag.dictionary WHERE kind < 40) AS n RIGHT ANY JOIN (SELECT DISTINCT auto_service_type_0 AS k0, auto_service_id_0 AS k1, if((auto_service_type_0 = 255), ip_0, toIPv6('::')) AS k2 FROM flow_metrics.`application_map.1m` WHERE (auto_service_type_0 != 0) UNION DISTINCT SELECT DISTINCT auto_service_type_1 AS k0, auto_service_id_1 AS k1, if((auto_service_type_1 = 255), ip_1, toIPv6('::')) AS k2 FROM flow_metrics.`application_map.1m` WHERE (auto_service_type_1 != 0)) AS g ON n.kind = g.k0 AND n.id = g.k1) GROUP BY c1 ORDER BY c1 LIMIT 100;

--> SHOW TAG chost VALUES FROM network WHERE subnet_id != 1 AND subnet != 'xx'
-- Tag value []
-- Tag display_name []
-- at most 10000 rows
SELECT min(k0) AS c0, n0 AS c1 FROM (SELECT g.*, n.name AS n0 FROM (SELECT kind, id, name FROM flow_tag.dictionary WHERE kind = 4) AS n RIGHT ANY JOIN (SELECT DISTINCT chost_id AS k0 FROM flow_metrics.`network.1m` WHERE ((NOT (subnet_id = 1) AND NOT (subnet_id IN (SELECT id FROM flow_tag.dictionary WHERE ((kind = 6) AND (name = 'xx'))))) AND (chost_id != 0))) AS g ON n.id = g.k0) GROUP BY c1 ORDER BY c1 LIMIT 10000;

--> SHOW TAG tap_side VALUES FROM l7_flow_log
-- value | display_name | description
-- 0 | rest | neither end is known to be here
-- 1 | c | network interface of the client
-- 2 | s | network interface of the server
-- 3 | c-p | process of the client
-- 4 | s-p | process of the server
-- 5 | local | both ends are on this host (loopback)

--> SHOW METRICS FUNCTIONS
-- name | arguments | description
-- Sum | metric | total
-- Avg | metric | amounts: total by second; delays and quotients: weighted mean
-- AAvg | metric | arithmetic mean of the samples
-- Max | metric | largest sample; of delays the true maximum
-- Min | metric | smallest sample
-- Stddev | metric | standard deviation of the samples
-- Spread | metric | largest less smallest
-- Rspread | metric | largest by smallest
-- Percentile | metric, level | quantile of the samples, level 0 to 1
-- Apdex | delay, threshold | satisfied share of requests, 0 to 1
-- Last | metric | latest sample
-- Histogram | metric, bins | array of (lower, upper, height) of the samples
-- PerSecond | value | value by second
-- Percentage | value, value | hundred times the first by the second
-- Count | row | number of rows
-- Uniq | tag, ... | number of different values, estimated
-- UniqExact | tag, ... | number of different values
-- TopK | tag, ..., number | most frequent values, joined by commas
-- Any | tag, ... | some value

--> SHOW TAG ip VALUES FROM l7_flow_log WHERE response_duration > 1980
-- Tag value []
-- Tag display_name []
-- at most 10000 rows
SELECT min(if((startsWith(toString(k0), '::ffff:') AND isIPv4String(substring(toString(k0), 8))), substring(toString(k0), 8), toString(k0))) AS c0, toString(if((startsWith(toString(k0), '::ffff:') AND isIPv4String(substring(toString(k0), 8))), substring(toString(k0), 8), toString(k0))) AS c1 FROM (SELECT DISTINCT ip_0 AS k0 FROM flow_log.`l7_flow_log` WHERE ((response_duration > 1980) AND (ip_0 != toIPv6('::'))) UNION DISTINCT SELECT DISTINCT ip_1 AS k0 FROM flow_log.`l7_flow_log` WHERE ((response_duration > 1980) AND (ip_1 != toIPv6('::')))) GROUP BY c1 ORDER BY c1 LIMIT 10000;

--> SHOW TAG process VALUES FROM application WHERE auto_service = 'nginx'
-- Tag value []
-- Tag display_name []
-- at most 10000 rows
SELECT min(k0) AS c0, n0 AS c1 FROM (SELECT g.*, n.name AS n0 FROM (SELECT kind, id, name FROM flow_tag.dictionary WHERE kind = 13) AS n RIGHT ANY JOIN (SELECT DISTINCT process_id AS k0 FROM flow_metrics.`application.1m` WHERE ((auto_service_type, auto_service_id) IN (SELECT kind, id FROM flow_tag.dictionary WHERE (name = 'nginx')) AND (process_id != 0))) AS g ON n.id = g.k0) GROUP BY c1 ORDER BY c1 LIMIT 10000;

--> SHOW TAG l7_protocol VALUES FROM application WHERE auto_service = 'nginx'
-- Tag value []
-- Tag display_name []
-- at most 10000 rows
SELECT min(k0) AS c0, transform(k0, [0, 20, 21, 41, 60, 61, 80, 120], ['N/A', 'HTTP', 'HTTP2', 'gRPC', 'MySQL', 'PostgreSQL', 'Redis', 'DNS'], toString(k0)) AS c1 FROM (SELECT DISTINCT l7_protocol AS k0 FROM flow_metrics.`application.1m` WHERE ((auto_service_type, auto_service_id) IN (SELECT kind, id FROM flow_tag.dictionary WHERE (name = 'nginx')) AND 1)) GROUP BY c1 ORDER BY c1 LIMIT 10000;
