//! The agent process: command line, logs, signals.

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand, ValueEnum};
use metaflow_agent::{
    capabilities,
    config::{Config, Log, LogFormat},
    heap,
    process::{self, Replay, Status},
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Sees the requests and flows of this host and sends them to a node.
#[derive(Debug, Parser)]
#[command(name = "metaflow-agent", version)]
struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Args)]
struct Options {
    /// Configuration file (TOML)
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Node to send to; may be given several times, the preferred first
    #[arg(long, global = true, value_name = "HOST:PORT")]
    server: Vec<String>,
    /// Directory of the spool
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Identity of this agent instead of that of the host
    #[arg(long, global = true, value_name = "ID")]
    machine_id: Option<String>,
    /// Print what was done as JSON at the end
    #[arg(long, global = true)]
    status_json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Capture the traffic of this host (the default)
    Run,
    /// Replay capture files; ends when everything is stored
    Replay(ReplayOptions),
    /// Say what works on this host
    Capabilities,
}

#[derive(Debug, Args)]
struct ReplayOptions {
    /// Capture files (pcap or pcapng)
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// How often to replay the files
    #[arg(long = "loop", value_name = "N", default_value_t = 1)]
    times: u32,
    /// Speed as a multiple of the original; without it as fast as possible
    #[arg(long, value_name = "X")]
    pace: Option<f64>,
    /// Times of the rows: those of the files, or moved to the present
    #[arg(long, value_enum, default_value_t = At::Original)]
    at: At,
    /// Give up when nothing was stored for so long
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    patience: u64,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum At {
    Original,
    Now,
}

fn main() -> ExitCode {
    heap::keep_little();
    let cli = Cli::parse();
    match start(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The last resort: when standard error is closed, the exit code still says it.
            writeln!(io::stderr(), "metaflow-agent: {error:#}").ok();
            ExitCode::FAILURE
        }
    }
}

fn start(cli: Cli) -> anyhow::Result<()> {
    let Cli { options, command } = cli;
    let mut config = match &options.config {
        Some(path) => Config::load(path)?,
        None => Config::default(),
    };
    if !options.server.is_empty() {
        config.servers.clone_from(&options.server);
    }
    if let (Some(directory), None | Some(Command::Run)) = (&options.data_dir, &command) {
        config.data_dir.clone_from(directory);
    }
    config.check()?;
    if let Some(Command::Capabilities) = command {
        return capabilities::print(&mut io::stdout(), &config);
    }
    init_log(&config.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("network")
        .enable_all()
        .build()
        .context("failed to start the network threads")?;
    runtime.block_on(serve(config, options, command))
}

async fn serve(mut config: Config, options: Options, command: Option<Command>) -> anyhow::Result<()> {
    let stop = stop_on_signals()?;
    let (status, result) = match command {
        Some(Command::Replay(replay)) => {
            let ReplayOptions { files, times, pace, at, patience } = replay;
            let replay = Replay {
                files,
                times,
                pace,
                at_now: matches!(at, At::Now),
                patience: Duration::from_secs(patience),
                data_dir: options.data_dir,
                machine_id: options.machine_id,
            };
            process::replay(config, replay, stop).await?
        }
        _ => {
            if let Some(machine_id) = options.machine_id {
                config.machine_id = machine_id;
            }
            (process::run(config, stop).await?, Ok(()))
        }
    };
    report(&status, options.status_json)?;
    result
}

fn report(status: &Status, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        writeln!(io::stdout(), "{}", status.to_json()?).context("failed to print the status")?;
    } else {
        tracing::info!(
            packets = status.packets,
            kernel_drops = status.kernel_drops,
            flows = status.flows,
            sessions = status.sessions,
            batches_sealed = status.batches_sealed,
            batches_committed = status.batches_committed,
            batches_pending = status.batches_pending,
            rows_lost = status.losses.total(),
            "end"
        );
    }
    Ok(())
}

/// SIGTERM and Ctrl-C ask for an orderly end; a second one ends at once.
fn stop_on_signals() -> anyhow::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("failed to listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("failed to listen for Ctrl-C")?;
    let token = stop.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if token.is_cancelled() {
                std::process::exit(130);
            }
            tracing::info!("stopping");
            token.cancel();
        }
    });
    Ok(stop)
}

fn init_log(log: &Log) -> anyhow::Result<()> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(filter) => EnvFilter::try_new(filter).context("RUST_LOG is not a filter")?,
        Err(_) => EnvFilter::try_new(&log.filter).context("log.filter is not a filter")?,
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let result = match log.format {
        LogFormat::Text => builder.with_ansi(is_terminal()).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    result.map_err(|error| anyhow::anyhow!("failed to start logging: {error}"))
}

fn is_terminal() -> bool {
    io::IsTerminal::is_terminal(&io::stderr()) && Path::new("/dev/tty").exists()
}
