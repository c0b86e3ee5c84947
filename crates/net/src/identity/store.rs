//! The identity in use, replaced while connections live on.
//!
//! A connection keeps what it was made with; each new one takes the newest. The connection's own
//! end, some time after its certificates', is the RPC layer's affair.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use rustls::{
    ClientConfig, ServerConfig, client::Resumption, crypto::CryptoProvider,
    server::NoServerSessionStorage, version::TLS13,
};
use tokio::sync::watch;
use unum_proto::{cluster, ids::NodeId};

use super::{
    node::{ClusterId, Identity, IdentityError, NodeKey},
    verify::{PeerVerifier, Revoked},
};

/// Application protocols of the one port.
pub(crate) const ALPN_RPC: &[u8] = b"unum/1";
pub(crate) const ALPN_JOIN: &[u8] = b"unum-join/1";

/// Longest and shortest wait after a renewal that failed.
const RENEWAL_RETRY_MAX: Duration = Duration::from_secs(60);
const RENEWAL_RETRY_MIN: Duration = Duration::from_millis(100);

/// An identity with the TLS settings made from it.
pub(crate) struct Armed {
    pub(crate) identity: Identity,
    pub(crate) dial: Arc<ClientConfig>,
    pub(crate) accept: Arc<ServerConfig>,
    pub(crate) accept_join: Arc<ServerConfig>,
}

/// Why the members of the cluster do not speak to this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TurnedAway {
    /// It is no member any more.
    Removed,
    /// Its certificate is over, or not yet valid by the clocks of the others.
    Expired,
}

/// Holds a node's identity.
pub struct IdentityStore {
    armed: ArcSwap<Armed>,
    revoked: Arc<RwLock<Revoked>>,
    changed: watch::Sender<u64>,
    turned_away: watch::Sender<Option<TurnedAway>>,
}

impl IdentityStore {
    pub fn new(identity: Identity) -> Result<Self, IdentityError> {
        let revoked: Arc<RwLock<Revoked>> = Arc::new(RwLock::new(Arc::new(|_| false)));
        let armed = ArcSwap::from_pointee(arm(identity, &revoked)?);
        Ok(IdentityStore {
            armed,
            revoked,
            changed: watch::Sender::new(0),
            turned_away: watch::Sender::new(None),
        })
    }

    /// New connections use the new identity; the others stay.
    pub fn replace(&self, identity: Identity) -> Result<(), IdentityError> {
        self.armed.store(Arc::new(arm(identity, &self.revoked)?));
        self.changed.send_modify(|count| *count += 1);
        Ok(())
    }

    /// Says which nodes were removed; asked at each handshake and each request.
    pub fn set_revoked(&self, revoked: impl Fn(NodeId) -> bool + Send + Sync + 'static) {
        *self.revoked.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(revoked);
    }

    pub fn is_revoked(&self, node: NodeId) -> bool {
        asks(&self.revoked, node)
    }

    /// Whether the member that was asked last did not take this node for one.
    pub fn turned_away(&self) -> Option<TurnedAway> {
        *self.turned_away.borrow()
    }

    /// Tells of each change of `turned_away`.
    pub fn turned_away_changes(&self) -> watch::Receiver<Option<TurnedAway>> {
        self.turned_away.subscribe()
    }

    pub(crate) fn turn_away(&self, why: TurnedAway) {
        self.set_turned_away(Some(why));
    }

    pub(crate) fn taken_in(&self) {
        self.set_turned_away(None);
    }

    fn set_turned_away(&self, to: Option<TurnedAway>) {
        self.turned_away.send_if_modified(|now| std::mem::replace(now, to) != to);
    }

    pub fn node(&self) -> NodeId {
        self.armed.load().identity.node()
    }

    pub fn cluster(&self) -> ClusterId {
        self.armed.load().identity.cluster().clone()
    }

    pub fn expires(&self) -> SystemTime {
        self.armed.load().identity.expires()
    }

    pub fn renew_at(&self) -> SystemTime {
        self.armed.load().identity.renew_at()
    }

    /// Looks at the identity in use, for example to store it.
    pub fn with<T>(&self, look: impl FnOnce(&Identity) -> T) -> T {
        look(&self.armed.load().identity)
    }

    /// Counts the replacements.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub(crate) fn armed(&self) -> Arc<Armed> {
        self.armed.load_full()
    }
}

impl std::fmt::Debug for IdentityStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IdentityStore({:?})", self.armed.load().identity)
    }
}

/// Renews the certificate whenever two thirds of its life are over, with a new key each time, until
/// dropped. `renew` sends a signing request to the authority; a failure is retried soon.
pub async fn keep_renewed<R, A, E>(store: Arc<IdentityStore>, renew: R)
where
    R: Fn(Vec<u8>) -> A,
    A: Future<Output = Result<cluster::Certificate, E>>,
    E: std::fmt::Display,
{
    let mut retry = RENEWAL_RETRY_MIN;
    loop {
        let wait = store.renew_at().duration_since(SystemTime::now()).unwrap_or(Duration::ZERO);
        // Sleeping in parts follows a wall clock that was set.
        if !wait.is_zero() {
            tokio::time::sleep(wait.min(RENEWAL_RETRY_MAX)).await;
            continue;
        }
        match renew_once(&store, &renew).await {
            Ok(()) => {
                retry = RENEWAL_RETRY_MIN;
                if store.renew_at() <= SystemTime::now() {
                    tokio::time::sleep(RENEWAL_RETRY_MIN).await;
                }
            }
            Err(why) => {
                tracing::warn!(
                    "renewing this node's certificate failed ({why}); trying again in {retry:?}"
                );
                tokio::time::sleep(retry).await;
                retry = (retry * 2).min(RENEWAL_RETRY_MAX);
            }
        }
    }
}

async fn renew_once<R, A, E>(store: &IdentityStore, renew: &R) -> Result<(), String>
where
    R: Fn(Vec<u8>) -> A,
    A: Future<Output = Result<cluster::Certificate, E>>,
    E: std::fmt::Display,
{
    let key = NodeKey::generate().map_err(|e| e.to_string())?;
    let request = key.signing_request().map_err(|e| e.to_string())?;
    let certificate = renew(request).await.map_err(|e| e.to_string())?;
    let identity = Identity::new(key, &certificate).map_err(|e| e.to_string())?;
    if identity.node() != store.node() || *identity.cluster() != store.cluster() {
        return Err(format!("the certificate received is for {identity:?}"));
    }
    store.replace(identity).map_err(|e| e.to_string())
}

fn asks(revoked: &RwLock<Revoked>, node: NodeId) -> bool {
    // The predicate may take locks of its own: it runs outside of ours.
    let predicate = revoked.read().unwrap_or_else(PoisonError::into_inner).clone();
    predicate(node)
}

pub(crate) fn crypto() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn arm(identity: Identity, revoked: &Arc<RwLock<Revoked>>) -> Result<Armed, IdentityError> {
    let provider = crypto();
    let revoked = revoked.clone();
    let verifier = Arc::new(PeerVerifier::new(
        identity.cluster().clone(),
        &identity.trusted,
        &provider,
        Arc::new(move |node| asks(&revoked, node)),
    )?);
    let dial = dial_config(&identity, &provider, verifier.clone())?;
    let builder =
        || ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(&[&TLS13]);
    let accept = builder()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain.clone(), identity.key.der())?;
    let accept_join = builder()?
        .with_no_client_auth()
        .with_single_cert(identity.chain.clone(), identity.key.der())?;
    Ok(Armed {
        identity,
        dial: Arc::new(dial),
        accept: Arc::new(without_resumption(accept, ALPN_RPC)),
        accept_join: Arc::new(without_resumption(accept_join, ALPN_JOIN)),
    })
}

fn dial_config(
    identity: &Identity,
    provider: &Arc<CryptoProvider>,
    verifier: Arc<PeerVerifier>,
) -> Result<ClientConfig, IdentityError> {
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(identity.chain.clone(), identity.key.der())?;
    config.alpn_protocols = vec![ALPN_RPC.to_vec()];
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// A resumed session would skip the check of certificates.
fn without_resumption(mut config: ServerConfig, alpn: &[u8]) -> ServerConfig {
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![alpn.to_vec()];
    config
}
