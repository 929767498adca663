//! The HTTP client of the commands.

use std::time::Duration;

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::Failure;

/// Longer than any query may take on the node.
const TIMEOUT: Duration = Duration::from_secs(120);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A node's HTTP interface.
#[derive(Debug)]
pub(crate) struct Client {
    base: String,
    http: reqwest::Client,
}

/// The answer to a statement.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Answer {
    pub(crate) columns: Vec<String>,
    pub(crate) values: Vec<Vec<Value>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "UPPERCASE")]
struct Envelope {
    opt_status: String,
    description: String,
    #[serde(rename = "result")]
    result: Option<Answer>,
}

impl Client {
    pub(crate) fn new(url: &str) -> Result<Self, Failure> {
        let base = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TIMEOUT)
            // A node is a machine of one's own: a proxy of the environment is for the world outside.
            .no_proxy()
            .build()
            .map_err(|error| Failure::Usage(format!("failed to make an HTTP client: {error}")))?;
        let base = base.trim_end_matches('/').to_owned();
        match base.parse::<reqwest::Url>() {
            Ok(parsed) if parsed.scheme() == "http" => Ok(Self { base, http }),
            _ => Err(Failure::Usage(format!("{url:?} is not an address; write e.g. http://127.0.0.1:20416"))),
        }
    }

    /// Runs a statement.
    pub(crate) async fn query(&self, sql: &str, database: Option<&str>) -> Result<Answer, Failure> {
        let form = [("db", database.unwrap_or_default()), ("sql", sql)];
        let request = self.http.post(format!("{}/v1/query/", self.base)).form(&form);
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        let body = response.bytes().await.map_err(|error| self.unreachable(&error))?;
        let envelope: Envelope = serde_json::from_slice(&body).map_err(|_| {
            Failure::Degraded(format!("{} answered {status}, and not as a MetaFlow node does", self.base))
        })?;
        match envelope.result {
            Some(answer) if envelope.opt_status == "SUCCESS" => Ok(answer),
            _ if status.is_client_error() => Err(Failure::Usage(envelope.description)),
            _ => Err(Failure::Degraded(envelope.description)),
        }
    }

    /// Reads a JSON page.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let request = self.http.get(format!("{}{path}", self.base));
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        response.json().await.map_err(|_| {
            Failure::Degraded(format!("{}{path} answered {status} and no readable JSON", self.base))
        })
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        // The cause at the end of the chain (connection refused, timed out) is what a person needs.
        let mut cause: &dyn std::error::Error = error;
        while let Some(source) = cause.source() {
            cause = source;
        }
        Failure::Unreachable(format!(
            "no node answers at {}: {cause}; is it running, and is --url (METAFLOW_URL) right?",
            self.base
        ))
    }
}
