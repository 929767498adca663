CREATE TABLE IF NOT EXISTS profile.`in_process`
(
    `start_time` DateTime64(6, 'UTC') COMMENT 'begin of the period that the row sums up' CODEC(T64, LZ4),
    `time` DateTime64(6, 'UTC') COMMENT 'end of the period' CODEC(T64, LZ4),
    `agent_id` UInt32 COMMENT 'agent that saw it' CODEC(T64, ZSTD(1)),
    `batch_seq` UInt64 COMMENT 'batch that brought the row' CODEC(DoubleDelta, LZ4),
    `app_service_id` UInt32 COMMENT 'process, by its command or script' CODEC(T64, ZSTD(1)),
    `profile_event_type` String COMMENT 'on-cpu: computing; off-cpu: waiting' CODEC(ZSTD(1)),
    `profile_language_type` String COMMENT 'how it was measured' CODEC(ZSTD(1)),
    `profile_value_unit` String COMMENT 'unit of profile_value' CODEC(ZSTD(1)),
    `profile_location_str` String COMMENT 'thread (`[t]`) and functions from the outermost to the innermost, joined by semicolons; `[k]` is the kernel\'s, other brackets stand for files without symbols' CODEC(ZSTD(1)),
    `profile_value` UInt64 COMMENT 'time in this stack, microseconds' CODEC(T64, ZSTD(1)),
    `ip` IPv6 COMMENT 'IP address' CODEC(ZSTD(1)),
    `region_id` UInt32 COMMENT 'region' CODEC(T64, ZSTD(1)),
    `az_id` UInt32 COMMENT 'availability zone' CODEC(T64, ZSTD(1)),
    `host_id` UInt32 COMMENT 'machine that runs the agent' CODEC(T64, ZSTD(1)),
    `chost_id` UInt32 COMMENT 'cloud or virtual machine' CODEC(T64, ZSTD(1)),
    `l3_epc_id` UInt32 COMMENT 'VPC of the address; 4294967294 is the internet' CODEC(T64, ZSTD(1)),
    `vpc_id` UInt32 COMMENT 'virtual private cloud' CODEC(T64, ZSTD(1)),
    `subnet_id` UInt32 COMMENT 'subnet' CODEC(T64, ZSTD(1)),
    `l3_device_type` UInt8 COMMENT 'kind of the device that owns the address' CODEC(T64, LZ4),
    `l3_device_id` UInt32 COMMENT 'device that owns the address' CODEC(T64, ZSTD(1)),
    `pod_cluster_id` UInt32 COMMENT 'Kubernetes cluster' CODEC(T64, ZSTD(1)),
    `pod_node_id` UInt32 COMMENT 'Kubernetes node' CODEC(T64, ZSTD(1)),
    `pod_ns_id` UInt32 COMMENT 'Kubernetes namespace' CODEC(T64, ZSTD(1)),
    `pod_group_id` UInt32 COMMENT 'Kubernetes workload' CODEC(T64, ZSTD(1)),
    `pod_id` UInt32 COMMENT 'Kubernetes pod' CODEC(T64, ZSTD(1)),
    `pod_service_id` UInt32 COMMENT 'Kubernetes service' CODEC(T64, ZSTD(1)),
    `pod_ingress_id` UInt32 COMMENT 'Kubernetes ingress' CODEC(T64, ZSTD(1)),
    `lb_id` UInt32 COMMENT 'load balancer' CODEC(T64, ZSTD(1)),
    `natgw_id` UInt32 COMMENT 'NAT gateway' CODEC(T64, ZSTD(1)),
    `l2_vpc_id` UInt32 COMMENT 'VPC of the network interface' CODEC(T64, ZSTD(1)),
    `service_id` UInt32 COMMENT 'custom service' CODEC(T64, ZSTD(1)),
    `process_id` UInt32 COMMENT 'process, by its command or script' CODEC(T64, ZSTD(1)),
    `pid` UInt32 COMMENT 'process number on its host' CODEC(T64, ZSTD(1)),
    `container_id` UInt32 COMMENT 'container' CODEC(T64, ZSTD(1)),
    `unit_id` UInt32 COMMENT 'systemd unit' CODEC(T64, ZSTD(1)),
    `auto_instance_type` UInt8 COMMENT 'kind of the instance' CODEC(T64, LZ4),
    `auto_instance_id` UInt32 COMMENT 'the most exact resource: pod, else process, node, device, internet, address' CODEC(T64, ZSTD(1)),
    `auto_service_type` UInt8 COMMENT 'kind of the service' CODEC(T64, LZ4),
    `auto_service_id` UInt32 COMMENT 'the service: custom service, else pod service, workload, unit, process, cluster, device, internet, address' CODEC(T64, ZSTD(1)),
    `tag_source` UInt8 COMMENT 'how the tags were found' CODEC(T64, LZ4),
    INDEX by_time `time` TYPE minmax GRANULARITY 1
)
ENGINE = MergeTree
PARTITION BY toStartOfDay(time)
ORDER BY (app_service_id, profile_event_type, time)
TTL toDateTime(time) + INTERVAL 3 DAY
SETTINGS non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1, index_granularity = 8192
COMMENT 'Profiles: time that a process spent in a stack of functions, every few seconds.';
