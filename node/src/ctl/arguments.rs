//! Options that verbs share, to be flattened into their own: how to print, whether to repeat, to wait, only to say what would be done.

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use clap::Args;
use tokio::time::Instant;

use super::{Failure, output::Format, print};

/// Between two looks at something that is waited for.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(200);

/// What verbs that show something have.
#[derive(Debug, Args)]
pub(super) struct View {
    #[command(flatten)]
    pub(super) output: Output,
    #[command(flatten)]
    watch: Watch,
}

/// How to print.
#[derive(Debug, Args)]
pub(super) struct Output {
    /// How to print: json and yaml have everything, wide has more columns than table.
    #[arg(short = 'o', long = "output", value_enum, default_value = "table", value_name = "FORMAT")]
    pub(super) format: Format,
}

/// Whether to print again and again.
#[derive(Debug, Args)]
struct Watch {
    /// Print it again and again, every two seconds or as often as is said, until the program is stopped.
    #[arg(
        short = 'w',
        long,
        value_name = "INTERVAL",
        num_args = 0..=1,
        default_missing_value = "2s",
        value_parser = interval
    )]
    watch: Option<Duration>,
}

/// Whether to stay until it is done.
#[derive(Debug, Args)]
pub(super) struct Wait {
    /// Wait until it is done; exit code 3 when it is not in time.
    #[arg(long)]
    wait: bool,
    /// How long to wait.
    #[arg(
        long,
        default_value = "60s",
        value_name = "DURATION",
        requires = "wait",
        value_parser = humantime::parse_duration
    )]
    timeout: Duration,
}

/// Whether to change anything.
#[derive(Debug, Args)]
pub(super) struct DryRun {
    /// Only say what would be done.
    #[arg(long)]
    pub(super) dry_run: bool,
}

/// What a verb found, as text, and what is wrong with it, if anything: then the exit code is 3.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) text: String,
    pub(super) trouble: Option<String>,
}

impl From<String> for Shown {
    fn from(text: String) -> Self {
        Self { text, trouble: None }
    }
}

/// What became of something that is waited for.
#[derive(Debug)]
pub(super) enum Progress {
    Done,
    /// What is still missing.
    Unfinished(String),
}

impl View {
    /// Prints what `show` makes, once, or until the program is stopped.
    pub(super) async fn run<S: Into<Shown>>(
        &self,
        mut show: impl AsyncFnMut(Format) -> Result<S, Failure>,
    ) -> Result<(), Failure> {
        let format = self.output.format;
        let Some(interval) = self.watch.watch else {
            let Shown { text, trouble } = show(format).await?.into();
            print(&text)?;
            return trouble.map_or(Ok(()), |trouble| Err(Failure::Degraded(trouble)));
        };
        repeat(interval, async || show(format).await.map(|shown| shown.into().text)).await
    }
}

impl Wait {
    /// Looks until it is done or the time is over. Without `--wait` it does nothing.
    pub(super) async fn until(
        &self,
        what: &str,
        mut look: impl AsyncFnMut() -> Result<Progress, Failure>,
    ) -> Result<(), Failure> {
        if !self.wait {
            return Ok(());
        }
        let deadline = Instant::now() + self.timeout;
        loop {
            let Progress::Unfinished(missing) = look().await? else { return Ok(()) };
            if Instant::now() >= deadline {
                let timeout = humantime::format_duration(self.timeout);
                return Err(Failure::Degraded(format!(
                    "{what} is not done after {timeout}: {missing}; it goes on by itself"
                )));
            }
            tokio::time::sleep(LOOK_AGAIN_AFTER).await;
        }
    }
}

/// Shows a text anew each time, until the program is stopped. A node that is away for a while does not end it.
pub(super) async fn repeat(
    interval: Duration,
    mut show: impl AsyncFnMut() -> Result<String, Failure>,
) -> Result<(), Failure> {
    let terminal = io::stdout().is_terminal();
    loop {
        let shown = match show().await {
            Ok(text) => text,
            // A node that restarts comes back; whoever watches wants to see both.
            Err(failure @ (Failure::Unreachable(_) | Failure::Degraded(_))) => format!("{failure}\n"),
            Err(failure) => return Err(failure),
        };
        // Home, then clear to the end: no flicker, unlike clearing first.
        print(&if terminal { format!("\x1b[H{}\x1b[J", shown.replace('\n', "\x1b[K\n")) } else { shown })?;
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
    }
}

/// More often would only load the node.
fn interval(text: &str) -> Result<Duration, String> {
    let least = Duration::from_millis(100);
    let interval = humantime::parse_duration(text).map_err(|error| format!("{error}; write e.g. 5s"))?;
    if interval < least { Err("shorter than 100ms".to_owned()) } else { Ok(interval) }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        view: View,
        #[command(flatten)]
        wait: Wait,
        #[command(flatten)]
        dry_run: DryRun,
    }

    fn parse(line: &str) -> Result<Line, String> {
        Line::try_parse_from(line.split_whitespace()).map_err(|error| error.to_string())
    }

    #[test]
    fn shared_options_are_read() {
        let line = parse("x --watch -o yaml --wait --timeout 5m --dry-run").unwrap();
        assert_eq!(line.view.watch.watch, Some(Duration::from_secs(2)));
        assert_eq!(line.view.output.format, Format::Yaml);
        assert_eq!((line.wait.timeout, line.dry_run.dry_run), (Duration::from_secs(300), true));
        assert_eq!(parse("x -w 500ms").unwrap().view.watch.watch, Some(Duration::from_millis(500)));
        assert_eq!(parse("x").unwrap().view.watch.watch, None);
        for (line, part) in [
            ("x --watch 1ms", "shorter"),
            ("x --watch soon", "5s"),
            ("x --timeout 5s", "--wait"),
            ("x -o xml", "yaml"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(part), "{line}: {error}");
        }
    }

    #[tokio::test]
    async fn waiting_ends_when_it_is_done_or_with_what_is_missing() {
        let wait = parse("x --wait --timeout 10s").unwrap().wait;
        let mut looks = 0;
        let done = wait.until("the move", async || {
            looks += 1;
            Ok(if looks == 3 { Progress::Done } else { Progress::Unfinished(String::new()) })
        });
        done.await.unwrap();
        let wait = parse("x --wait --timeout 0s").unwrap().wait;
        let unfinished =
            wait.until("the move", async || Ok(Progress::Unfinished("2 agents are left".to_owned())));
        let failure = unfinished.await.unwrap_err();
        assert_eq!(failure.code(), 3);
        assert!(failure.to_string().contains("2 agents are left"), "{failure}");
        let not_waited = parse("x").unwrap().wait;
        not_waited.until("the move", async || panic!("it looks")).await.unwrap();
    }
}
