//! The local API: what `unum` asks of its own node's daemon.
//!
//! The socket is there for as long as the daemon lives, in a cluster or not. Callers are known by
//! the socket's peer credentials; `access` says who may change things. What changes this daemon's
//! life goes to its main loop as an [`Order`]; everything else is answered here.

pub mod access;
mod check;
pub mod life;
pub mod methods;
pub mod snapshots;
pub mod status;
pub mod tokens;
pub mod values;
pub mod volumes;

use crate::cluster::running::Parts;
use crate::daemon::{Order, Phase, Shared};
use crate::processes::{self, Processes};
use crate::registry::RegistryError;
use access::Access;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use unum_core::registry::Refused;
use unum_net::{Code, Incoming, Method, Router, Status};

/// How long a request without a deadline of its own may take.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(10);

pub struct Api {
    pub shared: Arc<Shared>,
    pub orders: mpsc::Sender<Order>,
    pub access: Access,
}

impl Api {
    pub fn routes(self: Arc<Self>) -> Router {
        let mut router = Router::new();
        router = on::<methods::Create, _>(router, &self, life::create);
        router = on::<methods::Join, _>(router, &self, life::join);
        router = on::<methods::Leave, _>(router, &self, life::leave);
        router = on::<methods::Remove, _>(router, &self, life::remove);
        router = on::<methods::Down, _>(router, &self, life::down);
        router = on::<methods::ListNodes, _>(router, &self, status::nodes);
        router = on::<methods::ShowStatus, _>(router, &self, status::status);
        router = on::<methods::TokenCreate, _>(router, &self, tokens::create);
        router = on::<methods::TokenList, _>(router, &self, tokens::list);
        router = on::<methods::TokenRevoke, _>(router, &self, tokens::revoke);
        router = on::<methods::ValueGet, _>(router, &self, values::get);
        router = on::<methods::ValuePut, _>(router, &self, values::put);
        router = on::<methods::ValueList, _>(router, &self, values::list);
        router = on::<methods::ValueDelete, _>(router, &self, values::delete);
        router = on::<methods::SnapshotCreate, _>(router, &self, snapshots::create);
        router = on::<methods::SnapshotDelete, _>(router, &self, snapshots::delete);
        router = on::<methods::SnapshotList, _>(router, &self, snapshots::list);
        router = on::<methods::VolumeCreate, _>(router, &self, volumes::create);
        router = on::<methods::VolumeSet, _>(router, &self, volumes::set);
        router = on::<methods::VolumeList, _>(router, &self, volumes::list);
        router = check::add_to(router, &self);
        let api = self.clone();
        router.merge(processes::routes(move || api.processes()))
    }

    /// The process service of the running node, or why there is none.
    fn processes(&self) -> Result<Processes, Status> {
        let parts = self.parts()?;
        parts.services.processes.clone().ok_or_else(|| {
            let why = parts.services.limits.join("; ");
            Status::new(Code::Unavailable, format!("no programs from here: {why}"))
        })
    }

    /// The running node, or why there is none.
    pub fn parts(&self) -> Result<Arc<Parts>, Status> {
        self.shared.parts().ok_or_else(|| match self.shared.phase() {
            Phase::Solitary => Status::new(
                Code::Unavailable,
                "this machine belongs to no cluster; make one with `unum up`, or join one with \
                 `unum join TOKEN ADDRESS`",
            ),
            Phase::Starting => Status::new(
                Code::Unavailable,
                "the daemon is still starting; try again in a moment",
            ),
            Phase::Running | Phase::Stopping => {
                Status::new(Code::Unavailable, "the daemon is stopping")
            }
        })
    }
}

fn on<M: Method, F>(
    router: Router,
    api: &Arc<Api>,
    answer: impl Fn(Arc<Api>, Incoming, M::Request) -> F + Send + Sync + 'static,
) -> Router
where
    F: Future<Output = Result<M::Reply, Status>> + Send + 'static,
{
    let api = api.clone();
    router.call::<M>(move |incoming, request| answer(api.clone(), incoming, request))
}

/// The time left for a request.
pub fn time_left(incoming: &Incoming) -> Duration {
    let left = incoming.deadline.map(|at| at.saturating_duration_since(Instant::now()));
    left.map_or(REQUEST_TIME_MAX, |left| left.min(REQUEST_TIME_MAX))
}

/// What the registry did not do, as a caller of the API sees it.
pub fn registry_status(error: RegistryError) -> Status {
    let message = error.to_string();
    let code = match error {
        RegistryError::Refused(refused) => refused_code(&refused),
        RegistryError::DiskFull => Code::NoSpace,
        // Not the caller's own deadline: the daemon says what it waited for.
        RegistryError::Deadline { .. }
        | RegistryError::NoQuorum { .. }
        | RegistryError::Stopped => Code::Unavailable,
        RegistryError::Fenced { .. } => Code::Fenced,
        RegistryError::TooLarge { .. } => Code::Invalid,
    };
    Status::new(code, message)
}

fn refused_code(refused: &Refused) -> Code {
    match refused {
        Refused::NodeUnknown(_) | Refused::TokenUnknown | Refused::ValueMissing => Code::NotFound,
        Refused::NameTaken(_) | Refused::TokenExists | Refused::AlreadyFounded => Code::Exists,
        Refused::VersionConflict(_) => Code::Conflict,
        Refused::Fenced { .. } => Code::Fenced,
        Refused::NotFounded => Code::Unavailable,
        _ => Code::Invalid,
    }
}
