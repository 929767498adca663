//! Go and PostgreSQL.

use std::{
    env::current_exe,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{Chain, START_DEADLINE, program};
use crate::process::free_port;

/// Where the distribution has versions of the database.
const POSTGRESQL: &str = "/usr/lib/postgresql";

impl Chain {
    /// PostgreSQL, asked so often by a program in each trace. It is asked when it says that it is ready: it listens before that.
    pub fn postgresql(&mut self, below: u16, asked: usize) -> Result<u16> {
        let port = free_port();
        let programs = std::fs::read_dir(POSTGRESQL)
            .ok()
            .and_then(|mut versions| versions.next())
            .with_context(|| format!("no PostgreSQL in {POSTGRESQL}"))??
            .path()
            .join("bin");
        let data = self.folder.join("postgresql");
        std::fs::create_dir(&data)?;
        std::fs::set_permissions(&self.folder, PermissionsExt::from_mode(0o755))?;
        std::os::unix::fs::chown(&data, Some(id("-u")?), Some(id("-g")?))?;
        let made = as_postgres(&programs.join("initdb"))
            .args(["--auth=trust", "--no-sync", "-U", "postgres", "-D"])
            .arg(&data)
            .output()
            .context("failed to run initdb")?;
        ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let mut server = as_postgres(&programs.join("postgres"));
        server.args(["-F", "-h", "127.0.0.1", "-p", &port.to_string(), "-D"]).arg(&data).arg("-k").arg(&data);
        self.start(&mut server, port)?;
        let deadline = Instant::now() + START_DEADLINE;
        let mut ready = as_postgres(&programs.join("pg_isready"));
        ready.args(["-q", "-h", "127.0.0.1", "-p", &port.to_string()]);
        while !ready.status()?.success() {
            ensure!(Instant::now() < deadline, "PostgreSQL is not ready");
            std::thread::park_timeout(Duration::from_millis(20));
        }
        self.add(port, Some(below), asked);
        Ok(port)
    }

    /// A server of HTTP in Go, which asks PostgreSQL three times, twice at the same time.
    pub fn go(&mut self, port: u16, database: u16) -> Result<()> {
        let binary = self.folder.join("shop");
        // Libraries as the distribution has them.
        let output = Command::new("go")
            .arg("build")
            .arg("-o")
            .arg(&binary)
            .arg(program("shop.go"))
            .envs([("GO111MODULE", "off"), ("GOPATH", "/usr/share/gocode"), ("GOFLAGS", "")])
            .env("GOCACHE", cache()?)
            .output()
            .context("failed to run go")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let dsn = format!("host=127.0.0.1 port={database} user=postgres dbname=postgres sslmode=disable");
        self.start(Command::new(binary).args([port.to_string(), dsn]).args(self.tls.iter().flatten()), port)?;
        self.look_into_last();
        self.add(port, None, 1);
        Ok(())
    }
}

/// Beside what cargo built, so that the libraries are compiled once.
fn cache() -> Result<PathBuf> {
    Ok(current_exe()?.with_file_name("go-build"))
}

/// A number of the database's user.
fn id(which: &str) -> Result<u32> {
    let output = Command::new("id").args([which, "postgres"]).output()?;
    String::from_utf8_lossy(&output.stdout).trim().parse().context("there is no user postgres")
}

/// The database refuses to run as root.
fn as_postgres(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program).current_dir("/");
    command
}
