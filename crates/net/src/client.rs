//! Client.
use crate::{
    CallOptions, Directory, IdentityStore, Method, Name, RpcError, Settings, StreamReceiver,
    StreamSender,
};
use std::{
    io,
    marker::PhantomData,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

/// Calls other daemons by name. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {}

/// A call with streams under way.
#[derive(Debug)]
pub struct Opened<M: Method> {
    /// Dropping it cancels the call.
    pub reply: ReplyFuture<M>,
    pub sender: StreamSender,
    pub receiver: StreamReceiver,
}

/// The reply to come.
#[derive(Debug)]
pub struct ReplyFuture<M: Method> {
    _method: PhantomData<fn() -> M>,
}

impl<M: Method> Future for ReplyFuture<M> {
    type Output = Result<M::Reply, RpcError>;
    fn poll(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Self::Output> {
        unimplemented!()
    }
}

impl Client {
    pub fn new(
        _identity: Arc<IdentityStore>,
        _directory: Arc<Directory>,
        _settings: Settings,
    ) -> Self {
        unimplemented!()
    }

    /// The daemon behind a local socket answers to every name.
    pub async fn unix(_path: &Path) -> io::Result<Self> {
        unimplemented!()
    }

    pub async fn call<M: Method>(
        &self,
        _to: &Name,
        _request: M::Request,
        _options: &CallOptions,
    ) -> Result<M::Reply, RpcError> {
        unimplemented!()
    }

    pub async fn open<M: Method>(
        &self,
        _to: &Name,
        _request: M::Request,
        _options: &CallOptions,
    ) -> Result<Opened<M>, RpcError> {
        unimplemented!()
    }

    /// One-way; may be lost.
    pub async fn cast<M: Method>(&self, _to: &Name, _request: M::Request) -> Result<(), RpcError> {
        unimplemented!()
    }

    /// Closes all connections; calls fail from now on.
    pub async fn shutdown(&self) {
        unimplemented!()
    }
}
