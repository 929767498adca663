//! Messages of agents come in one by one: of no message more than its length is read before there is memory for all of it.
//!
//! The gRPC server hands a message on when it has the whole of it, so a thousand agents that send at once would fill memory before anybody
//! was asked. This stands in front of it and reads the lengths. A message that has to wait stays in the sender: transport's flow control
//! lets a stream send one window ahead. Bound: the budgets of [`Terms`], and a window a stream.

use std::{
    ops::ControlFlow,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use hyper::body::{Body as HttpBody, Bytes, Frame};
use metaflow_actors::{
    ingester,
    memory::{Budget, Permit},
};
use metaflow_wire::MESSAGE_BYTES_MAX;
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::{Status, body::Body, codegen::http::Request, server::NamedService};
use tower_service::Service;

#[cfg(test)]
mod tests;

/// A byte that says whether a message is compressed, and four of its length.
const HEAD_BYTES: usize = 5;
/// Who is slower than this may have to give its room to others.
const BYTES_A_SECOND_MIN: usize = 64 << 10;
const PATIENCE: Duration = Duration::from_secs(10);
/// Control messages that are let in as they come: heartbeats and greetings.
const CONTROL_BYTES_FREE: usize = 4 << 10;
/// A process of facts takes two bytes on the wire, if all of it is empty, and this much in a list that grows.
const MEMORY_OF_CONTROL_BYTE: usize = 160;
/// For all control messages that are larger: facts of a large host, or of many small ones.
const CONTROL_BUDGET: usize = 64 << 20;
/// The stream that brings batches.
const INGEST: &str = "/metaflow.v1.AgentService/Ingest";

/// What messages of a stream take, and of what.
#[derive(Debug, Clone)]
struct Terms {
    budget: Budget,
    /// Memory for a message of a length.
    cost: fn(usize) -> usize,
    patience: Duration,
}

impl Terms {
    async fn admit(self, length: usize) -> Permit {
        let cost = (self.cost)(length);
        // What is too long is refused by its length alone.
        if cost == 0 || length > MESSAGE_BYTES_MAX {
            return Permit::default();
        }
        self.budget.acquire(cost).await
    }

    /// Whether a message may have to wait.
    fn is_short(&self) -> bool {
        self.budget.available() < (self.cost)(MESSAGE_BYTES_MAX).min(self.budget.capacity())
    }
}

fn control_cost(length: usize) -> usize {
    if length <= CONTROL_BYTES_FREE { 0 } else { length * MEMORY_OF_CONTROL_BYTE }
}

/// The permit of the message that was read last; for whoever handles it.
#[derive(Debug, Clone, Default)]
pub(super) struct Admitted(Arc<Mutex<Permit>>);

impl Admitted {
    pub(super) fn take(&self) -> Permit {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn put(&self, permit: Permit) {
        // The server asks for more only when it has handed on what it had: there is one at a time.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).merge(permit);
    }
}

/// The agents' service behind the gate; a stream finds its [`Admitted`] among the extensions of its request.
#[derive(Debug, Clone)]
pub(super) struct Gated<S> {
    service: S,
    batches: Terms,
    control: Terms,
}

impl<S> Gated<S> {
    /// `intake` is for batches on their way into the log.
    pub(super) fn new(service: S, intake: Budget) -> Self {
        let batches = Terms { budget: intake, cost: ingester::intake, patience: PATIENCE };
        let control = Terms { budget: Budget::new(CONTROL_BUDGET), cost: control_cost, patience: PATIENCE };
        Self { service, batches, control }
    }
}

impl<S: NamedService> NamedService for Gated<S> {
    const NAME: &'static str = S::NAME;
}

impl<S: Service<Request<Body>>> Service<Request<Body>> for Gated<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, ctx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(ctx)
    }

    fn call(&mut self, request: Request<Body>) -> S::Future {
        let (mut head, body) = request.into_parts();
        let terms = if head.uri.path() == INGEST { &self.batches } else { &self.control };
        let admitted = Admitted::default();
        head.extensions.insert(admitted.clone());
        let gate = Gate::new(body, terms.clone(), admitted);
        self.service.call(Request::from_parts(head, Body::new(gate)))
    }
}

/// A piece of a body; none at its end.
type Passed = Option<Result<Frame<Bytes>, Status>>;

/// The body of a stream, passed on as there is room for its messages.
struct Gate {
    body: Body,
    terms: Terms,
    admitted: Admitted,
    /// What came with a frame and was not passed on yet.
    rest: Bytes,
    stage: Stage,
}

enum Stage {
    /// So much of the next message's head is there.
    Head([u8; HEAD_BYTES], usize),
    Waiting([u8; HEAD_BYTES], usize, Pin<Box<dyn Future<Output = Permit> + Send>>),
    Message(Under),
}

/// A message that is being passed on.
struct Under {
    left: usize,
    permit: Permit,
    /// Looks whether it takes too long; none where nobody has to wait for it.
    alarm: Option<Pin<Box<Sleep>>>,
}

impl Stage {
    const NEXT: Self = Self::Head([0; HEAD_BYTES], 0);
}

impl Gate {
    fn new(body: Body, terms: Terms, admitted: Admitted) -> Self {
        Self { body, terms, admitted, rest: Bytes::new(), stage: Stage::NEXT }
    }

    /// Fills `rest`; what is no data breaks off.
    fn poll_more(&mut self, ctx: &mut Context<'_>) -> Poll<ControlFlow<Passed>> {
        while self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(ctx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(trailers) => return Poll::Ready(ControlFlow::Break(Some(Ok(trailers)))),
                },
                None if matches!(self.stage, Stage::Head(_, 1..)) => {
                    let cut = Status::internal("the stream ends within a message");
                    return Poll::Ready(ControlFlow::Break(Some(Err(cut))));
                }
                end => return Poll::Ready(ControlFlow::Break(end)),
            }
        }
        Poll::Ready(ControlFlow::Continue(()))
    }

    /// Ready when the message takes too long.
    fn poll_patience(&mut self, ctx: &mut Context<'_>) -> Poll<Status> {
        let Stage::Message(Under { alarm: Some(alarm), .. }) = &mut self.stage else { return Poll::Pending };
        loop {
            ready!(alarm.as_mut().poll(ctx));
            if self.terms.is_short() {
                return Poll::Ready(Status::deadline_exceeded(
                    "a message came too slowly while others wait for its memory",
                ));
            }
            alarm.as_mut().reset(Instant::now() + self.terms.patience);
        }
    }

    /// The head of the next message is known: asks for its room.
    fn ask(&self, head: [u8; HEAD_BYTES]) -> Stage {
        let [_, length @ ..] = head;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        Stage::Waiting(head, length, Box::pin(self.terms.clone().admit(length)))
    }

    /// There is room: the head is passed on, and the rest may come.
    fn admit(&mut self, head: [u8; HEAD_BYTES], length: usize, permit: Permit) -> Frame<Bytes> {
        let takes_room = permit.bytes() > 0;
        let time = self.terms.patience + Duration::from_secs((length / BYTES_A_SECOND_MIN) as u64);
        let alarm = takes_room.then(|| Box::pin(sleep_until(Instant::now() + time)));
        self.stage = Stage::Message(Under { left: length, permit, alarm });
        self.end_message();
        Frame::data(Bytes::copy_from_slice(&head))
    }

    fn end_message(&mut self) {
        if let Stage::Message(Under { left: 0, permit, .. }) = &mut self.stage {
            self.admitted.put(std::mem::take(permit));
            self.stage = Stage::NEXT;
        }
    }
}

impl HttpBody for Gate {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, ctx: &mut Context<'_>) -> Poll<Passed> {
        let gate = &mut *self;
        loop {
            match &mut gate.stage {
                Stage::Waiting(head, length, room) => {
                    let (head, length) = (*head, *length);
                    let permit = ready!(room.as_mut().poll(ctx));
                    return Poll::Ready(Some(Ok(gate.admit(head, length, permit))));
                }
                Stage::Head(..) | Stage::Message(_) if gate.rest.is_empty() => match gate.poll_more(ctx) {
                    Poll::Ready(ControlFlow::Continue(())) => {}
                    Poll::Ready(ControlFlow::Break(end)) => return Poll::Ready(end),
                    Poll::Pending => return gate.poll_patience(ctx).map(|status| Some(Err(status))),
                },
                Stage::Head(head, known) => {
                    let piece = gate.rest.split_to(gate.rest.len().min(HEAD_BYTES - *known));
                    head[*known..*known + piece.len()].copy_from_slice(&piece);
                    *known += piece.len();
                    if *known == HEAD_BYTES {
                        let head = *head;
                        gate.stage = gate.ask(head);
                    }
                }
                Stage::Message(message) => {
                    let piece = gate.rest.split_to(gate.rest.len().min(message.left));
                    message.left -= piece.len();
                    gate.end_message();
                    return Poll::Ready(Some(Ok(Frame::data(piece))));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.stage, Stage::Head(_, 0)) && self.rest.is_empty() && self.body.is_end_stream()
    }
}
