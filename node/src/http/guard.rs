//! Who may ask what over HTTP.
//!
//! Without a tokens file everybody may: such a node listens on loopback, or its operator wrote `insecure = true`. What is not known to
//! read needs the widest scope, so that a new endpoint is not open by mistake.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::Response,
};
use metaflow_tls::Reloading;

use super::{Services, api};
use crate::tokens::{Refusal, Scope, Tokens};

/// The tokens that count, if any are asked for; clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Guard {
    tokens: Option<Arc<Reloading<Tokens>>>,
}

impl Guard {
    pub(crate) fn new(tokens: Option<Reloading<Tokens>>) -> Self {
        Self { tokens: tokens.map(Arc::new) }
    }
}

/// Statements come as POST, but they only read.
const READING_POSTS: [&str; 4] = ["/v1/query", "/v1/query/", super::trace::PATH, super::profile::PATH];

/// What a request needs; none for what everybody may see: whether the node lives, and the page that says where to ask.
fn needed(method: &Method, path: &str) -> Option<Scope> {
    let is_get = matches!(*method, Method::GET | Method::HEAD);
    if is_get && (path == "/" || path.starts_with("/health/")) {
        return None;
    }
    if is_get || (*method == Method::POST && READING_POSTS.contains(&path)) {
        return Some(Scope::Read);
    }
    Some(Scope::Admin)
}

/// Lets a request pass, or answers it.
pub(super) async fn check(State(services): State<Services>, request: Request, next: Next) -> Response {
    let Some(tokens) = &services.guard.tokens else { return next.run(request).await };
    let Some(scope) = needed(request.method(), request.uri().path()) else { return next.run(request).await };
    let authorization = request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    match tokens.get().check(authorization, scope) {
        Ok(()) => next.run(request).await,
        Err(refusal) => {
            services.metrics.unauthorized(reason(refusal));
            answer(refusal, scope)
        }
    }
}

fn reason(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::NoToken => "no_token",
        Refusal::UnknownToken => "unknown_token",
        Refusal::Scope => "scope",
    }
}

fn answer(refusal: Refusal, scope: Scope) -> Response {
    let scope = scope.name();
    let (status, name, text) = match refusal {
        Refusal::NoToken => (
            StatusCode::UNAUTHORIZED,
            "UNAUTHORIZED",
            format!("this needs a token with the scope {scope}: send Authorization: Bearer TOKEN"),
        ),
        Refusal::UnknownToken => (
            StatusCode::UNAUTHORIZED,
            "UNAUTHORIZED",
            format!("the token is not known here; this needs one with the scope {scope}"),
        ),
        Refusal::Scope => {
            (StatusCode::FORBIDDEN, "FORBIDDEN", format!("the token does not have the scope {scope}"))
        }
    };
    let mut response = api::failure(status, name, &text);
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_needs_read_and_what_is_not_known_needs_admin() {
        for (method, path, expected) in [
            (Method::GET, "/health/live", None),
            (Method::GET, "/health/ready", None),
            (Method::GET, "/", None),
            (Method::GET, "/metrics", Some(Scope::Read)),
            (Method::GET, "/v1/query", Some(Scope::Read)),
            (Method::POST, "/v1/query/", Some(Scope::Read)),
            (Method::POST, "/v1/profile/ProfileTracing", Some(Scope::Read)),
            (Method::HEAD, "/v1/status", Some(Scope::Read)),
            (Method::GET, "/healthy", Some(Scope::Read)),
            (Method::GET, "//health/live", Some(Scope::Read)),
            (Method::POST, "/health/live", Some(Scope::Admin)),
            (Method::POST, "/v1/anything", Some(Scope::Admin)),
            (Method::POST, "/v1/agent-groups", Some(Scope::Admin)),
            (Method::GET, "/v1/agent-groups", Some(Scope::Read)),
            (Method::GET, "/v1/observe", Some(Scope::Read)),
            (Method::PUT, "/v1/query", Some(Scope::Admin)),
            (Method::DELETE, "/metrics", Some(Scope::Admin)),
            (Method::OPTIONS, "/v1/query", Some(Scope::Admin)),
        ] {
            assert_eq!(needed(&method, path), expected, "{method} {path}");
        }
    }
}
