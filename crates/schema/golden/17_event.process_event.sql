CREATE TABLE IF NOT EXISTS event.`process_event`
(
    `time` DateTime64(6, 'UTC') COMMENT 'when it happened' CODEC(T64, LZ4),
    `agent_id` UInt32 COMMENT 'agent that saw it' CODEC(T64, ZSTD(1)),
    `batch_seq` UInt64 COMMENT 'batch that brought the row' CODEC(DoubleDelta, LZ4),
    `event_type` String COMMENT 'start, exec, signal, oom or exit' CODEC(ZSTD(1)),
    `process_kname` String COMMENT 'name of the process, as the kernel has it' CODEC(ZSTD(1)),
    `parent_pid` UInt32 COMMENT 'parent of the process' CODEC(T64, ZSTD(1)),
    `executable` String COMMENT 'program of an exec' CODEC(ZSTD(1)),
    `exit_code` Int32 COMMENT 'exit code; 0 where a signal ended it' CODEC(T64, ZSTD(1)),
    `signal` UInt8 COMMENT 'number of the signal that was sent, or that ended the process' CODEC(T64, LZ4),
    `signal_name` String COMMENT 'name of the signal' CODEC(ZSTD(1)),
    `sender_pid` UInt32 COMMENT 'process that sent the signal' CODEC(T64, ZSTD(1)),
    `sender_kname` String COMMENT 'name of the sender, as the kernel has it' CODEC(ZSTD(1)),
    `duration` UInt64 COMMENT 'life of the process at its exit, microseconds' CODEC(T64, ZSTD(1)),
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
ORDER BY (auto_service_type, auto_service_id, time)
TTL toDateTime(time) + INTERVAL 7 DAY
SETTINGS non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1, index_granularity = 8192
COMMENT 'Processes: a row for each start, program, deadly signal, lack of memory and exit.';
