//! Querier: from a user's SQL to an answer.
//!
//! Role: compiles the text, runs what comes out on the store under limits, shapes the result. Input: one statement a call. Output: columns
//! and rows. Bound: a fixed number of queries runs, a fixed number waits, one more is refused; rows, bytes, time and memory of each are
//! limited by the engine. On failure: the error says whose fault it is; nothing is retried. Dropping the call's future ends the query.
//! It keeps no state of a query, so it is a service that callers share rather than an actor with a mailbox.

mod answer;
pub mod flame;
#[cfg(test)]
mod tests;
pub mod trace;

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use metaflow_query::{Compiled, Limits, Request, Shards};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::store::{self, Store};
pub use answer::{Answer, Column, Missing};

/// Bytes of one result. It is held once as text on its way to the client.
const RESULT_BYTES_MAX: usize = 64 << 20;

/// Of a result that the engine holds in memory until the query's end; what is beyond goes to a file of the engine's.
const RESULT_BUFFER_BYTES: usize = 1 << 20;

/// What the engine is given beyond a query's own time to stop by itself before the call is given up.
const GRACE: Duration = Duration::from_secs(2);

/// A store that runs statements which only read.
pub trait Source: Send + Sync + 'static {
    /// The body of the engine's answer to `sql`, run with these settings. Dropping the future ends the query.
    fn select(
        &self,
        sql: &str,
        settings: &[(&'static str, String)],
    ) -> impl Future<Output = Result<Vec<u8>, SourceError>> + Send;
}

/// The stores of the cluster, where each node has its own.
pub trait Stores: Send + Sync + 'static {
    /// Which can be read now.
    fn reach(&self) -> Pin<Box<dyn Future<Output = Reached> + Send + '_>>;
}

/// What can be read, and what cannot.
#[derive(Debug, Clone, Default)]
pub struct Reached {
    /// None: the own store has all rows.
    pub shards: Option<Shards>,
    /// Nodes whose rows an answer will lack.
    pub missing: Vec<Missing>,
}

/// Why a store did not answer.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It cannot be reached now.
    #[error("the store cannot be reached: {0}")]
    Unavailable(String),
    /// It answered with an error; `code` is ClickHouse's.
    #[error("{message}")]
    Refused { code: u32, message: String },
    #[error("the result exceeds {0} bytes")]
    TooLarge(usize),
}

impl Source for Store {
    async fn select(&self, sql: &str, settings: &[(&'static str, String)]) -> Result<Vec<u8>, SourceError> {
        self.query(sql, settings, RESULT_BYTES_MAX).await.map_err(|error| match error {
            store::Error::Transient { code, message } | store::Error::Refused { code, message } => {
                SourceError::Refused { code, message }
            }
            store::Error::Setup(message) | store::Error::Unknown(message) => {
                SourceError::Unavailable(message)
            }
            // Only inserts have a guard.
            store::Error::Fenced(message) => SourceError::Refused { code: 0, message },
            store::Error::TooLarge(bytes) => SourceError::TooLarge(bytes),
        })
    }
}

/// Limits of all queries.
#[derive(Debug, Clone)]
pub struct Config {
    pub running_max: usize,
    pub waiting_max: usize,
    pub timeout: Duration,
    pub memory_bytes: u64,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Refused(#[from] metaflow_query::Error),
    #[error("too many queries: {running} run and {waiting} wait; try again later")]
    Busy { running: usize, waiting: usize },
    #[error("the query took longer than {0:?}; narrow its time range")]
    TimedOut(Duration),
    #[error("the query needs more than the limits allow: {0}; narrow its time range or set a LIMIT")]
    TooLarge(String),
    #[error(
        "{0:?} is neither a trace id nor a row's id (start_time, agent_id, flow_id, observation_point, req_tcp_seq, resp_tcp_seq, request_id, joined by -)"
    )]
    NoSeed(String),
    #[error("{0}")]
    Unavailable(String),
    #[error("the store failed: {0}")]
    Store(String),
}

/// Answers statements.
pub struct Querier<S> {
    source: S,
    /// None: the source has all rows.
    stores: Option<Arc<dyn Stores>>,
    config: Config,
    /// Queries that run or wait.
    admitted: Semaphore,
    running: Semaphore,
}

impl<S: Source> Querier<S> {
    pub fn new(source: S, config: Config) -> Self {
        let admitted = Semaphore::new(config.running_max.saturating_add(config.waiting_max));
        let running = Semaphore::new(config.running_max);
        Self { source, stores: None, config, admitted, running }
    }

    /// Answers for all these stores.
    #[must_use]
    pub fn with_stores(mut self, stores: Arc<dyn Stores>) -> Self {
        self.stores = Some(stores);
        self
    }

    /// Queries that run now.
    pub fn running(&self) -> usize {
        self.config.running_max.saturating_sub(self.running.available_permits())
    }

    /// Queries that wait for one to end.
    pub fn waiting(&self) -> usize {
        let admitted = self.config.running_max.saturating_add(self.config.waiting_max);
        admitted.saturating_sub(self.admitted.available_permits()).saturating_sub(self.running())
    }

    /// Answers one statement. `now_seconds` is what `now()` means in it.
    pub async fn answer(&self, sql: &str, database: Option<&str>, now_seconds: u32) -> Result<Answer, Error> {
        self.answer_to(|request| metaflow_query::compile(sql, request), database, now_seconds).await
    }

    /// Answers what `compile` makes for the stores that are there.
    async fn answer_to(
        &self,
        compile: impl Fn(&Request<'_>) -> Result<Compiled, metaflow_query::Error> + Send + Sync,
        database: Option<&str>,
        now_seconds: u32,
    ) -> Result<Answer, Error> {
        let request = Request { database, now_seconds, shards: None };
        match compile(&request)? {
            Compiled::Answer { columns, rows } => Ok(Answer::from_catalogue(columns, &rows)),
            Compiled::Select { sql: local, columns, limits } => {
                let Some(stores) = &self.stores else {
                    let body = self.run(&local, &limits).await?;
                    return Answer::from_store(columns, &body, vec![]);
                };
                let reached = stores.reach().await;
                match self.read(&compile, &request, reached).await {
                    // A store went away in between: it is found missing the second time.
                    Err(Error::Unavailable(_)) => self.read(&compile, &request, stores.reach().await).await,
                    result => result,
                }
            }
        }
    }

    /// Reads the stores that were reached.
    async fn read(
        &self,
        compile: &(impl Fn(&Request<'_>) -> Result<Compiled, metaflow_query::Error> + Send + Sync),
        request: &Request<'_>,
        reached: Reached,
    ) -> Result<Answer, Error> {
        let Reached { shards, missing } = reached;
        match compile(&Request { shards: shards.as_ref(), ..*request })? {
            Compiled::Answer { columns, rows } => Ok(Answer::from_catalogue(columns, &rows)),
            Compiled::Select { sql, columns, limits } => {
                let body = self.run(&sql, &limits).await?;
                Answer::from_store(columns, &body, missing)
            }
        }
    }

    async fn run(&self, sql: &str, limits: &Limits) -> Result<Vec<u8>, Error> {
        let sql = format!("{sql} FORMAT JSONCompact");
        let settings = self.settings(limits);
        let work = async {
            let _permits = self.admit().await?;
            self.source.select(&sql, &settings).await.map_err(|error| self.explain(error))
        };
        // Waiting counts: a caller wants to know after the same time in any case.
        match tokio::time::timeout(self.config.timeout + GRACE, work).await {
            Ok(result) => result,
            Err(_) => Err(Error::TimedOut(self.config.timeout)),
        }
    }

    async fn admit(&self) -> Result<(SemaphorePermit<'_>, SemaphorePermit<'_>), Error> {
        let busy = || Error::Busy { running: self.config.running_max, waiting: self.config.waiting_max };
        let admitted = self.admitted.try_acquire().map_err(|_| busy())?;
        let running = self.running.acquire().await.map_err(|_| busy())?;
        Ok((admitted, running))
    }

    fn settings(&self, limits: &Limits) -> Vec<(&'static str, String)> {
        let seconds = u32::try_from(self.config.timeout.as_secs()).unwrap_or(u32::MAX).max(1);
        let limits = Limits {
            rows: limits.rows,
            execution_seconds: limits.execution_seconds.min(seconds),
            memory_bytes: limits.memory_bytes.min(self.config.memory_bytes),
            readonly: limits.readonly,
        };
        let mut settings = limits.settings().to_vec();
        settings.extend([
            ("max_result_bytes", RESULT_BYTES_MAX.to_string()),
            // An error in the middle of a result must not look like a short result.
            ("wait_end_of_query", "1".to_owned()),
            // Without it the engine keeps every result in a file until its end, which a full disk would not take.
            ("buffer_size", RESULT_BUFFER_BYTES.to_string()),
            ("output_format_json_quote_64bit_integers", "0".to_owned()),
            ("output_format_json_quote_denormals", "0".to_owned()),
        ]);
        settings
    }

    fn explain(&self, error: SourceError) -> Error {
        match error {
            unavailable @ SourceError::Unavailable(_) => Error::Unavailable(unavailable.to_string()),
            too_large @ SourceError::TooLarge(_) => Error::TooLarge(too_large.to_string()),
            SourceError::Refused { code, message } => match code {
                // TIMEOUT_EXCEEDED, TOO_SLOW.
                159 | 160 => Error::TimedOut(self.config.timeout),
                // TOO_MANY_ROWS, TOO_MANY_BYTES, MEMORY_LIMIT_EXCEEDED, TOO_MANY_ROWS_OR_BYTES.
                158 | 307 | 241 | 396 => Error::TooLarge(message),
                // TOO_MANY_SIMULTANEOUS_QUERIES: of a server that others ask too.
                202 => Error::Unavailable(message),
                // ATTEMPT_TO_READ_AFTER_EOF, SOCKET_TIMEOUT, NETWORK_ERROR, ALL_CONNECTION_TRIES_FAILED, AUTHENTICATION_FAILED: one of
                // several stores went away, or came back as another one.
                32 | 209 | 210 | 279 | 516 if self.stores.is_some() => Error::Unavailable(message),
                _ => Error::Store(message),
            },
        }
    }
}
