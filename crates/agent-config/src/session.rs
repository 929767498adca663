//! What an operator may choose about requests.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Session {
    /// Replace secrets and literals before anything is kept.
    pub redact: bool,
    /// Names below these suffixes may not exist without that being an error: resolvers try search domains in turn.
    pub expected_nxdomain_suffixes: Vec<String>,
}

impl Default for Session {
    fn default() -> Self {
        Self { redact: true, expected_nxdomain_suffixes: Vec::new() }
    }
}

impl Session {
    pub fn is_expected_nxdomain(&self, name: &str) -> bool {
        self.expected_nxdomain_suffixes.iter().any(|suffix| name.ends_with(suffix.as_str()))
    }
}
