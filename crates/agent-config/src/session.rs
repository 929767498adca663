//! What an operator may choose about requests.

use anyhow::ensure;
use serde::{Deserialize, Serialize};

/// Names in one list: each is compared with every header.
const HEADERS_MAX: usize = 8;
/// Longest name of a header; parsers keep no longer ones.
const HEADER_BYTES_MAX: usize = 32;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Session {
    /// Replace secrets and literals before anything is kept.
    pub redact: bool,
    /// Names below these suffixes may not exist without that being an error: resolvers try search domains in turn.
    pub expected_nxdomain_suffixes: Vec<String>,
    /// Headers that carry a trace context, the best first; empty: traceparent, sw8, b3 (with X-B3-TraceId and its like), uber-trace-id. Of another
    /// header the value is the trace's id.
    pub trace_headers: Vec<String>,
    /// Headers that carry the id of a request from proxy to server, the best first; empty: x-request-id.
    pub request_id_headers: Vec<String>,
}

impl Default for Session {
    fn default() -> Self {
        Self {
            redact: true,
            expected_nxdomain_suffixes: Vec::new(),
            trace_headers: Vec::new(),
            request_id_headers: Vec::new(),
        }
    }
}

impl Session {
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let lists = [
            ("session.trace_headers", &self.trace_headers),
            ("session.request_id_headers", &self.request_id_headers),
        ];
        for (key, names) in lists {
            ensure!(names.len() <= HEADERS_MAX, "{key} has more than {HEADERS_MAX} names");
            for (at, name) in names.iter().enumerate() {
                ensure!(
                    (1..=HEADER_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_token),
                    "{key}: {name:?} is no header's name of 1 to {HEADER_BYTES_MAX} characters, such as \"x-trace-id\""
                );
                let is_known = |other: &String| other.eq_ignore_ascii_case(name);
                ensure!(!names[..at].iter().any(is_known), "{key} has {name:?} twice");
            }
        }
        let is_trace =
            |name: &&String| self.trace_headers.iter().any(|other| other.eq_ignore_ascii_case(name));
        if let Some(name) = self.request_id_headers.iter().find(is_trace) {
            anyhow::bail!(
                "{name:?} is in session.trace_headers and in session.request_id_headers: leave it in one"
            );
        }
        Ok(())
    }

    /// Other headers than the usual ones carry traces or ids of requests.
    pub fn has_own_headers(&self) -> bool {
        !self.trace_headers.is_empty() || !self.request_id_headers.is_empty()
    }

    pub fn is_expected_nxdomain(&self, name: &str) -> bool {
        self.expected_nxdomain_suffixes.iter().any(|suffix| name.ends_with(suffix.as_str()))
    }
}

/// What names of headers are made of (RFC 9110).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
