//! The time that a caller gives a call (`grpc-timeout`). When it is over, the call ends with a status, what it does is dropped, and a stream
//! that has begun ends there: nobody waits for it any more, and a caller that was cut off cannot say so.
//!
//! tonic's own server looks at answers that have not begun, and passes over what it cannot read.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use hyper::body::{Bytes, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};
use tonic::{
    Status,
    body::Body,
    codegen::{
        BoxFuture,
        http::{HeaderMap, Response},
    },
};

const HEADER: &str = "grpc-timeout";
/// Of the number in the header, by gRPC's specification.
const DIGITS_MAX: usize = 8;

/// The time that the head of a call gives it.
pub(super) fn given(head: &HeaderMap) -> Result<Option<Duration>, Status> {
    let Some(value) = head.get(HEADER) else { return Ok(None) };
    let time = value.to_str().ok().and_then(parse);
    let time = time.ok_or_else(|| {
        Status::invalid_argument(format!(
            "{HEADER} is {value:?}: it is up to {DIGITS_MAX} digits and one of H, M, S, m, u, n"
        ))
    });
    time.map(Some)
}

/// Ends a call when the time is over that it was given; without one it goes on as it is, and takes nothing more.
pub(super) fn enforce(
    given: Result<Option<Duration>, Status>,
    call: impl FnOnce() -> BoxFuture<Response<Body>, Infallible>,
) -> BoxFuture<Response<Body>, Infallible> {
    match given {
        Ok(None) => call(),
        Ok(Some(time)) => Box::pin(within(time, call())),
        Err(status) => Box::pin(async { Ok(status.into_http()) }),
    }
}

fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > DIGITS_MAX || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3_600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

async fn within(
    time: Duration,
    call: BoxFuture<Response<Body>, Infallible>,
) -> Result<Response<Body>, Infallible> {
    let end = Instant::now() + time;
    match timeout_at(end, call).await {
        Ok(answer) => answer.map(|response| {
            response.map(|body| Body::new(Limited { body, end: Box::pin(sleep_until(end)), is_over: false }))
        }),
        Err(_) => Ok(over().into_http()),
    }
}

fn over() -> Status {
    Status::deadline_exceeded("the time that the caller gave is over")
}

/// An answer that ends when its time is over.
struct Limited {
    body: Body,
    end: Pin<Box<Sleep>>,
    is_over: bool,
}

impl hyper::body::Body for Limited {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        ctx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        // Time comes first: a stream that always has something to say ends, too.
        if self.end.as_mut().poll(ctx).is_pending() {
            return Pin::new(&mut self.body).poll_frame(ctx);
        }
        self.is_over = true;
        self.body = Body::empty();
        let mut trailers = HeaderMap::new();
        Poll::Ready(Some(over().add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.is_over || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.is_over { SizeHint::with_exact(0) } else { SizeHint::default() }
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn times_are_read_as_the_specification_writes_them() {
        for (text, expected) in [
            ("2H", Some(Duration::from_secs(7_200))),
            ("3M", Some(Duration::from_secs(180))),
            ("99999999S", Some(Duration::from_secs(99_999_999))),
            ("250m", Some(Duration::from_millis(250))),
            ("7u", Some(Duration::from_micros(7))),
            ("0n", Some(Duration::ZERO)),
            ("100000000S", None),
            ("S", None),
            ("", None),
            ("5", None),
            ("+5S", None),
            ("5s", None),
            ("5 S", None),
            ("5µ", None),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
    }

    fn head(value: &'static str) -> HeaderMap {
        [(HEADER.parse().unwrap(), value.parse().unwrap())].into_iter().collect()
    }

    fn status(response: &Response<Body>) -> Code {
        Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code())
    }

    #[tokio::test]
    async fn a_call_ends_when_its_time_is_over_and_what_it_does_is_dropped() {
        let (work, mut ended) = tokio::sync::mpsc::channel::<()>(1);
        let answer = enforce(given(&head("300m")), || {
            Box::pin(async move {
                let _work = work;
                std::future::pending().await
            })
        });
        let begun = Instant::now();
        let answer = answer.await.unwrap();
        assert_eq!(status(&answer), Code::DeadlineExceeded);
        assert!(begun.elapsed() >= Duration::from_millis(300));
        assert!(ended.recv().await.is_none(), "the work goes on");
    }

    #[tokio::test]
    async fn what_is_no_time_is_refused_before_anything_is_done() {
        let answer = enforce(given(&head("soon")), || panic!("the call was made")).await.unwrap();
        assert_eq!(status(&answer), Code::InvalidArgument);
    }
}
