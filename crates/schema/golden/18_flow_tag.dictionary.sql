CREATE TABLE IF NOT EXISTS flow_tag.`dictionary`
(
    `kind` UInt8 COMMENT 'kind of tag' CODEC(T64, LZ4),
    `id` UInt64 COMMENT 'id within the kind' CODEC(T64, ZSTD(1)),
    `name` String COMMENT 'what it names' CODEC(ZSTD(1))
)
ENGINE = ReplacingMergeTree
ORDER BY (kind, id)
SETTINGS non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1, index_granularity = 8192
COMMENT 'Names of tag ids: a row for each id.';
