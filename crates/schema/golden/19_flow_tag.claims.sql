CREATE TABLE IF NOT EXISTS flow_tag.claims
(
    `table` LowCardinality(String),
    `partition` UInt32,
    `agent_id` UInt32,
    `batch_seq` UInt64,
    `time` DateTime('UTC') DEFAULT now()
)
ENGINE = ReplacingMergeTree
ORDER BY (table, partition, agent_id, batch_seq)
TTL time + INTERVAL 30 DAY
COMMENT 'Batches that may be in the logs of two nodes';
