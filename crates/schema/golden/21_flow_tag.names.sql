CREATE DICTIONARY IF NOT EXISTS flow_tag.names
(
    `kind` UInt8,
    `id` UInt64,
    `name` String
)
PRIMARY KEY kind, id
SOURCE(CLICKHOUSE(HOST '127.0.0.1' DB 'flow_tag' TABLE 'dictionary'))
LAYOUT(COMPLEX_KEY_DIRECT());
