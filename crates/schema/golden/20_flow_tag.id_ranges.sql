CREATE TABLE IF NOT EXISTS flow_tag.id_ranges
(
    `node` UInt16,
    `number` UInt32,
    `holder` UInt64,
    `time` DateTime('UTC') DEFAULT now()
)
ENGINE = MergeTree
ORDER BY (node, number)
COMMENT 'Ranges of ids that a life of a node has for itself';
