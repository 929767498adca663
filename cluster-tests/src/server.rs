//! A ClickHouse server of one's own: the engine as a process that no node supervises, on a port that stays the same.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Child;

use crate::{
    process::{Place, binary, free_port, tail},
    wait_for,
};

const START_DEADLINE: Duration = Duration::from_secs(60);
const USER: &str = "operator";
const PASSWORD: &str = "pass & <word>";

/// A server in a folder of its own; it ends with the test.
pub struct StoreServer {
    folder: PathBuf,
    place: Place,
    /// Where the test reaches it, as `host:port`.
    reached_at: String,
    http_port: u16,
    tcp_port: u16,
    child: Option<Child>,
}

impl StoreServer {
    /// A server that is not started yet. Its configuration is an operator's own: MetaFlow knows an address and a user, no more.
    pub fn configure(folder: &Path) -> Result<Self> {
        let mut server = Self::configure_in(folder, Place::default(), String::new())?;
        server.reached_at = server.address();
        Ok(server)
    }

    /// One that runs somewhere else: it listens on that place's loopback alone, so the test reaches it through something.
    pub fn configure_in(folder: &Path, place: Place, reached_at: String) -> Result<Self> {
        std::fs::create_dir_all(folder.join("data"))?;
        let folder = folder.canonicalize()?;
        std::fs::write(folder.join("config.xml"), server_configuration(&folder))?;
        std::fs::write(folder.join("users.xml"), users())?;
        std::fs::write(folder.join("password"), format!("{PASSWORD}\n"))?;
        Ok(Self { folder, place, reached_at, http_port: free_port(), tcp_port: free_port(), child: None })
    }

    /// The lines of a node's configuration that point at this server.
    pub fn node_configuration(&self) -> String {
        self.node_configuration_through(&format!("http://{}", self.address()))
    }

    /// The same, for a node that reaches it at another address.
    pub fn node_configuration_through(&self, url: &str) -> String {
        format!(
            "[store]\nmode = \"server\"\nurls = [\"{url}\"]\nuser = \"{USER}\"\npassword_file = {:?}\n",
            self.folder.join("password")
        )
    }

    /// Where it speaks HTTP, as `host:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.http_port)
    }

    /// Starts it (again) on the same folder and ports, and waits until it answers.
    pub async fn start(&mut self) -> Result<()> {
        self.spawn()?;
        self.ready().await
    }

    /// Starts the process without waiting for it.
    pub fn spawn(&mut self) -> Result<()> {
        ensure!(self.child.is_none(), "the server runs already");
        let library = library()?;
        let log = std::fs::File::options().create(true).append(true).open(self.folder.join("server.log"))?;
        let child = self
            .place
            .command(binary("metaflow"))
            .arg("store-engine")
            .arg("--library")
            .arg(library)
            .arg("--data")
            .arg(&self.folder)
            .args(["--http-port", &self.http_port.to_string(), "--tcp-port", &self.tcp_port.to_string()])
            // It ends when this closes.
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        self.child = Some(child);
        Ok(())
    }

    /// Waits until a spawned server answers.
    pub async fn ready(&self) -> Result<()> {
        let url = format!("http://{}/ping", self.reached_at);
        wait_for("the server to answer", START_DEADLINE, async || {
            let answer = reqwest::get(&url).await?;
            ensure!(answer.status().is_success(), "{}", answer.status());
            anyhow::Ok(())
        })
        .await
        .with_context(|| format!("the server's log ends with:\n{}", tail(&self.folder.join("server.log"))))
    }

    /// Sends a signal, e.g. to stop it and let it go on.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid =
            self.child.as_ref().and_then(Child::id).and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        kill_process(pid.context("the server does not run")?, signal).context("failed to signal the server")
    }

    /// Runs a statement as the operator; gives the lines of the answer.
    pub async fn sql(&self, statement: impl Into<String>) -> Result<Vec<String>> {
        let client = reqwest::Client::builder().no_proxy().build()?;
        let request = client.post(format!("http://{}", self.address())).basic_auth(USER, Some(PASSWORD));
        let answer = request.body(statement.into()).send().await?;
        let (status, text) = (answer.status(), answer.text().await?);
        ensure!(status.is_success(), "the server says {text}");
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// kill -9, and reaps it.
    pub async fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the server does not run")?;
        child.kill().await.context("failed to kill the server")
    }
}

/// Where `./dev` puts the engine, or what the environment says.
fn library() -> Result<PathBuf> {
    let cache = || {
        let home = std::env::var_os("HOME")?;
        let versions = std::fs::read_dir(PathBuf::from(home).join(".cache/metaflow/engine")).ok()?;
        versions.flatten().map(|version| version.path().join("libchdb.so")).find(|path| path.is_file())
    };
    let named = std::env::var_os("METAFLOW_ENGINE").map(PathBuf::from);
    named.or_else(cache).context("no engine: run ./dev engine, or set METAFLOW_ENGINE to libchdb.so")
}

fn server_configuration(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "<clickhouse>
<users_config>{folder}/users.xml</users_config>
<logger><level>warning</level><log>{folder}/engine.log</log><size>10M</size><count>1</count></logger>
<max_server_memory_usage>1073741824</max_server_memory_usage>
<mark_cache_size>67108864</mark_cache_size>
<background_pool_size>2</background_pool_size>
<background_schedule_pool_size>4</background_schedule_pool_size>
<merge_tree>
<number_of_free_entries_in_pool_to_lower_max_size_of_merge>1</number_of_free_entries_in_pool_to_lower_max_size_of_merge>
<number_of_free_entries_in_pool_to_execute_mutation>1</number_of_free_entries_in_pool_to_execute_mutation>
<number_of_free_entries_in_pool_to_execute_optimize_entire_partition>1</number_of_free_entries_in_pool_to_execute_optimize_entire_partition>
</merge_tree>
</clickhouse>
"
    )
}

fn users() -> String {
    let password = PASSWORD.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    format!(
        "<clickhouse>
<profiles><default>
<function_sleep_max_microseconds_per_block>60000000</function_sleep_max_microseconds_per_block>
</default></profiles>
<quotas><default/></quotas>
<users>
<default><password></password><networks><ip>127.0.0.1</ip></networks><profile>default</profile><quota>default</quota></default>
<{USER}><password>{password}</password><networks><ip>127.0.0.1</ip></networks><profile>default</profile><quota>default</quota></{USER}>
</users>
</clickhouse>
"
    )
}
