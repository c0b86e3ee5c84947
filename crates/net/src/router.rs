//! Which code answers which method.
use crate::{Incoming, Method, Status, StreamReceiver, StreamSender};

/// A function that answers a method. Closures have this trait: never implement it.
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

/// A function that answers a method with streams. Closures have this trait: never implement it.
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

/// The methods of a server.
#[derive(Debug, Default)]
pub struct Router {}

impl Router {
    pub fn new() -> Self {
        Router::default()
    }

    /// # Panics
    /// If the method is there already.
    pub fn call<M: Method>(self, _answer: impl Answers<M>) -> Self {
        unimplemented!()
    }

    pub fn stream<M: Method>(self, _answer: impl AnswersStream<M>) -> Self {
        unimplemented!()
    }

    /// One-way messages; runs in the connection's task, so it must return at once.
    pub fn cast<M: Method>(
        self,
        _take: impl Fn(Incoming, M::Request) + Send + Sync + 'static,
    ) -> Self {
        unimplemented!()
    }

    pub fn merge(self, _other: Router) -> Self {
        unimplemented!()
    }
}
