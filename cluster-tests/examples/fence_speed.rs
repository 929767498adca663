//! What the fence against late inserts costs: the engine's CPU time for the same blocks with and without the check against claims.
//!
//! Every insert where nodes share a store is checked (`actors/src/store/fence.rs`). The forms take turns, so that what else the machine does falls on
//! all of them; merges are off, since they are the same for all. Run by `./dev bench`; needs the embedded engine.

use std::{collections::HashMap, time::SystemTime};

use anyhow::{Context, Result, ensure};
use metaflow_actors::{
    dictionary::{self, Dictionary, NodeId},
    disk::{Disk, Memory},
    labeler::{Input, Snapshot},
    rows::{BatchId, Rows},
    store::{
        Guard, Insert, Store,
        embedded::{Config, Engine, find_library},
    },
    writer::Shelf,
};
use metaflow_cluster_tests::{ledger::request_batch, process::binary};
use metaflow_schema::{enums::Kind, tables::L7_FLOW_LOG};

const ROUNDS: usize = 12;
const INSERTS_A_ROUND: usize = 4;
const BATCHES_A_BLOCK: u64 = 25;
const ROWS_A_BATCH: u32 = 2_000;
/// What two nodes have claimed that lost half a minute of a thousand agents' batches.
const CLAIMS: u64 = 30_000;
const HOUR: u64 = 3_600;
/// Kernel clock ticks a second (`getconf CLK_TCK`).
const TICKS: f64 = 100.0;

#[tokio::main]
async fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let config = Config::new(binary("metaflow"), find_library(None)?, folder.path().to_owned());
    let engine = Engine::start(config).await?;
    let store = Store::embedded(&engine, 1);
    store.migrate().await?;
    store.rows("SYSTEM STOP MERGES").await?;
    let pid = engine.process().borrow().context("the engine has no process")?;
    #[expect(clippy::disallowed_methods, reason = "rows must be younger than the table's TTL")]
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    let second = now - now % HOUR;
    let partition = u32::try_from(second / HOUR)?;
    let rows = block(second)?;
    let template = Insert {
        table: &L7_FLOW_LOG,
        block: rows.encode_native()?.into(),
        token: String::new(),
        guard: Guard::Open,
        query_id: String::new(),
    };

    let forms = [
        ("no check", Guard::Open, 0),
        ("checked, no claim", Guard::Unclaimed { partition }, 0),
        ("checked, 30,000 claims in its partition", Guard::Unclaimed { partition }, CLAIMS),
    ];
    let mut spent = [0.0; 3];
    for round in 0..=ROUNDS {
        for ((_, guard, claims), spent) in forms.iter().zip(&mut spent) {
            set_claims(&store, partition, *claims).await?;
            let before = cpu(pid)?;
            for _ in 0..INSERTS_A_ROUND {
                let (token, query_id) = (store.query_id(), store.query_id());
                store.insert(&Insert { token, query_id, guard: *guard, ..template.clone() }).await?;
            }
            // The first round warms up.
            *spent += if round == 0 { 0.0 } else { cpu(pid)? - before };
        }
    }
    engine.stop().await;
    let count = (rows.len() * ROUNDS * INSERTS_A_ROUND) as f64;
    let mut text =
        String::from("| insert of 50,000 requests | engine CPU us a row | ratio |\n|---|---|---|\n");
    for ((name, ..), seconds) in forms.iter().zip(spent) {
        text += &format!("| {name} | {:.2} | {:.2} |\n", seconds * 1e6 / count, seconds / spent[0]);
    }
    #[expect(clippy::print_stdout, reason = "a benchmark prints its result")]
    {
        print!("{text}");
    }
    Ok(())
}

/// A block as a busy node inserts it, with its tags.
fn block(second: u64) -> Result<Rows> {
    let config = dictionary::Config::new(NodeId::new(1).context("a node id")?);
    let names = Dictionary::open(Disk::in_memory(&Memory::default()), config, &HashMap::new())?;
    let agent_id = names.id(Kind::Agent, "bench")?;
    let snapshot = Snapshot::default();
    let mut block: Option<Rows> = None;
    for seq in 0..BATCHES_A_BLOCK {
        let id = BatchId { agent_id, seq };
        let batch = request_batch(agent_id, seq, ROWS_A_BATCH, second);
        let rows = Input { snapshot: &snapshot, names: &names, id }.label(&batch)?;
        match &mut block {
            Some(block) => block.append(rows)?,
            None => block = Some(rows),
        }
    }
    block.context("a block has batches")
}

/// Claims of batches that are in none of the blocks.
async fn set_claims(store: &Store, partition: u32, claims: u64) -> Result<()> {
    store.rows("TRUNCATE TABLE flow_tag.claims").await?;
    let ids: Vec<_> = (0..claims).map(|seq| BatchId { agent_id: 9, seq }).collect();
    store.claim(&L7_FLOW_LOG, partition, &ids).await?;
    ensure!(store.claimed(&L7_FLOW_LOG, partition, &ids).await?.len() == ids.len(), "not all are claimed");
    Ok(())
}

/// User and system time of a process, in seconds.
fn cpu(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = stat.rsplit_once(')').context("no process name")?.1;
    let fields: Vec<_> = after_name.split_whitespace().collect();
    Ok((fields[11].parse::<f64>()? + fields[12].parse::<f64>()?) / TICKS)
}
