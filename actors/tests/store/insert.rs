//! One engine, no faults: every table takes its block, tokens, ledger, migration, users, one start after another.

use bytes::Bytes;
use metaflow_actors::store::{Error, Guard, Insert, Migration, Servers, Store, embedded::Engine};
use metaflow_schema::{TABLES, tables::NETWORK_1S, tags::INTERNET_EPC};

use crate::kit::{self, NEW_YEAR};

/// A Native block of one row of zeros and empty texts, made from the declaration alone.
fn zeros(table: &metaflow_schema::Table) -> Bytes {
    let columns = (table.columns)();
    let mut block = Vec::new();
    metaflow_schema::types::write_varint(columns.len() as u64, &mut block);
    block.push(1);
    for column in &columns {
        metaflow_schema::types::write_text(&column.name, &mut block);
        metaflow_schema::types::write_text(column.clickhouse, &mut block);
        let width = match column.clickhouse {
            "UInt8" | "String" => 1,
            "UInt16" => 2,
            "UInt32" | "Int32" | "DateTime('UTC')" => 4,
            "UInt64" | "DateTime64(6, 'UTC')" => 8,
            "IPv6" => 16,
            other => panic!("add the width of {other}"),
        };
        block.extend(std::iter::repeat_n(0, width));
    }
    block.into()
}

fn insert(store: &Store, table: &'static metaflow_schema::Table, block: Bytes, token: &str) -> Insert {
    Insert { table, block, token: token.to_owned(), guard: Guard::Open, query_id: store.query_id() }
}

async fn count(store: &Store, sql: &str) -> u64 {
    store.rows(sql).await.unwrap()[0][0].parse().unwrap()
}

#[tokio::test]
async fn every_table_takes_a_block_once_per_token() {
    let folder = tempfile::tempdir().unwrap();
    let (engine, store) = kit::engine(folder.path()).await;
    assert_eq!(store.migrate().await.unwrap(), Default::default(), "a second migration finds nothing to do");
    // Rows of 1970 would be dropped by their TTL at once.
    store.rows("SYSTEM STOP MERGES").await.unwrap();
    for table in TABLES {
        for token in ["a", "a", "b"] {
            store.insert(&insert(&store, table, zeros(table), token)).await.unwrap();
        }
        let parts = format!(
            "SELECT sum(rows) FROM system.parts WHERE active AND database = '{}' AND table = '{}'",
            table.database, table.name
        );
        assert_eq!(count(&store, &parts).await, 2, "{}", table.name);
    }
    engine.stop().await;
}

#[tokio::test]
async fn a_large_block_is_one_part_and_its_batches_are_in_the_ledger() {
    let folder = tempfile::tempdir().unwrap();
    let (engine, store) = kit::engine(folder.path()).await;
    let rows = kit::network(5, &vec![NEW_YEAR; 100_000]);
    let block = Bytes::from(rows.encode_native().unwrap());
    store.rows("SYSTEM STOP MERGES").await.unwrap();
    store.insert(&insert(&store, &NETWORK_1S, block, "x")).await.unwrap();
    let parts = "SELECT count() FROM system.parts WHERE active AND table = 'network.1s'";
    assert_eq!(count(&store, parts).await, 1);

    let ids: Vec<_> = (0..10_000).map(kit::id).collect();
    let hour = NEW_YEAR / 3600;
    let stored = store.stored_batches(&NETWORK_1S, hour, &ids).await.unwrap();
    assert_eq!(stored.into_iter().collect::<Vec<_>>(), [kit::id(5)]);
    assert!(store.stored_batches(&NETWORK_1S, hour + 1, &ids).await.unwrap().is_empty());
    engine.stop().await;
}

#[tokio::test]
async fn errors_say_whose_fault_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let (engine, store) = kit::engine(folder.path()).await;
    let torn = zeros(&NETWORK_1S).slice(..40);
    let refused = store.insert(&insert(&store, &NETWORK_1S, torn, "t")).await;
    assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
    let two_partitions = kit::network(1, &[NEW_YEAR, NEW_YEAR + 3600]).encode_native().unwrap();
    let split = store.insert(&insert(&store, &NETWORK_1S, two_partitions.into(), "p")).await;
    assert!(matches!(split, Err(Error::Transient { code: 252, .. })), "{split:?}");
    let large = store.query("SELECT number FROM numbers(1000000)", &[], 1000).await;
    assert!(matches!(large, Err(Error::TooLarge(1000))), "{large:?}");
    let write = store.query("TRUNCATE TABLE flow_metrics.`network.1s`", &[], 1000).await;
    assert!(matches!(write, Err(Error::Transient { code: 164, .. })), "{write:?}");
    let file = store.rows("SELECT * FROM file('/etc/passwd', 'LineAsString')").await;
    assert!(matches!(file, Err(Error::Transient { code: 497, .. })), "{file:?}");
    engine.stop().await;
}

#[tokio::test]
async fn without_the_password_nothing_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let (engine, _store) = kit::engine(folder.path()).await;
    let urls = engine.servers().borrow().urls.clone();
    for (user, password) in [("default", ""), ("metaflow", "guess")] {
        let servers = Servers {
            urls: urls.clone(),
            user: user.to_owned(),
            password: password.to_owned(),
            compress: false,
        };
        let stranger = Store::servers(servers, 9);
        for sql in [
            "SELECT count() FROM flow_metrics.`network.1s`",
            "SELECT * FROM file('/etc/passwd', 'LineAsString')",
            "SHOW DATABASES",
            "SYSTEM STOP LISTEN HTTP",
        ] {
            assert!(stranger.rows(sql).await.is_err(), "{user}: {sql}");
        }
    }
    engine.stop().await;
}

#[tokio::test]
async fn columns_of_a_newer_release_are_added() {
    let folder = tempfile::tempdir().unwrap();
    let (engine, store) = kit::engine(folder.path()).await;
    store.rows("ALTER TABLE flow_metrics.`network.1s` DROP COLUMN packet_tx").await.unwrap();
    store.rows("ALTER TABLE flow_metrics.`network.1s` MODIFY COLUMN packet_rx UInt32").await.unwrap();
    let migration = store.migrate().await.unwrap();
    assert_eq!(migration.added, ["flow_metrics.network.1s.packet_tx"]);
    assert_eq!(migration.differing.len(), 1, "{migration:?}");
    engine.stop().await;
}

#[tokio::test]
async fn vpcs_of_an_earlier_release_become_what_they_were_meant_to_be() {
    let folder = tempfile::tempdir().unwrap();
    let (engine, store) = kit::engine(folder.path()).await;
    let table = "flow_metrics.`network.1s`";
    store.rows(&format!("ALTER TABLE {table} MODIFY COLUMN l3_epc_id Int32")).await.unwrap();
    // What the earlier release stored: the first VPC of nodes 511, 512 and 1023, and the internet.
    let ids = [511_u32, 512, 1_023].map(|node| node << 22 | 1);
    let signed = [ids[0].cast_signed(), ids[1].cast_signed(), ids[2].cast_signed(), -2];
    for id in signed {
        let sql = format!("INSERT INTO {table} (time, l3_epc_id) VALUES ({NEW_YEAR}, {id})");
        store.rows(&sql).await.unwrap();
    }
    let migration = store.migrate().await.unwrap();
    assert_eq!(migration.changed, ["flow_metrics.network.1s.l3_epc_id"]);
    assert!(migration.differing.is_empty(), "{migration:?}");
    let read = async || {
        let rows = store.rows(&format!("SELECT l3_epc_id FROM {table} ORDER BY l3_epc_id")).await.unwrap();
        rows.into_iter().map(|row| row[0].parse().unwrap()).collect::<Vec<u32>>()
    };
    assert_eq!(read().await, [ids[0], ids[1], INTERNET_EPC.min(ids[2]), INTERNET_EPC.max(ids[2])]);
    // A node of the earlier release that is not updated yet goes on with its own idea of the column.
    let late = format!("INSERT INTO {table} (time, l3_epc_id) SELECT {NEW_YEAR}, toInt32({})", signed[1]);
    store.rows(&late).await.unwrap();
    assert_eq!(read().await[1..3], [ids[1], ids[1]]);
    assert_eq!(store.migrate().await.unwrap(), Migration::default(), "once is enough");
    engine.stop().await;
}

#[tokio::test]
async fn data_and_names_survive_a_restart_and_a_second_engine_waits_its_turn() {
    let folder = tempfile::tempdir().unwrap();
    let (engine, store) = kit::engine(folder.path()).await;
    let block = kit::network(3, &[NEW_YEAR]).encode_native().unwrap();
    store.insert(&insert(&store, &NETWORK_1S, block.into(), "x")).await.unwrap();
    store.rows("INSERT INTO flow_tag.dictionary VALUES (1, 2, 'web')").await.unwrap();

    let mut impatient = kit::config(folder.path());
    impatient.ready_within = std::time::Duration::from_millis(500);
    let refused = Engine::start(impatient).await.unwrap_err().to_string();
    assert!(refused.contains("another engine has"), "{refused}");

    let waiting = tokio::spawn(Engine::start(kit::config(folder.path())));
    engine.stop().await;
    let engine = waiting.await.unwrap().unwrap();
    let store = Store::embedded(&engine, 1);
    store.migrate().await.unwrap();
    assert_eq!(kit::ledger(&store, &NETWORK_1S).await.into_iter().collect::<Vec<_>>(), [(3, 1)]);
    let name = store.rows("SELECT dictGet('flow_tag.names', 'name', (1, 2))").await.unwrap();
    assert_eq!(name, [["web"]]);
    engine.stop().await;
}

#[tokio::test]
async fn a_missing_library_says_how_to_get_it() {
    let error = metaflow_actors::store::embedded::find_library(Some("/nowhere/libchdb.so".as_ref()));
    assert!(error.unwrap_err().to_string().contains("./dev engine"));
}
