--> SELECT auto_service_1, Sum(request) AS requests, Avg(rrt) FROM application WHERE time > now() - 300 GROUP BY auto_service_1 ORDER BY requests DESC
-- Tag auto_service_1 []
-- Metric requests [requests]
-- Metric Avg(rrt) [us]
-- at most 10000 rows
SELECT multiIf((k0 = 255), if((startsWith(toString(k2), '::ffff:') AND isIPv4String(substring(toString(k2), 8))), substring(toString(k2), 8), toString(k2)), (k0 = 254), 'internet', n0) AS c0, sum(a0) AS c1, (sum(a1) / nullIf(sum(a2), 0)) AS c2 FROM (SELECT g.*, n.name AS n0 FROM (SELECT kind, id, name FROM flow_tag.dictionary WHERE kind < 40) AS n RIGHT ANY JOIN (SELECT auto_service_type AS k0, auto_service_id AS k1, if((auto_service_type = 255), ip, toIPv6('::')) AS k2, sum(request) AS a0, sum(rrt_sum) AS a1, sum(rrt_count) AS a2 FROM flow_metrics.`application.1s` WHERE (time >= toDateTime(1699999701, 'UTC')) GROUP BY k0, k1, k2) AS g ON n.kind = g.k0 AND n.id = g.k1) GROUP BY c0 ORDER BY c1 DESC LIMIT 10000;

--> SELECT Sum(byte) FROM network
-- Metric Sum(byte) [bytes]
-- at most 10000 rows
SELECT sum((byte_tx + byte_rx)) AS c0 FROM flow_metrics.`network.1m` LIMIT 10000;

--> select Sum(byte)/Time_interval as sum_byte, time(time, 120) as time_120 from l4_flow_log group by time_120 having Sum(byte)>=0 limit 10 offset 20
-- Metric sum_byte []
-- Time time_120 [s]
-- at most 10 rows
SELECT (sum((byte_tx + byte_rx)) / 120) AS c0, (intDiv(toUnixTimestamp(time), 120) * 120) AS c1 FROM flow_log.`l4_flow_log` GROUP BY (intDiv(toUnixTimestamp(time), 120) * 120) HAVING (sum((byte_tx + byte_rx)) >= 0) LIMIT 10 OFFSET 20;

--> SELECT auto_service_0, auto_service_1, Enum(l7_protocol), Sum(request), PerSecond(Sum(error)), Avg(error_ratio), Percentile(rrt, 0.95), Max(rrt) FROM application_map WHERE time >= 1699999000 GROUP BY auto_service_0, auto_service_1, Enum(l7_protocol) ORDER BY Sum(request) DESC, auto_service_1 LIMIT 20
-- Tag auto_service_0 []
-- Tag auto_service_1 []
-- Tag Enum(l7_protocol) []
-- Metric Sum(request) [requests]
-- Metric PerSecond(Sum(error)) [requests/s]
-- Metric Avg(error_ratio) [%]
-- Metric Percentile(rrt, 0.95) [us]
-- Metric Max(rrt) [us]
-- at most 20 rows
SELECT multiIf((k0 = 255), if((startsWith(toString(k2), '::ffff:') AND isIPv4String(substring(toString(k2), 8))), substring(toString(k2), 8), toString(k2)), (k0 = 254), 'internet', n0) AS c0, multiIf((k3 = 255), if((startsWith(toString(k5), '::ffff:') AND isIPv4String(substring(toString(k5), 8))), substring(toString(k5), 8), toString(k5)), (k3 = 254), 'internet', n1) AS c1, transform(k6, [0, 20, 21, 41, 60, 61, 80, 120], ['N/A', 'HTTP', 'HTTP2', 'gRPC', 'MySQL', 'PostgreSQL', 'Redis', 'DNS'], toString(k6)) AS c2, sum(a0) AS c3, (sum(a1) / 1001) AS c4, if(((sum(a1) / nullIf(sum(a2), 0)) > 1), 1, (sum(a1) / nullIf(sum(a2), 0))) AS c5, quantileTDigestWeightedOrNullIfMerge(0.95)(a3) AS c6, max(a4) AS c7 FROM (SELECT g.*, n.name AS n1 FROM (SELECT kind, id, name FROM flow_tag.dictionary WHERE kind < 40) AS n RIGHT ANY JOIN (SELECT g.*, n.name AS n0 FROM (SELECT kind, id, name FROM flow_tag.dictionary WHERE kind < 40) AS n RIGHT ANY JOIN (SELECT auto_service_type_0 AS k0, auto_service_id_0 AS k1, if((auto_service_type_0 = 255), ip_0, toIPv6('::')) AS k2, auto_service_type_1 AS k3, auto_service_id_1 AS k4, if((auto_service_type_1 = 255), ip_1, toIPv6('::')) AS k5, l7_protocol AS k6, sum(request) AS a0, sum((client_error + server_error)) AS a1, sum(response) AS a2, quantileTDigestWeightedOrNullIfState(0.95)((rrt_sum / rrt_count), rrt_count, (rrt_count > 0)) AS a3, maxOrNullIf(rrt_max, (rrt_count > 0)) AS a4 FROM flow_metrics.`application_map.1s` WHERE (time >= toDateTime(1699999000, 'UTC')) GROUP BY k0, k1, k2, k3, k4, k5, k6) AS g ON n.kind = g.k0 AND n.id = g.k1) AS g ON n.kind = g.k3 AND n.id = g.k4) GROUP BY c0, c1, k6 ORDER BY c3 DESC, c1 LIMIT 20;

--> SELECT time(time, 60) AS t, host_1, Max(byte), Min(byte_tx), AAvg(packet), Stddev(rtt), Spread(byte), Rspread(rtt), Last(byte), Histogram(Sum(byte), 10) FROM network_map WHERE time > now() - 7200 GROUP BY t, host_1 ORDER BY t
-- Time t [s]
-- Tag host_1 []
-- Metric Max(byte) [bytes]
-- Metric Min(byte_tx) [bytes]
-- Metric AAvg(packet) [packets]
-- Metric Stddev(rtt) [us]
-- Metric Spread(byte) [bytes]
-- Metric Rspread(rtt) []
-- Metric Last(byte) [bytes]
-- Metric Histogram(Sum(byte), 10) []
-- at most 10000 rows
SELECT k0 AS c0, n0 AS c1, arrayReduce('maxOrNull', tupleElement(sumMappedArraysMerge(a0), 2)) AS c2, arrayReduce('minOrNull', tupleElement(sumMappedArraysMerge(a1), 2)) AS c3, arrayReduce('avgOrNull', tupleElement(sumMappedArraysMerge(a2), 2)) AS c4, stddevPopOrNullIfMerge(a3) AS c5, (arrayReduce('maxOrNull', tupleElement(sumMappedArraysMerge(a0), 2)) - arrayReduce('minOrNull', tupleElement(sumMappedArraysMerge(a0), 2))) AS c6, (max(a4) / nullIf(min(a5), 0)) AS c7, arrayElement(tupleElement(sumMappedArraysMerge(a0), 2), -1) AS c8, arrayReduce('histogram(10)', tupleElement(sumMappedArraysMerge(a0), 2)) AS c9 FROM (SELECT g.*, n.name AS n0 FROM (SELECT kind, id, name FROM flow_tag.dictionary WHERE kind = 3) AS n RIGHT ANY JOIN (SELECT (intDiv(toUnixTimestamp(time), 60) * 60) AS k0, host_id_1 AS k1, sumMappedArraysState([intDiv(toUnixTimestamp(time), 60)], [(byte_tx + byte_rx)]) AS a0, sumMappedArraysState([intDiv(toUnixTimestamp(time), 60)], [byte_tx]) AS a1, sumMappedArraysState([intDiv(toUnixTimestamp(time), 60)], [(packet_tx + packet_rx)]) AS a2, stddevPopOrNullIfState((rtt_sum / rtt_count), (rtt_count > 0)) AS a3, maxOrNullIf(rtt_max, (rtt_count > 0)) AS a4, minOrNullIf((rtt_sum / rtt_count), (rtt_count > 0)) AS a5 FROM flow_metrics.`network_map.1m` WHERE (time >= toDateTime(1699992801, 'UTC')) GROUP BY k0, k1) AS g ON n.id = g.k1) GROUP BY c0, c1 ORDER BY c0 LIMIT 10000;

--> SELECT start_time, ip_0, auto_service_0, auto_service_1, endpoint, Enum(response_status), response_duration, request FROM l7_flow_log WHERE auto_service_1 = 'nginx' AND time > now() - 60 ORDER BY start_time DESC LIMIT 20
-- Tag start_time []
-- Tag ip_0 []
-- Tag auto_service_0 []
-- Tag auto_service_1 []
-- Tag endpoint []
-- Tag Enum(response_status) []
-- Metric response_duration [us]
-- Metric request [requests]
-- at most 20 rows
SELECT k0 AS c0, if((startsWith(toString(k1), '::ffff:') AND isIPv4String(substring(toString(k1), 8))), substring(toString(k1), 8), toString(k1)) AS c1, multiIf((k2 = 255), if((startsWith(toString(k4), '::ffff:') AND isIPv4String(substring(toString(k4), 8))), substring(toString(k4), 8), toString(k4)), (k2 = 254), 'internet', n0) AS c2, multiIf((k5 = 255), if((startsWith(toString(k7), '::ffff:') AND isIPv4String(substring(toString(k7), 8))), substring(toString(k7), 8), toString(k7)), (k5 = 254), 'internet', n1) AS c3, n2 AS c4, transform(k9, [0, 2, 3, 4, 5], ['normal', 'timeout', 'server error', 'client error', 'unknown'], toString(k9)) AS c5, k10 AS c6, k11 AS c7 FROM (SELECT g.*, n.name AS n2 FROM (SELECT kind, id, name FROM flow_tag.dictionary WHERE kind = 42) AS n RIGHT ANY JOIN (SELECT g.*, n.name AS n1 FROM (SELECT kind, id, name FROM flow_tag.dictionary WHERE kind < 40) AS n RIGHT ANY JOIN (SELECT g.*, n.name AS n0 FROM (SELECT kind, id, name FROM flow_tag.dictionary WHERE kind < 40) AS n RIGHT ANY JOIN (SELECT toUnixTimestamp64Micro(start_time) AS k0, ip_0 AS k1, auto_service_type_0 AS k2, auto_service_id_0 AS k3, if((auto_service_type_0 = 255), ip_0, toIPv6('::')) AS k4, auto_service_type_1 AS k5, auto_service_id_1 AS k6, if((auto_service_type_1 = 255), ip_1, toIPv6('::')) AS k7, endpoint_id AS k8, response_status AS k9, response_duration AS k10, (toUInt64(l7_type IN (0, 2))) AS k11 FROM flow_log.`l7_flow_log` WHERE ((auto_service_type_1, auto_service_id_1) IN (SELECT kind, id FROM flow_tag.dictionary WHERE (name = 'nginx')) AND (time >= toDateTime(1699999941, 'UTC'))) ORDER BY toUnixTimestamp64Micro(start_time) DESC LIMIT 20) AS g ON n.kind = g.k2 AND n.id = g.k3) AS g ON n.kind = g.k5 AND n.id = g.k6) AS g ON n.id = g.k8) ORDER BY c0 DESC;

--> SELECT Count(row), Uniq(ip_0), Uniq(pod_0, pod_1), TopK(pod_1, 3), TopK(ip_0, pod_0, 10), Any(auto_service_1), Apdex(rrt, 100), Percentage(Sum(error), Sum(request)) FROM l7_flow_log
-- Metric Count(row) []
-- Metric Uniq(ip_0) []
-- Metric Uniq(pod_0, pod_1) []
-- Tag TopK(pod_1, 3) []
-- Tag TopK(ip_0, pod_0, 10) []
-- Tag Any(auto_service_1) []
-- Metric Apdex(rrt, 100) []
-- Metric Percentage(Sum(error), Sum(request)) [%]
-- at most 10000 rows
SELECT count() AS c0, uniqIf(ip_0, (ip_0 != toIPv6('::'))) AS c1, uniqIf(pod_id_0, pod_id_1, ((pod_id_0 != 0) OR (pod_id_1 != 0))) AS c2, arrayStringConcat(arrayMap((x) -> toString(dictGet('flow_tag.names', 'name', (toUInt8(11), toUInt64(tupleElement(x, 1))))), topKIf(3)(tuple(pod_id_1), (pod_id_1 != 0))), ',') AS c3, arrayStringConcat(arrayMap((x) -> toString(arrayStringConcat([toString(if((startsWith(toString(tupleElement(x, 1)), '::ffff:') AND isIPv4String(substring(toString(tupleElement(x, 1)), 8))), substring(toString(tupleElement(x, 1)), 8), toString(tupleElement(x, 1)))), toString(dictGet('flow_tag.names', 'name', (toUInt8(11), toUInt64(tupleElement(x, 2)))))], ' ')), topKIf(10)(tuple(ip_0, pod_id_0), ((ip_0 != toIPv6('::')) OR (pod_id_0 != 0)))), ',') AS c4, multiIf((tupleElement(anyIf(tuple(auto_service_type_1, auto_service_id_1, if((auto_service_type_1 = 255), ip_1, toIPv6('::'))), (auto_service_type_1 != 0)), 1) = 255), if((startsWith(toString(tupleElement(anyIf(tuple(auto_service_type_1, auto_service_id_1, if((auto_service_type_1 = 255), ip_1, toIPv6('::'))), (auto_service_type_1 != 0)), 3)), '::ffff:') AND isIPv4String(substring(toString(tupleElement(anyIf(tuple(auto_service_type_1, auto_service_id_1, if((auto_service_type_1 = 255), ip_1, toIPv6('::'))), (auto_service_type_1 != 0)), 3)), 8))), substring(toString(tupleElement(anyIf(tuple(auto_service_type_1, auto_service_id_1, if((auto_service_type_1 = 255), ip_1, toIPv6('::'))), (auto_service_type_1 != 0)), 3)), 8), toString(tupleElement(anyIf(tuple(auto_service_type_1, auto_service_id_1, if((auto_service_type_1 = 255), ip_1, toIPv6('::'))), (auto_service_type_1 != 0)), 3))), (tupleElement(anyIf(tuple(auto_service_type_1, auto_service_id_1, if((auto_service_type_1 = 255), ip_1, toIPv6('::'))), (auto_service_type_1 != 0)), 1) = 254), 'internet', dictGet('flow_tag.names', 'name', (toUInt8(tupleElement(anyIf(tuple(auto_service_type_1, auto_service_id_1, if((auto_service_type_1 = 255), ip_1, toIPv6('::'))), (auto_service_type_1 != 0)), 1)), toUInt64(tupleElement(anyIf(tuple(auto_service_type_1, auto_service_id_1, if((auto_service_type_1 = 255), ip_1, toIPv6('::'))), (auto_service_type_1 != 0)), 2))))) AS c5, (((countIf(((response_duration > 0) AND (response_duration <= 100.0))) + countIf(((response_duration > 0) AND (response_duration <= 400.0)))) / 2) / nullIf(countIf((response_duration > 0)), 0)) AS c6, ((sum(((toUInt64(response_status = 4)) + (toUInt64(response_status = 3)))) / nullIf(sum((toUInt64(l7_type IN (0, 2)))), 0)) * 100) AS c7 FROM flow_log.`l7_flow_log` LIMIT 10000;

--> SELECT process, Sum(request) FROM `application.1s` GROUP BY process SLIMIT 5
-- Tag process []
-- Metric Sum(request) [requests]
-- at most 10000 rows
SELECT c0, c1 FROM (SELECT n0 AS c0, sum(a0) AS c1 FROM (SELECT g.*, n.name AS n0 FROM (SELECT kind, id, name FROM flow_tag.dictionary WHERE kind = 13) AS n RIGHT ANY JOIN (SELECT process_id AS k0, sum(request) AS a0 FROM flow_metrics.`application.1s` GROUP BY k0) AS g ON n.id = g.k0) GROUP BY c0) WHERE (c0) IN (SELECT c0 FROM (SELECT n0 AS c0, sum(a0) AS c1 FROM (SELECT g.*, n.name AS n0 FROM (SELECT kind, id, name FROM flow_tag.dictionary WHERE kind = 13) AS n RIGHT ANY JOIN (SELECT process_id AS k0, sum(request) AS a0 FROM flow_metrics.`application.1s` GROUP BY k0) AS g ON n.id = g.k0) GROUP BY c0) GROUP BY c0 ORDER BY max(c1) DESC, c0 LIMIT 5) LIMIT 10000;

--> SELECT node_type(auto_service_1), is_internet_0, auto_service_type_1, Sum(byte) FROM network_map GROUP BY auto_service_1, auto_service_type_1, is_internet_0
-- Tag node_type(auto_service_1) []
-- Tag is_internet_0 []
-- Tag auto_service_type_1 []
-- Metric Sum(byte) [bytes]
-- at most 10000 rows
SELECT transform(k0, [255, 254, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 40, 41, 42, 43, 44, 45, 46], ['ip', 'internet', 'region', 'az', 'host', 'chost', 'vpc', 'subnet', 'pod_cluster', 'pod_node', 'pod_ns', 'pod_group', 'pod', 'pod_service', 'process', 'container', 'unit', 'agent', 'service', 'pod_ingress', 'lb', 'natgw', 'request_type', 'request_domain', 'endpoint', 'version', 'user_agent', 'response_exception', 'interface'], toString(k0)) AS c0, k1 AS c1, k0 AS c2, sum(a0) AS c3 FROM (SELECT g.*, n.name AS n0 FROM (SELECT kind, id, name FROM flow_tag.dictionary WHERE kind < 40) AS n RIGHT ANY JOIN (SELECT auto_service_type_1 AS k0, (l3_epc_id_0 = 4294967294) AS k1, auto_service_id_1 AS k2, if((auto_service_type_1 = 255), ip_1, toIPv6('::')) AS k3, sum((byte_tx + byte_rx)) AS a0 FROM flow_metrics.`network_map.1m` GROUP BY k0, k1, k2, k3) AS g ON n.kind = g.k0 AND n.id = g.k2) GROUP BY multiIf((k0 = 255), if((startsWith(toString(k3), '::ffff:') AND isIPv4String(substring(toString(k3), 8))), substring(toString(k3), 8), toString(k3)), (k0 = 254), 'internet', n0), c2, c1 LIMIT 10000;

--> SELECT time(time, 60, 1, 0) AS t, auto_service_1, Sum(request) AS r FROM application WHERE time >= 1699999600 AND time <= 1700000000 GROUP BY t, auto_service_1 ORDER BY t DESC LIMIT 100
-- Time t [s]
-- Tag auto_service_1 []
-- Metric r [requests]
-- at most 100 rows
SELECT c0, c1, c2 FROM (SELECT k0 AS c0, multiIf((k1 = 255), if((startsWith(toString(k3), '::ffff:') AND isIPv4String(substring(toString(k3), 8))), substring(toString(k3), 8), toString(k3)), (k1 = 254), 'internet', n0) AS c1, sum(a0) AS c2 FROM (SELECT g.*, n.name AS n0 FROM (SELECT kind, id, name FROM flow_tag.dictionary WHERE kind < 40) AS n RIGHT ANY JOIN (SELECT (intDiv(toUnixTimestamp(time), 60) * 60) AS k0, auto_service_type AS k1, auto_service_id AS k2, if((auto_service_type = 255), ip, toIPv6('::')) AS k3, sum(request) AS a0 FROM flow_metrics.`application.1m` WHERE ((time >= toDateTime(1699999600, 'UTC')) AND (time < toDateTime(1700000001, 'UTC'))) GROUP BY k0, k1, k2, k3) AS g ON n.kind = g.k1 AND n.id = g.k2) GROUP BY c0, c1 ORDER BY c1, c0 WITH FILL FROM 1699999620 TO 1700000001 STEP 60) ORDER BY c0 DESC LIMIT 100;

--> SELECT time(time, 60, 1, null) AS t, Sum(request) AS r, Avg(rrt), Max(request), Uniq(ip) FROM application.1s WHERE time >= 1699999600 AND time <= 1700000000 GROUP BY t
-- Time t [s]
-- Metric r [requests]
-- Metric Avg(rrt) [us]
-- Metric Max(request) [requests]
-- Metric Uniq(ip) []
-- at most 10000 rows
SELECT c0, c1, c2, c3, c4 FROM (SELECT (intDiv(toUnixTimestamp(time), 60) * 60) AS c0, toNullable(sum(request)) AS c1, toNullable((sum(rrt_sum) / nullIf(sum(rrt_count), 0))) AS c2, toNullable(arrayReduce('maxOrNull', tupleElement(sumMappedArrays([toUnixTimestamp(time)], [request]), 2))) AS c3, toNullable(uniqIf(ip, (ip != toIPv6('::')))) AS c4 FROM flow_metrics.`application.1s` WHERE ((time >= toDateTime(1699999600, 'UTC')) AND (time < toDateTime(1700000001, 'UTC'))) GROUP BY (intDiv(toUnixTimestamp(time), 60) * 60) ORDER BY c0 WITH FILL FROM 1699999560 TO 1700000001 STEP 60) LIMIT 10000;

--> SELECT time(time, 0.2) AS t, Enum(l7_protocol), PerSecond(Sum(request)) FROM l7_flow_log GROUP BY t, Enum(l7_protocol)
-- Time t [s]
-- Tag Enum(l7_protocol) []
-- Metric PerSecond(Sum(request)) [requests/s]
-- at most 10000 rows
SELECT ((intDiv(toUnixTimestamp64Micro(toDateTime64(time, 6, 'UTC')), 200000) * 200000) / 1000000) AS c0, transform(l7_protocol, [0, 20, 21, 41, 60, 61, 80, 120], ['N/A', 'HTTP', 'HTTP2', 'gRPC', 'MySQL', 'PostgreSQL', 'Redis', 'DNS'], toString(l7_protocol)) AS c1, (sum((toUInt64(l7_type IN (0, 2)))) / 0.2) AS c2 FROM flow_log.`l7_flow_log` GROUP BY ((intDiv(toUnixTimestamp64Micro(toDateTime64(time, 6, 'UTC')), 200000) * 200000) / 1000000), l7_protocol LIMIT 10000;

--> SELECT time(time, 60, 1, 0) AS t, auto_service_1, Sum(request) AS r FROM application WHERE time >= 1699999600 GROUP BY t, auto_service_1 ORDER BY t SLIMIT 5
-- Time t [s]
-- Tag auto_service_1 []
-- Metric r [requests]
-- at most 10000 rows
SELECT c0, c1, c2 FROM (SELECT c0, c1, c2 FROM (SELECT k0 AS c0, multiIf((k1 = 255), if((startsWith(toString(k3), '::ffff:') AND isIPv4String(substring(toString(k3), 8))), substring(toString(k3), 8), toString(k3)), (k1 = 254), 'internet', n0) AS c1, sum(a0) AS c2 FROM (SELECT g.*, n.name AS n0 FROM (SELECT kind, id, name FROM flow_tag.dictionary WHERE kind < 40) AS n RIGHT ANY JOIN (SELECT (intDiv(toUnixTimestamp(time), 60) * 60) AS k0, auto_service_type AS k1, auto_service_id AS k2, if((auto_service_type = 255), ip, toIPv6('::')) AS k3, sum(request) AS a0 FROM flow_metrics.`application.1m` WHERE (time >= toDateTime(1699999600, 'UTC')) GROUP BY k0, k1, k2, k3) AS g ON n.kind = g.k1 AND n.id = g.k2) GROUP BY c0, c1) WHERE (c1) IN (SELECT c1 FROM (SELECT k0 AS c0, multiIf((k1 = 255), if((startsWith(toString(k3), '::ffff:') AND isIPv4String(substring(toString(k3), 8))), substring(toString(k3), 8), toString(k3)), (k1 = 254), 'internet', n0) AS c1, sum(a0) AS c2 FROM (SELECT g.*, n.name AS n0 FROM (SELECT kind, id, name FROM flow_tag.dictionary WHERE kind < 40) AS n RIGHT ANY JOIN (SELECT (intDiv(toUnixTimestamp(time), 60) * 60) AS k0, auto_service_type AS k1, auto_service_id AS k2, if((auto_service_type = 255), ip, toIPv6('::')) AS k3, sum(request) AS a0 FROM flow_metrics.`application.1m` WHERE (time >= toDateTime(1699999600, 'UTC')) GROUP BY k0, k1, k2, k3) AS g ON n.kind = g.k1 AND n.id = g.k2) GROUP BY c0, c1) GROUP BY c1 ORDER BY max(c2) DESC, c1 LIMIT 5) ORDER BY c1, c0 WITH FILL FROM 1699999620 TO 1700000001 STEP 60) ORDER BY c0 LIMIT 10000;

--> SELECT pod_0, Sum(request) FROM l7_flow_log GROUP BY pod_id_0 ORDER BY pod_0
-- Tag pod_0 []
-- Metric Sum(request) [requests]
-- at most 10000 rows
SELECT n0 AS c0, sum(a0) AS c1 FROM (SELECT g.*, n.name AS n0 FROM (SELECT kind, id, name FROM flow_tag.dictionary WHERE kind = 11) AS n RIGHT ANY JOIN (SELECT pod_id_0 AS k0, sum((toUInt64(l7_type IN (0, 2)))) AS a0 FROM flow_log.`l7_flow_log` GROUP BY k0) AS g ON n.id = g.k0) GROUP BY k0, c0 ORDER BY c0 LIMIT 10000;

--> SELECT time(time, 10, 1, 'null') t, Histogram(Sum(request), 4), Histogram(rrt, 3), Sum(request) FROM application WHERE time > now() - 100 GROUP BY t
-- Time t [s]
-- Metric Histogram(Sum(request), 4) []
-- Metric Histogram(rrt, 3) []
-- Metric Sum(request) [requests]
-- at most 10000 rows
SELECT c0, c1, c2, c3 FROM (SELECT (intDiv(toUnixTimestamp(time), 10) * 10) AS c0, arrayReduce('histogram(4)', tupleElement(sumMappedArrays([toUnixTimestamp(time)], [request]), 2)) AS c1, histogramIf(3)((rrt_sum / rrt_count), (rrt_count > 0)) AS c2, toNullable(sum(request)) AS c3 FROM flow_metrics.`application.1s` WHERE (time >= toDateTime(1699999901, 'UTC')) GROUP BY (intDiv(toUnixTimestamp(time), 10) * 10) ORDER BY c0 WITH FILL FROM 1699999900 TO 1700000001 STEP 10) LIMIT 10000;
