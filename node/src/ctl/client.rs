//! The HTTP client of the commands.

use std::{ops::ControlFlow, path::PathBuf, time::Duration};

use axum::{
    body::{Body, Bytes, to_bytes},
    http::{HeaderValue, Method, Request, StatusCode, Uri, header},
};
use futures::StreamExt as _;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use metaflow_tls::{ClientFiles, HTTP_1};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use super::Failure;

/// Longer than any query may take on the node.
const TIMEOUT: Duration = Duration::from_secs(120);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A node bounds its answers; this bounds what something else may send.
const ANSWER_BYTES_MAX: usize = 1 << 30;
/// Of a line of an answer that lasts.
const LINE_BYTES_MAX: usize = 4 << 20;

/// Which node is asked, and as whom.
#[derive(Debug, clap::Args)]
pub(super) struct Access {
    /// The node's HTTP address.
    #[arg(long, global = true, env = "METAFLOW_URL", default_value = "http://127.0.0.1:20416")]
    url: String,
    /// What the node asks for when it has a tokens file. The variable is safer: others see the arguments of a process.
    #[arg(long, global = true, env = "METAFLOW_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Another node that shall answer, by number or name; the one that is asked hands the question on.
    #[arg(long, global = true, env = "METAFLOW_MEMBER", value_name = "NODE")]
    member: Option<String>,
    /// Authority of the node's certificate (PEM), for https://.
    #[arg(long, global = true, env = "METAFLOW_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Send the token to another machine in plain text.
    #[arg(long, global = true)]
    insecure: bool,
}

/// A node's HTTP interface.
#[derive(Debug)]
pub(super) struct Client {
    base: String,
    host: String,
    port: u16,
    tls: Option<metaflow_tls::Client>,
    token: Option<HeaderValue>,
    member: Option<HeaderValue>,
}

/// The answer to a statement.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Answer {
    pub(super) columns: Vec<String>,
    pub(super) values: Vec<Vec<Value>>,
    /// What the answer lacks, in words; empty when it is whole.
    #[serde(skip)]
    pub(super) lacking: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "UPPERCASE")]
struct Envelope {
    opt_status: String,
    description: String,
    #[serde(rename = "result")]
    result: Option<Answer>,
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl Client {
    pub(super) fn new(access: &Access) -> Result<Self, Failure> {
        let Access { url, token, member, ca, insecure } = access;
        let base = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let base = base.trim_end_matches('/').to_owned();
        let wrong =
            || Failure::Usage(format!("{url:?} is not an address; write e.g. http://127.0.0.1:20416"));
        let uri: Uri = base.parse().map_err(|_| wrong())?;
        let is_encrypted = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(wrong()),
        };
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(wrong)?.to_owned();
        let port = uri.port_u16().unwrap_or(if is_encrypted { 443 } else { 80 });
        let tls = match (is_encrypted, ca) {
            (false, _) => None,
            (true, None) => {
                return Err(Failure::Usage(
                    "https:// needs --ca FILE (METAFLOW_CA), the authority of the node's certificate"
                        .to_owned(),
                ));
            }
            (true, Some(ca)) => {
                let files = ClientFiles { authority: ca.clone(), identity: None };
                let failed = |error| Failure::Usage(format!("{:#}", anyhow::Error::from(error)));
                Some(metaflow_tls::Client::load(files, HTTP_1).map_err(failed)?)
            }
        };
        if token.is_some() && !is_encrypted && !*insecure && !metaflow_tls::is_local(&host) {
            return Err(Failure::Usage(format!(
                "{base} is another machine and the token would go there in plain text; use https://, or say --insecure"
            )));
        }
        let token = token.as_ref().map(|token| {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", token.trim()))
                .map_err(|_| Failure::Usage("the token holds characters that no token has".to_owned()))?;
            value.set_sensitive(true);
            Ok(value)
        });
        let member = member.as_ref().map(|member| {
            HeaderValue::from_str(member)
                .map_err(|_| Failure::Usage(format!("{member:?} is no name of a node")))
        });
        Ok(Self { base, host, port, tls, token: token.transpose()?, member: member.transpose()? })
    }

    /// Runs a statement.
    pub(super) async fn query(&self, sql: &str, database: Option<&str>) -> Result<Answer, Failure> {
        let question = serde_json::json!({ "db": database.unwrap_or_default(), "sql": sql });
        let (status, body) = self.request(Method::POST, "/v1/query/", question.to_string()).await?;
        let envelope: Envelope = serde_json::from_slice(&body).map_err(|_| {
            Failure::Degraded(format!("{} answered {status}, and not as a MetaFlow node does", self.base))
        })?;
        match envelope.result {
            Some(answer) if envelope.opt_status == "SUCCESS" => {
                Ok(Answer { lacking: envelope.description, ..answer })
            }
            _ => Err(failure(status, envelope.description)),
        }
    }

    /// Reads a JSON page.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.send(Method::GET, path, None::<&()>).await
    }

    /// Asks for a change (POST, PUT, DELETE), with a JSON body or none; `()` takes an answer without a body.
    pub(super) async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, Failure> {
        let body = match body.map(serde_json::to_string) {
            Some(Err(error)) => return Err(Failure::Usage(format!("{path} cannot be told that: {error}"))),
            Some(Ok(body)) => body,
            None => String::new(),
        };
        let (status, answer) = self.request(method, path, body).await?;
        let answer: &[u8] = if answer.is_empty() { b"null" } else { &answer };
        if let Ok(value) = serde_json::from_slice(answer)
            && status.is_success()
        {
            return Ok(value);
        }
        match serde_json::from_slice::<Envelope>(answer) {
            Ok(envelope) => Err(failure(status, envelope.description)),
            Err(_) => {
                Err(Failure::Degraded(format!("{}{path} answered {status} and no readable JSON", self.base)))
            }
        }
    }

    /// One request over a connection of its own; a body is JSON.
    async fn request(
        &self,
        method: Method,
        path: &str,
        body: String,
    ) -> Result<(StatusCode, Bytes), Failure> {
        let request = self.prepared(method, path, body)?;
        let stream = self.open().await?;
        tokio::time::timeout(TIMEOUT, exchange(stream, request))
            .await
            .map_err(|_| self.unreachable("no answer in time"))?
            .map_err(|error| self.unreachable(&format!("{error:#}")))
    }

    /// Reads an answer line by line for as long as it lasts, or until `take` has enough.
    pub(super) async fn lines(
        &self,
        path: &str,
        mut take: impl FnMut(&str) -> Result<ControlFlow<()>, Failure>,
    ) -> Result<(), Failure> {
        let broken = |error: &dyn std::fmt::Display| self.unreachable(&error.to_string());
        let request = self.prepared(Method::GET, path, String::new())?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(self.open().await?)).await.map_err(|error| broken(&error))?;
        // It ends with the sender and the answer.
        tokio::spawn(connection);
        let response = sender.send_request(request).await.map_err(|error| broken(&error))?;
        let status = response.status();
        let body = Body::new(response.into_body());
        if !status.is_success() {
            let body = to_bytes(body, ANSWER_BYTES_MAX).await.map_err(|error| broken(&error))?;
            return Err(match serde_json::from_slice::<Envelope>(&body) {
                Ok(envelope) => failure(status, envelope.description),
                Err(_) => Failure::Degraded(format!("{}{path} answered {status}", self.base)),
            });
        }
        let mut parts = body.into_data_stream();
        let mut text = Vec::new();
        while let Some(part) = parts.next().await {
            text.extend_from_slice(&part.map_err(|error| broken(&error))?);
            while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = text.drain(..=end).collect();
                if take(String::from_utf8_lossy(&line[..end]).as_ref())?.is_break() {
                    return Ok(());
                }
            }
            if text.len() > LINE_BYTES_MAX {
                return Err(Failure::Degraded(format!("{}{path} does not answer in lines", self.base)));
            }
        }
        Err(Failure::Degraded("the node ended the stream".to_owned()))
    }

    fn prepared(&self, method: Method, path: &str, body: String) -> Result<Request<Body>, Failure> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        request = request.header(header::HOST, format!("{}:{}", self.host, self.port));
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, token);
        }
        if let Some(member) = &self.member {
            request = request.header(crate::http::MEMBER_HEADER, member);
        }
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        request
            .body(Body::from(body))
            .map_err(|error| Failure::Usage(format!("{}{path} is no address: {error}", self.base)))
    }

    async fn open(&self) -> Result<Box<dyn Stream>, Failure> {
        tokio::time::timeout(CONNECT_TIMEOUT, self.connect())
            .await
            .map_err(|_| self.unreachable("no answer in time"))?
            .map_err(|error| self.unreachable(&format!("{:#}", anyhow::Error::from(error))))
    }

    async fn connect(&self) -> Result<Box<dyn Stream>, metaflow_tls::Error> {
        match &self.tls {
            Some(tls) => Ok(Box::new(tls.connect(&self.host, self.port).await?)),
            None => {
                let host = self.host.trim_start_matches('[').trim_end_matches(']');
                let stream =
                    TcpStream::connect((host, self.port)).await.map_err(metaflow_tls::Error::Connect)?;
                Ok(Box::new(stream))
            }
        }
    }

    fn unreachable(&self, cause: &str) -> Failure {
        Failure::Unreachable(format!(
            "no node answers at {}: {cause}; is it running, and is --url (METAFLOW_URL) right?",
            self.base
        ))
    }
}

/// What a refusal means: 409 that it would not be safe, other 4xx that the question was wrong.
fn failure(status: StatusCode, description: String) -> Failure {
    match status {
        StatusCode::CONFLICT => Failure::Unsafe(description),
        _ if status.is_client_error() => Failure::Usage(description),
        _ => Failure::Degraded(description),
    }
}

async fn exchange(stream: Box<dyn Stream>, request: Request<Body>) -> anyhow::Result<(StatusCode, Bytes)> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let asking = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        anyhow::Ok((status, to_bytes(Body::new(response.into_body()), ANSWER_BYTES_MAX).await?))
    };
    tokio::pin!(connection, asking);
    // The connection has to be driven until the answer is whole; its end alone is no answer.
    tokio::select! {
        biased;
        answer = &mut asking => answer,
        ended = &mut connection => {
            ended?;
            asking.await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_tokens_that_cannot_be_meant_are_refused() {
        let check = |url: &str, token: Option<&str>, insecure, part: Option<&str>| {
            let token = token.map(str::to_owned);
            let made = Client::new(&Access { url: url.to_owned(), token, member: None, ca: None, insecure });
            match (made, part) {
                (Ok(client), None) => {
                    assert!(!format!("{client:?}").contains("mf_1"));
                }
                (Err(error), Some(part)) => assert!(error.to_string().contains(part), "{url}: {error}"),
                (made, _) => panic!("{url}: {made:?}"),
            }
        };
        check("127.0.0.1:20416", Some("mf_1"), false, None);
        check("http://[::1]:20416/", Some("mf_1"), false, None);
        check("http://10.0.0.1:20416", None, false, None);
        check("http://10.0.0.1:20416", Some("mf_1"), true, None);
        check("http://10.0.0.1:20416", Some("mf_1"), false, Some("plain text"));
        check("https://10.0.0.1:20416", Some("mf_1"), false, Some("--ca"));
        check("http://127.0.0.1", Some("mf\n1"), false, Some("token"));
        check("ftp://127.0.0.1", None, false, Some("not an address"));
        check("http://", None, false, Some("not an address"));
        check("a b", None, false, Some("not an address"));
    }
}
