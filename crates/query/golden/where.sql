--> SELECT Count(row) FROM l7_flow_log WHERE pod = 'a' AND pod_0 != 'b' AND host_1 LIKE 'web*' AND NOT exist(pod_ns_0)
-- Metric Count(row) []
-- at most 10000 rows
SELECT count() AS c0 FROM flow_log.`l7_flow_log` WHERE ((pod_id_0 IN (SELECT id FROM flow_tag.dictionary WHERE ((kind = 11) AND (name = 'a'))) OR pod_id_1 IN (SELECT id FROM flow_tag.dictionary WHERE ((kind = 11) AND (name = 'a')))) AND NOT (pod_id_0 IN (SELECT id FROM flow_tag.dictionary WHERE ((kind = 11) AND (name = 'b')))) AND (host_id_1 IN (SELECT id FROM flow_tag.dictionary WHERE ((kind = 3) AND like(name, 'web%'))) OR ((host_id_1 = 0) AND like('', 'web%'))) AND NOT (pod_ns_id_0 != 0)) LIMIT 10000;

--> SELECT Count(row) FROM l7_flow_log WHERE auto_service_1 IN ('10.0.0.1', 'nginx', '') OR auto_instance_0 REGEXP '^a.*b$'
-- Metric Count(row) []
-- at most 10000 rows
SELECT count() AS c0 FROM flow_log.`l7_flow_log` WHERE ((((auto_service_type_1, auto_service_id_1) IN (SELECT kind, id FROM flow_tag.dictionary WHERE name IN ('10.0.0.1', 'nginx', '')) OR ((auto_service_type_1 = 255) AND (ip_1 = toIPv6('::ffff:10.0.0.1')))) OR (auto_service_type_1 = 0)) OR (((auto_instance_type_0, auto_instance_id_0) IN (SELECT kind, id FROM flow_tag.dictionary WHERE match(name, '^a.*b$')) OR ((auto_instance_type_0 = 255) AND match(if((startsWith(toString(ip_0), '::ffff:') AND isIPv4String(substring(toString(ip_0), 8))), substring(toString(ip_0), 8), toString(ip_0)), '^a.*b$')) OR ((auto_instance_type_0 = 254) AND match('internet', '^a.*b$'))) OR ((auto_instance_type_0 = 0) AND match('', '^a.*b$')))) LIMIT 10000;

--> SELECT Count(row) FROM l7_flow_log WHERE ip_0 = '10.0.0.0/8' AND ip_1 IN ('::1', '192.168.0.0/16', '127.0.0.1') AND ip != 'fd00::/8'
-- Metric Count(row) []
-- at most 10000 rows
SELECT count() AS c0 FROM flow_log.`l7_flow_log` WHERE (((ip_0 >= toIPv6('::ffff:10.0.0.0')) AND (ip_0 <= toIPv6('::ffff:10.255.255.255'))) AND (((ip_1 >= toIPv6('::ffff:192.168.0.0')) AND (ip_1 <= toIPv6('::ffff:192.168.255.255'))) OR ip_1 IN (toIPv6('::1'), toIPv6('::ffff:127.0.0.1'))) AND NOT (((ip_0 >= toIPv6('fd00::')) AND (ip_0 <= toIPv6('fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff'))) OR ((ip_1 >= toIPv6('fd00::')) AND (ip_1 <= toIPv6('fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff'))))) LIMIT 10000;

--> SELECT Count(row) FROM l7_flow_log WHERE Enum(tap_side) = 'c' AND l7_protocol IN ('HTTP', 'gRPC') AND response_status >= 3 AND Enum(l7_protocol) LIKE 'H*'
-- Metric Count(row) []
-- at most 10000 rows
SELECT count() AS c0 FROM flow_log.`l7_flow_log` WHERE ((observation_point = 1) AND l7_protocol IN (20, 41) AND (response_status >= 3) AND like(transform(l7_protocol, [0, 20, 21, 41, 60, 61, 80, 120], ['N/A', 'HTTP', 'HTTP2', 'gRPC', 'MySQL', 'PostgreSQL', 'Redis', 'DNS'], toString(l7_protocol)), 'H%')) LIMIT 10000;

--> SELECT Count(row) FROM l7_flow_log WHERE response_code BETWEEN 400 AND 499 AND request_resource LIKE '%a''b%' AND trace_id != '' AND rrt > 1000
-- Metric Count(row) []
-- at most 10000 rows
SELECT count() AS c0 FROM flow_log.`l7_flow_log` WHERE (((response_code >= 400) AND (response_code <= 499)) AND like(request_resource, '%a\'b%') AND NOT (trace_id = '') AND (response_duration > 1000)) LIMIT 10000;

--> SELECT Count(row) FROM application WHERE 1 = 1 AND (time >= 1699990000 AND time <= 1699990060.5) AND is_internet = 0
-- Metric Count(row) []
-- at most 10000 rows
SELECT count() AS c0 FROM flow_metrics.`application.1m` WHERE (1 AND ((time >= toDateTime(1699990000, 'UTC')) AND (time < toDateTime(1699990061, 'UTC'))) AND (toUInt8((l3_epc_id = 4294967294)) = 0)) LIMIT 10000;

--> SELECT _id FROM l7_flow_log WHERE _id IN ('1700000000123456-2-3-4-5-6-7', '1-2-3-4-5-6-0')
-- Tag _id []
-- at most 10000 rows
SELECT concat(toString(toUnixTimestamp64Micro(start_time)), '-', toString(agent_id), '-', toString(flow_id), '-', toString(observation_point), '-', toString(req_tcp_seq), '-', toString(resp_tcp_seq), '-', toString(request_id)) AS c0 FROM flow_log.`l7_flow_log` WHERE (((toUnixTimestamp64Micro(start_time) = 1700000000123456) AND (agent_id = 2) AND (flow_id = 3) AND (observation_point = 4) AND (req_tcp_seq = 5) AND (resp_tcp_seq = 6) AND (request_id = 7)) OR ((toUnixTimestamp64Micro(start_time) = 1) AND (agent_id = 2) AND (flow_id = 3) AND (observation_point = 4) AND (req_tcp_seq = 5) AND (resp_tcp_seq = 6) AND (request_id = 0))) LIMIT 10000;
