//! The only file that knows the `clickhouse` crate: requests, settings, and what its errors mean for a caller.

use std::{
    fmt,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use clickhouse::{Client as Http, Compression, error::Error as HttpError};
use hyper_util::{client::legacy::Client as Hyper, rt::TokioExecutor};
use tokio::sync::watch;

use super::{Error, Insert, Servers, fence};

/// A block is 100 MB at most, so a connection that takes no byte for this long is dead.
const SEND_WITHIN: Duration = Duration::from_secs(30);
/// Storing a block takes below a second; a store under heavy load some more. After this its fate is looked up.
const INSERT_WITHIN: Duration = Duration::from_secs(120);
/// ClickHouse closes connections that are idle for 3 s.
const IDLE_WITHIN: Duration = Duration::from_secs(2);
/// Our own questions are small.
const ASK_WITHIN: Duration = Duration::from_secs(60);

/// ClickHouse error codes that mean that the rows themselves cannot be stored. Every other code is taken as the store's own trouble:
/// to try again for ever costs less than to lose rows for a mistake in the store's set-up.
const REFUSED: &[u32] = &[
    6,   // CANNOT_PARSE_TEXT
    26,  // CANNOT_PARSE_QUOTED_STRING
    27,  // CANNOT_PARSE_INPUT_ASSERTION_FAILED
    32,  // ATTEMPT_TO_READ_AFTER_EOF
    33,  // CANNOT_READ_ALL_DATA
    53,  // TYPE_MISMATCH
    69,  // ARGUMENT_OUT_OF_BOUND
    117, // INCORRECT_DATA
    128, // TOO_LARGE_ARRAY_SIZE
    131, // TOO_LARGE_STRING_SIZE
    321, // VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE
];
/// FUNCTION_THROW_IF_VALUE_IS_NON_ZERO: only the guard of an insert has that function.
const FENCED: u32 = 395;
/// Codes after which a block may be stored or not.
const UNKNOWN: &[u32] = &[
    159, // TIMEOUT_EXCEEDED
    209, // SOCKET_TIMEOUT
    210, // NETWORK_ERROR
    319, // UNKNOWN_STATUS_OF_INSERT
    394, // QUERY_WAS_CANCELLED
    734, // QUERY_WAS_CANCELLED_BY_CLIENT
];

pub(super) struct Client {
    http: Http,
    servers: watch::Receiver<Servers>,
    /// Index of the address in use; moves on when it does not answer.
    current: AtomicUsize,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("servers", &*self.servers.borrow()).finish_non_exhaustive()
    }
}

impl Client {
    /// With `tls`, all addresses are `https`; without, none is.
    pub(super) fn new(servers: watch::Receiver<Servers>, tls: Option<&metaflow_tls::Client>) -> Self {
        let encrypted = |tls: &metaflow_tls::Client| {
            let hyper =
                Hyper::builder(TokioExecutor::new()).pool_idle_timeout(IDLE_WITHIN).build(tls.connector());
            Http::with_http_client(hyper)
        };
        Self { http: tls.map_or_else(Http::default, encrypted), servers, current: AtomicUsize::new(0) }
    }

    fn http(&self) -> Http {
        let servers = self.servers.borrow();
        let index = self.current.load(Ordering::Relaxed) % servers.urls.len().max(1);
        let url = servers.urls.get(index).map_or("", String::as_str);
        self.http
            .clone()
            .with_url(url)
            .with_user(&servers.user)
            .with_password(&servers.password)
            .with_compression(if servers.compress { Compression::Lz4 } else { Compression::None })
    }

    /// User and password, for statements that must name them.
    pub(super) fn credentials(&self) -> (String, String) {
        let servers = self.servers.borrow();
        (servers.user.clone(), servers.password.clone())
    }

    pub(super) async fn insert(&self, insert: &Insert) -> Result<(), Error> {
        let Insert { table: _, block, token, guard: _, query_id } = insert;
        let mut request = self
            .http()
            .insert_formatted_with(fence::insert_sql(insert))
            .with_setting("query_id", query_id)
            .with_setting("insert_deduplication_token", token)
            .with_setting("insert_deduplicate", "1")
            .with_setting("async_insert", "0")
            // The block becomes one part, which makes the insert atomic: it is neither split nor joined with another.
            .with_setting("max_insert_block_size", "4194304")
            .with_setting("min_insert_block_size_rows", "0")
            .with_setting("min_insert_block_size_bytes", "0")
            .with_setting("max_insert_threads", "1")
            .with_setting("max_partitions_per_insert_block", "1")
            // An error after the start of the answer would be taken for success.
            .with_setting("wait_end_of_query", "1")
            .with_timeouts(Some(SEND_WITHIN), Some(INSERT_WITHIN));
        let result = match request.send(block.clone()).await {
            Ok(()) => request.end().await,
            Err(error) => Err(error),
        };
        result.map_err(|error| self.classify(error))
    }

    pub(super) async fn execute(&self, sql: &str, settings: &[(&'static str, String)]) -> Result<(), Error> {
        self.body(sql, settings, super::OWN_ANSWER_BYTES_MAX).await.map(drop)
    }

    /// Rows of text.
    pub(super) async fn rows(&self, sql: &str, bytes_max: usize) -> Result<Vec<Vec<String>>, Error> {
        let body = self.body(sql, &[], bytes_max).await?;
        let text = String::from_utf8(body)
            .map_err(|_| Error::Unknown("the store's answer is not text".to_owned()))?;
        Ok(text.lines().map(|line| line.split('\t').map(str::to_owned).collect()).collect())
    }

    async fn body(
        &self,
        sql: &str,
        settings: &[(&'static str, String)],
        bytes_max: usize,
    ) -> Result<Vec<u8>, Error> {
        tokio::time::timeout(ASK_WITHIN, self.fetch(sql, settings, bytes_max))
            .await
            .unwrap_or_else(|_| Err(Error::Unknown(format!("nothing came within {ASK_WITHIN:?}"))))
    }

    pub(super) async fn query(
        &self,
        sql: &str,
        settings: &[(&'static str, String)],
        bytes_max: usize,
    ) -> Result<Vec<u8>, Error> {
        let mut all = vec![
            ("readonly", "2".to_owned()),
            // A caller who goes away must not leave its query behind.
            ("cancel_http_readonly_queries_on_client_close", "1".to_owned()),
        ];
        all.extend_from_slice(settings);
        self.fetch(sql, &all, bytes_max).await
    }

    async fn fetch(
        &self,
        sql: &str,
        settings: &[(&'static str, String)],
        bytes_max: usize,
    ) -> Result<Vec<u8>, Error> {
        let query = settings
            .iter()
            .fold(self.http().query_raw(sql), |query, (name, value)| query.with_setting(*name, value));
        let mut cursor = query.fetch_bytes("TabSeparated").map_err(|error| self.classify(error))?;
        let mut body = Vec::new();
        while let Some(chunk) = cursor.next().await.map_err(|error| self.classify(error))? {
            if body.len() + chunk.len() > bytes_max {
                return Err(Error::TooLarge(bytes_max));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    fn classify(&self, error: HttpError) -> Error {
        match error {
            HttpError::BadResponse(message) => classify_answer(message),
            HttpError::Network(source) => {
                self.current.fetch_add(1, Ordering::Relaxed);
                Error::Unknown(with_sources(source.as_ref()))
            }
            HttpError::TimedOut => {
                self.current.fetch_add(1, Ordering::Relaxed);
                Error::Unknown("nothing came in time".to_owned())
            }
            HttpError::InvalidParams(source) => Error::Setup(format!("the store's address: {source}")),
            HttpError::Unsupported(message) => Error::Setup(message),
            other => Error::Unknown(other.to_string()),
        }
    }
}

/// Reads `Code: 241. DB::Exception: ...`; an answer without a code comes from something in between.
fn classify_answer(message: String) -> Error {
    let code = message
        .strip_prefix("Code: ")
        .and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next())
        .and_then(|digits| digits.parse().ok());
    match code {
        Some(FENCED) => Error::Fenced(message),
        Some(code) if REFUSED.contains(&code) => Error::Refused { code, message },
        Some(code) if UNKNOWN.contains(&code) => Error::Unknown(message),
        Some(code) => Error::Transient { code, message },
        None => Error::Unknown(message),
    }
}

fn with_sources(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_rows_are_to_blame_for_is_refused() {
        let check = |message: &str| classify_answer(message.to_owned());
        assert!(matches!(
            check("Code: 33. DB::Exception: Cannot read all data"),
            Error::Refused { code: 33, .. }
        ));
        assert!(matches!(
            check("Code: 252. DB::Exception: Too many parts"),
            Error::Transient { code: 252, .. }
        ));
        assert!(matches!(check("Code: 60. DB::Exception: no table"), Error::Transient { code: 60, .. }));
        assert!(matches!(check("Code: 319. DB::Exception: unknown"), Error::Unknown(_)));
        assert!(matches!(check("502 Bad Gateway"), Error::Unknown(_)));
        assert!(matches!(check(""), Error::Unknown(_)));
    }
}
