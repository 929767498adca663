//! SmartEncoding against strings: the same rows with 40 tags as integers, as `LowCardinality(String)` and as `String`.
//!
//! Prints, for each form, the engine's CPU time for inserts and merges, the size on disk, and the CPU time of a filter and of a
//! group-by that answer with names. Run by `./dev bench`; needs the embedded engine and the `store_engine` example beside it. The
//! tables stand in `flow_tag` because the engine's user may write to MetaFlow's databases alone.

use std::{fmt::Write as _, process::ExitCode, time::Duration};

use anyhow::{Context, Result, ensure};
use metaflow_actors::store::{
    Servers,
    embedded::{Config, Engine, find_library},
};
use metaflow_schema::types::{write_text, write_varint};

const TAGS: usize = 40;
const ROWS_A_BATCH: usize = 50_000;
const BATCHES: usize = 20;
const QUERY_RUNS: usize = 10;
/// Kernel clock ticks a second (`getconf CLK_TCK`), 100 on every Linux that ClickHouse runs on.
const TICKS: f64 = 100.0;

/// Names a tag can have, cycling over the 40 tags: a fleet of 5,000 instances of 800 services on 500 machines.
const CARDINALITIES: [u32; 20] =
    [4, 12, 500, 2_000, 20, 20, 200, 10, 500, 100, 800, 5_000, 800, 50, 30, 10, 1_000, 3_000, 600, 5_000];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Integers,
    LowCardinality,
    Strings,
}

impl Form {
    const ALL: [Self; 3] = [Self::Integers, Self::LowCardinality, Self::Strings];

    const fn table(self) -> &'static str {
        match self {
            Self::Integers => "flow_tag.bench_integers",
            Self::LowCardinality => "flow_tag.bench_low_cardinality",
            Self::Strings => "flow_tag.bench_strings",
        }
    }

    const fn column(self) -> &'static str {
        match self {
            Self::Integers => "UInt32 CODEC(T64, ZSTD(1))",
            Self::LowCardinality => "LowCardinality(String) CODEC(ZSTD(1))",
            Self::Strings => "String CODEC(ZSTD(1))",
        }
    }
}

struct Figures {
    insert: f64,
    bytes: f64,
    filter: f64,
    group: f64,
}

struct Bench {
    http: reqwest::Client,
    servers: Servers,
    pid: u32,
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let folder = tempfile::tempdir()?;
    let program = std::env::current_exe()?.with_file_name("store_engine");
    ensure!(program.is_file(), "{} is missing: build the examples first", program.display());
    let engine = Engine::start(Config::new(program, find_library(None)?, folder.path().to_owned())).await?;
    let servers = engine.servers().borrow().clone();
    let pid = engine.process().borrow().context("the engine has no process")?;
    let bench = Bench { http: reqwest::Client::builder().no_proxy().build()?, servers, pid };
    bench.prepare().await?;
    let mut all = Vec::new();
    for form in Form::ALL {
        all.push(bench.measure(form).await?);
    }
    engine.stop().await;
    report(&all)?;
    Ok(ExitCode::SUCCESS)
}

fn report(all: &[Figures]) -> Result<()> {
    let rows = (ROWS_A_BATCH * BATCHES) as f64;
    let mut text = String::from(
        "| 40 tags a row as | insert CPU us/row | bytes/row | filter CPU ms | group-by CPU ms |\n|---|---|---|---|---|\n",
    );
    for (name, figures) in ["integers (SmartEncoding)", "LowCardinality(String)", "String"].iter().zip(all) {
        writeln!(
            text,
            "| {name} | {:.2} ({:.1}x) | {:.1} ({:.1}x) | {:.1} ({:.1}x) | {:.1} ({:.1}x) |",
            figures.insert * 1e6 / rows,
            figures.insert / all[0].insert,
            figures.bytes / rows,
            figures.bytes / all[0].bytes,
            figures.filter * 1e3,
            figures.filter / all[0].filter,
            figures.group * 1e3,
            figures.group / all[0].group,
        )?;
    }
    #[expect(clippy::print_stdout, reason = "a benchmark prints its result")]
    {
        print!("{text}");
    }
    Ok(())
}

impl Bench {
    async fn prepare(&self) -> Result<()> {
        self.run("CREATE DATABASE IF NOT EXISTS flow_tag").await?;
        self.run("CREATE TABLE flow_tag.bench_dictionary (kind UInt8, id UInt64, name String) ENGINE = MergeTree ORDER BY (kind, id)")
            .await?;
        for (tag, cardinality) in CARDINALITIES.into_iter().enumerate() {
            let name = name_sql(tag, "number");
            self.run(&format!(
                "INSERT INTO flow_tag.bench_dictionary SELECT {tag}, number, {name} FROM numbers({cardinality})"
            ))
            .await?;
        }
        for form in Form::ALL {
            let columns: Vec<_> = (0..TAGS).map(|tag| format!("t{tag} {}", form.column())).collect();
            self.run(&format!(
                "CREATE TABLE {} (time DateTime CODEC(DoubleDelta, LZ4), value UInt64 CODEC(T64, LZ4), {}) \
                 ENGINE = MergeTree ORDER BY (t12, t32, time)",
                form.table(),
                columns.join(", ")
            ))
            .await?;
        }
        Ok(())
    }

    async fn measure(&self, form: Form) -> Result<Figures> {
        let blocks: Vec<_> = (0..BATCHES).map(|batch| block(form, batch)).collect();
        let before = self.cpu()?;
        for block in blocks {
            self.insert(form.table(), block).await?;
        }
        self.run(&format!("OPTIMIZE TABLE {} FINAL", form.table())).await?;
        let insert = self.cpu()? - before;
        let (database, table) = form.table().split_once('.').context("a table has a database")?;
        let bytes = self
            .run(&format!(
                "SELECT sum(bytes_on_disk) FROM system.parts WHERE active AND database = '{database}' AND table = '{table}'"
            ))
            .await?
            .trim()
            .parse()?;
        let pod = name(11, 17);
        let (filter, group) = match form {
            Form::Integers => (
                format!(
                    "SELECT sum(value) FROM {} WHERE t11 IN (SELECT id FROM flow_tag.bench_dictionary WHERE kind = 11 AND name = '{pod}')",
                    form.table()
                ),
                format!(
                    "SELECT name, total FROM (SELECT toUInt64(t16) AS id, sum(value) AS total FROM {} GROUP BY t16) AS groups \
                     ANY INNER JOIN (SELECT id, name FROM flow_tag.bench_dictionary WHERE kind = 16) AS names USING (id) \
                     ORDER BY total DESC LIMIT 100",
                    form.table()
                ),
            ),
            Form::LowCardinality | Form::Strings => (
                format!("SELECT sum(value) FROM {} WHERE t11 = '{pod}'", form.table()),
                format!(
                    "SELECT t16, sum(value) AS total FROM {} GROUP BY t16 ORDER BY total DESC LIMIT 100",
                    form.table()
                ),
            ),
        };
        Ok(Figures {
            insert,
            bytes,
            filter: self.query_cpu(&filter).await?,
            group: self.query_cpu(&group).await?,
        })
    }

    /// Engine CPU seconds of one run, averaged.
    async fn query_cpu(&self, sql: &str) -> Result<f64> {
        self.run(sql).await?;
        let before = self.cpu()?;
        for _ in 0..QUERY_RUNS {
            self.run(sql).await?;
        }
        Ok((self.cpu()? - before) / QUERY_RUNS as f64)
    }

    /// CPU seconds of the engine's process since its start.
    fn cpu(&self) -> Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid))?;
        let after_name = stat.rsplit_once(')').context("no process name")?.1;
        let fields: Vec<_> = after_name.split_whitespace().collect();
        let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
        Ok(ticks / TICKS)
    }

    async fn run(&self, sql: &str) -> Result<String> {
        self.post(&[], sql.as_bytes().to_vec()).await
    }

    async fn insert(&self, table: &str, block: Vec<u8>) -> Result<()> {
        self.post(&[("query", format!("INSERT INTO {table} FORMAT Native"))], block).await.map(drop)
    }

    async fn post(&self, parameters: &[(&str, String)], body: Vec<u8>) -> Result<String> {
        let url = self.servers.urls.first().context("the engine has no address")?;
        let answer = self
            .http
            .post(url)
            .query(parameters)
            .header("X-ClickHouse-User", &self.servers.user)
            .header("X-ClickHouse-Key", &self.servers.password)
            .timeout(Duration::from_secs(120))
            .body(body)
            .send()
            .await?;
        let status = answer.status();
        let text = answer.text().await?;
        ensure!(status.is_success(), "{status}: {text}");
        Ok(text)
    }
}

/// What a tag's value is called: names as long as those of a real fleet.
fn name(tag: usize, id: u32) -> String {
    format!("{}-{id}-of-cluster-{}", PREFIXES[tag % PREFIXES.len()], id % 7)
}

fn name_sql(tag: usize, id: &str) -> String {
    format!(
        "concat('{}-', toString({id}), '-of-cluster-', toString({id} % 7))",
        PREFIXES[tag % PREFIXES.len()]
    )
}

const PREFIXES: [&str; 5] =
    ["payment-gateway", "node", "checkout-service", "eu-central", "inventory-worker-7c9d8f"];

/// The id of a row's tag: an instance decides all tags of its side, as in a fleet.
fn id(row: usize, tag: usize) -> u32 {
    let side = tag / CARDINALITIES.len();
    let instance = (row as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15 ^ (side as u64) << 17) >> 40;
    instance as u32 % 5_000 % CARDINALITIES[tag % CARDINALITIES.len()]
}

/// One Native block.
fn block(form: Form, batch: usize) -> Vec<u8> {
    let rows = batch * ROWS_A_BATCH..(batch + 1) * ROWS_A_BATCH;
    let mut out = Vec::new();
    write_varint(TAGS as u64 + 2, &mut out);
    write_varint(ROWS_A_BATCH as u64, &mut out);
    header("time", "DateTime", &mut out);
    rows.clone().for_each(|row| out.extend_from_slice(&(1_700_000_000 + row as u32 / 5_000).to_le_bytes()));
    header("value", "UInt64", &mut out);
    rows.clone().for_each(|row| out.extend_from_slice(&(row as u64 % 977).to_le_bytes()));
    for tag in 0..TAGS {
        let kind = tag % CARDINALITIES.len();
        if form == Form::Integers {
            header(&format!("t{tag}"), "UInt32", &mut out);
            rows.clone().for_each(|row| out.extend_from_slice(&id(row, tag).to_le_bytes()));
        } else {
            header(&format!("t{tag}"), "String", &mut out);
            rows.clone().for_each(|row| write_text(&name(kind, id(row, tag)), &mut out));
        }
    }
    out
}

fn header(name: &str, clickhouse: &str, out: &mut Vec<u8>) {
    write_text(name, out);
    write_text(clickhouse, out);
}
