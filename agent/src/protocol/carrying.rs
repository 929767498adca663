//! Which headers carry a trace context or the id of a request, where an operator named them.

use super::trace::Carrier;
use crate::session::Config;

/// What a header carries. Of two that carry the same, the one of the higher rank counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carried {
    Trace(Carrier, u8),
    RequestId(u8),
}

/// By a header's name, in any case. Only lists that have names are asked: the usual headers count where a list is empty.
pub(crate) fn carried(config: &Config, name: &[u8]) -> Option<Carried> {
    let known = Carrier::named(name);
    if config.trace_headers.is_empty() {
        if let Some(carrier) = known {
            return Some(Carried::Trace(carrier, carrier.rank()));
        }
    } else {
        // B3 in parts is what its name stands for, too.
        let family = if known.is_some_and(Carrier::is_of_b3) { b"b3" } else { name };
        if let Some(rank) = rank(&config.trace_headers, family) {
            return Some(Carried::Trace(known.unwrap_or(Carrier::Id), rank));
        }
    }
    if config.request_id_headers.is_empty() {
        return name.eq_ignore_ascii_case(b"x-request-id").then_some(Carried::RequestId(1));
    }
    rank(&config.request_id_headers, name).map(Carried::RequestId)
}

/// The first name ranks highest.
fn rank(names: &[String], name: &[u8]) -> Option<u8> {
    let at = names.iter().position(|known| known.as_bytes().eq_ignore_ascii_case(name))?;
    u8::try_from(names.len() - at).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_replace_the_usual_headers_and_their_order_counts() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let mut config = Config::default();
        let check = |config: &Config, name: &str, expected: Option<Carried>| {
            assert_eq!(carried(config, name.as_bytes()), expected, "{name}");
        };
        check(&config, "Traceparent", Some(Carried::Trace(Carrier::TraceParent, 4)));
        check(&config, "X-Request-ID", Some(Carried::RequestId(1)));
        check(&config, "accept", None);
        config.trace_headers = names(&["X-Trace-Id", "b3"]);
        check(&config, "x-trace-id", Some(Carried::Trace(Carrier::Id, 2)));
        check(&config, "X-B3-SpanId", Some(Carried::Trace(Carrier::B3SpanId, 1)));
        check(&config, "traceparent", None);
        check(&config, "x-request-id", Some(Carried::RequestId(1)));
        config.request_id_headers = names(&["x-correlation-id", "request-id"]);
        check(&config, "X-Correlation-ID", Some(Carried::RequestId(2)));
        check(&config, "request-id", Some(Carried::RequestId(1)));
        check(&config, "x-request-id", None);
    }
}
