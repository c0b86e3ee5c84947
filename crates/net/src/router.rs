//! Which code answers which method.

use std::{
    collections::HashMap,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
};

use bytes::Bytes;
use futures_util::FutureExt;
use prost::Message;

use crate::{
    Class, Code, Incoming, Method, Status, StreamReceiver, StreamSender, limits::MESSAGE_SIZE_MAX,
};

/// A function that answers a method. Closures are that: never implement it.
pub trait Answers<M: Method>:
    Fn(Incoming, M::Request) -> Self::Answer + Send + Sync + 'static
{
    type Answer: Future<Output = Result<M::Reply, Status>> + Send + 'static;
}

impl<M: Method, F, A> Answers<M> for F
where
    F: Fn(Incoming, M::Request) -> A + Send + Sync + 'static,
    A: Future<Output = Result<M::Reply, Status>> + Send + 'static,
{
    type Answer = A;
}

/// A function that answers a method with streams. Closures are that: never implement it.
pub trait AnswersStream<M: Method>:
    Fn(Incoming, M::Request, StreamSender, StreamReceiver) -> Self::Answer + Send + Sync + 'static
{
    type Answer: Future<Output = Result<M::Reply, Status>> + Send + 'static;
}

impl<M: Method, F, A> AnswersStream<M> for F
where
    F: Fn(Incoming, M::Request, StreamSender, StreamReceiver) -> A + Send + Sync + 'static,
    A: Future<Output = Result<M::Reply, Status>> + Send + 'static,
{
    type Answer = A;
}

/// A reply on its way to the wire.
pub(crate) type Answer = Pin<Box<dyn Future<Output = Result<Bytes, Status>> + Send>>;

type CallFn = Box<dyn Fn(Incoming, Bytes) -> Result<Answer, Status> + Send + Sync>;
type StreamFn = Box<
    dyn Fn(Incoming, Bytes, StreamSender, StreamReceiver) -> Result<Answer, Status> + Send + Sync,
>;
type CastFn = Box<dyn Fn(Incoming, Bytes) -> Result<(), Status> + Send + Sync>;

pub(crate) enum Act {
    Call(CallFn),
    Stream(StreamFn),
    Cast(CastFn),
}

pub(crate) struct Route {
    pub(crate) act: Act,
    pub(crate) class: Class,
    pub(crate) idempotent: bool,
}

/// The methods of a server.
#[derive(Default)]
pub struct Router {
    routes: HashMap<&'static str, Route>,
}

impl Router {
    pub fn new() -> Self {
        Router::default()
    }

    /// `answer` is polled once in the connection's own task, then in one of its own: until its
    /// first `.await` that waits, it must not compute for long.
    ///
    /// # Panics
    /// If the method has an answer already.
    pub fn call<M: Method>(self, answer: impl Answers<M>) -> Self {
        let act: CallFn = Box::new(move |incoming, body| {
            let request = decode::<M>(body)?;
            let started = catch_unwind(AssertUnwindSafe(|| answer(incoming, request)));
            Ok(guarded::<M, _>(started.map_err(|_| panicked::<M>())?))
        });
        self.insert::<M>(Act::Call(act))
    }

    /// # Panics
    /// If the method has an answer already.
    pub fn stream<M: Method>(self, answer: impl AnswersStream<M>) -> Self {
        let act: StreamFn = Box::new(move |incoming, body, sender, receiver| {
            let request = decode::<M>(body)?;
            let start = AssertUnwindSafe(|| answer(incoming, request, sender, receiver));
            Ok(guarded::<M, _>(catch_unwind(start).map_err(|_| panicked::<M>())?))
        });
        self.insert::<M>(Act::Stream(act))
    }

    /// One-way messages. `take` runs in the connection's task, so it must return at once: put the
    /// message into a bounded queue.
    ///
    /// # Panics
    /// If the method has an answer already.
    pub fn cast<M: Method>(
        self,
        take: impl Fn(Incoming, M::Request) + Send + Sync + 'static,
    ) -> Self {
        let act: CastFn = Box::new(move |incoming, body| {
            let request = decode::<M>(body)?;
            catch_unwind(AssertUnwindSafe(|| take(incoming, request))).map_err(|_| panicked::<M>())
        });
        self.insert::<M>(Act::Cast(act))
    }

    /// All methods of both.
    ///
    /// # Panics
    /// If both answer the same method.
    pub fn merge(mut self, other: Router) -> Self {
        for (name, route) in other.routes {
            let old = self.routes.insert(name, route);
            assert!(old.is_none(), "method {name} has two answers");
        }
        self
    }

    fn insert<M: Method>(mut self, act: Act) -> Self {
        let route = Route { act, class: M::CLASS, idempotent: M::IDEMPOTENT };
        let old = self.routes.insert(M::NAME, route);
        assert!(old.is_none(), "method {} has two answers", M::NAME);
        self
    }

    pub(crate) fn route(&self, method: &str) -> Result<&Route, Status> {
        self.routes.get(method).ok_or_else(|| {
            let message =
                format!("this daemon knows no method {method:?}; is it of an older version?");
            Status::new(Code::UnknownMethod, message)
        })
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.routes.keys()).finish()
    }
}

fn decode<M: Method>(body: Bytes) -> Result<M::Request, Status> {
    M::Request::decode(body).map_err(|error| {
        Status::new(Code::Invalid, format!("unreadable request of {}: {error}", M::NAME))
    })
}

/// The answer as bytes; a panic in it ends this call only.
fn guarded<M: Method, A>(answer: A) -> Answer
where
    A: Future<Output = Result<M::Reply, Status>> + Send + 'static,
{
    let answer = AssertUnwindSafe(answer).catch_unwind();
    Box::pin(async move {
        match answer.await {
            Ok(Ok(reply)) => encode::<M>(&reply),
            Ok(Err(status)) => Err(status),
            Err(_) => Err(panicked::<M>()),
        }
    })
}

fn panicked<M: Method>() -> Status {
    Status::internal(format!("{} panicked; see the log of the node that was asked", M::NAME))
}

fn encode<M: Method>(reply: &M::Reply) -> Result<Bytes, Status> {
    let size = reply.encoded_len();
    if size > MESSAGE_SIZE_MAX {
        let message = format!("a reply of {size} bytes to {} exceeds {MESSAGE_SIZE_MAX}", M::NAME);
        return Err(Status::internal(message));
    }
    Ok(Bytes::from(reply.encode_to_vec()))
}
