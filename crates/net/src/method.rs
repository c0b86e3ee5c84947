//! What can be called: a method is a type that names its request and reply.

use std::fmt;

use prost::Message;

use crate::writer::{EncodeBody, Outgoing};

/// Which of a peer's two connections a call travels on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Small and urgent: consensus, gossip, locks.
    Control,
    /// File content, snapshots, terminals.
    Bulk,
}

impl Class {
    pub(crate) fn to_wire(self) -> u32 {
        match self {
            Class::Control => 1,
            Class::Bulk => 2,
        }
    }

    pub(crate) fn from_wire(value: u32) -> Option<Self> {
        match value {
            1 => Some(Class::Control),
            2 => Some(Class::Bulk),
            _ => None,
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Class::Control => "control",
            Class::Bulk => "bulk",
        })
    }
}

/// One method of one service.
pub trait Method: Send + Sync + 'static {
    /// "service.verb", unique in the cluster.
    const NAME: &'static str;
    const CLASS: Class;
    /// Executing a request twice is as good as once: its reply is not kept, and a repeated request
    /// runs again.
    const IDEMPOTENT: bool = false;
    type Request: Message + Default + Send + 'static;
    type Reply: Message + Default + Send + 'static;

    /// Encodes a request. A method whose requests carry many bytes can give them away here without a copy;
    /// the encoding must be the message's own.
    fn encode(request: &Self::Request, out: &mut Outgoing<'_>) {
        out.message(request);
    }
}

/// A request of a method, to be encoded.
pub(crate) struct RequestBody<'a, M: Method>(pub &'a M::Request);

impl<M: Method> EncodeBody for RequestBody<'_, M>
where
    M::Request: Sync,
{
    fn size(&self) -> usize {
        self.0.encoded_len()
    }

    fn append(&self, out: &mut Outgoing<'_>) {
        M::encode(self.0, out);
    }
}

/// Declares methods as unit types:
///
/// ```
/// unum_net::methods! {
///     /// Adds one.
///     pub Increase = "counter.increase", Control, unum_proto::rpc::PingHeader => unum_proto::rpc::PingHeader;
///     pub Show = "counter.show", Control, idempotent, unum_proto::rpc::PingHeader => unum_proto::rpc::PingHeader;
/// }
/// ```
#[macro_export]
macro_rules! methods {
    () => {};
    ($(#[$doc:meta])* $vis:vis $name:ident = $wire:literal, $class:ident, idempotent,
     $request:ty => $reply:ty; $($rest:tt)*) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        $vis struct $name;
        impl $crate::Method for $name {
            const NAME: &'static str = $wire;
            const CLASS: $crate::Class = $crate::Class::$class;
            const IDEMPOTENT: bool = true;
            type Request = $request;
            type Reply = $reply;
        }
        $crate::methods! { $($rest)* }
    };
    ($(#[$doc:meta])* $vis:vis $name:ident = $wire:literal, $class:ident,
     $request:ty => $reply:ty; $($rest:tt)*) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        $vis struct $name;
        impl $crate::Method for $name {
            const NAME: &'static str = $wire;
            const CLASS: $crate::Class = $crate::Class::$class;
            type Request = $request;
            type Reply = $reply;
        }
        $crate::methods! { $($rest)* }
    };
}
