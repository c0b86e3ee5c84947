//! The calls between daemons about membership: admitting newcomers and renewing certificates, which
//! the leader decides (other nodes say who leads), and handing the authority's key to voters.

use super::authority::Authority;
use super::facts;
use super::proposer::Proposer;
use crate::beats::beat;
use crate::registry::{Registry, RegistryError};
use crate::tasks::Stop;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use unum_core::registry::{Node, Refused};
use unum_net::identity::check_signing_request;
use unum_net::join::{JoinDesk, JoinFuture, TokenSecret};
use unum_net::{
    CallOptions, Client, Code, Directory, Hint, IdentityStore, Incoming, Name, Router, RpcError,
    Status,
};
use unum_proto::cluster::{
    AdmitRequest, FetchAuthorityReply, FetchAuthorityRequest, JoinAccepted, JoinRefusalKind,
    JoinRefused, JoinReply, JoinRequest, NodeFacts, Peer, RenewReply, RenewRequest, join_reply,
};
use unum_proto::ids::{Epoch, NodeId};
use unum_proto::registry::{RegisterNode, command, reply};

/// Whoever leads the cluster.
pub const LEADER: Name = Name::service("leader");
/// How long the registry may take to admit a newcomer.
const ADMIT_TIME_MAX: Duration = Duration::from_secs(5);
/// How long a renewal may take before it is tried again.
pub const RENEW_TIME_MAX: Duration = Duration::from_secs(5);
/// How long another voter may take to hand the authority's key out.
const FETCH_TIME_MAX: Duration = Duration::from_secs(2);
/// How often a node looks whether it votes without holding the key.
const AUTHORITY_LOOK_PERIOD: Duration = Duration::from_millis(500);

unum_net::methods! {
    /// Lets a newcomer in. Leader only.
    pub Admit = "cluster.admit", Control, AdmitRequest => JoinReply;
    /// The next certificate of the caller. Leader only.
    pub Renew = "cluster.renew", Control, idempotent, RenewRequest => RenewReply;
    /// The authority's key, for a voter.
    pub FetchAuthority = "cluster.fetch-authority", Control, idempotent,
        FetchAuthorityRequest => FetchAuthorityReply;
}

/// Answers other daemons.
pub struct ClusterService {
    pub own: NodeId,
    pub registry: Registry,
    pub proposer: Proposer,
    pub authority: Arc<Authority>,
}

impl ClusterService {
    pub fn routes(self: Arc<Self>) -> Router {
        let (admitting, renewing, handing) = (self.clone(), self.clone(), self);
        Router::new()
            .call::<Admit>(move |incoming, request| {
                let service = admitting.clone();
                async move { service.admit(incoming, request).await }
            })
            .call::<Renew>(move |incoming, request| {
                let service = renewing.clone();
                async move { service.renew(incoming, request) }
            })
            .call::<FetchAuthority>(move |incoming, _request| {
                let service = handing.clone();
                async move { service.hand_out_authority(incoming) }
            })
    }

    async fn admit(&self, incoming: Incoming, request: AdmitRequest) -> Result<JoinReply, Status> {
        caller_node(&incoming)?;
        self.require_leadership()?;
        let join = request.request.unwrap_or_default();
        let outcome = match self.admit_newcomer(&join, &request.from).await {
            Ok(accepted) => join_reply::Outcome::Accepted(accepted),
            Err(refused) => join_reply::Outcome::Refused(refused),
        };
        Ok(JoinReply { outcome: Some(outcome) })
    }

    async fn admit_newcomer(
        &self,
        join: &JoinRequest,
        from: &str,
    ) -> Result<JoinAccepted, JoinRefused> {
        let hash = TokenSecret::hash_of(&join.secret);
        let token = self.registry.read(|state| state.tokens().get(&hash).cloned());
        let token = token.ok_or_else(|| refused_join(&Refused::TokenUnknown))?;
        if !self.authority.is_held() {
            let message = "the leader has lost the authority's key; see its log";
            return Err(refusal(JoinRefusalKind::Unavailable, message));
        }
        // Before the token is used up: a newcomer that sent nonsense can try again.
        check_signing_request(&join.csr)
            .map_err(|error| refusal(JoinRefusalKind::BadRequest, &error.to_string()))?;
        let facts = join.facts.clone().unwrap_or_default();
        let addresses = facts::seen_addresses(&facts.addresses, from);
        let command = RegisterNode {
            token_hash: hash.to_vec().into(),
            name: facts.name.clone(),
            // A token says itself what it is for.
            role: token.role.into(),
            description: Some(facts::description(&facts, addresses)),
        };
        let done = self.proposer.propose(command::Kind::RegisterNode(command), ADMIT_TIME_MAX);
        match done.await {
            Ok(reply::Kind::Node(node)) => self.welcome(NodeId(node.node), join, &facts),
            Ok(_) => Err(refusal(JoinRefusalKind::Unavailable, "the registry's answer is odd")),
            Err(RegistryError::Refused(refused)) => Err(refused_join(&refused)),
            Err(error) => Err(refusal(
                JoinRefusalKind::Unavailable,
                &format!("the cluster cannot take anybody in now: {error}"),
            )),
        }
    }

    fn welcome(
        &self,
        node: NodeId,
        join: &JoinRequest,
        facts: &NodeFacts,
    ) -> Result<JoinAccepted, JoinRefused> {
        let certificate = self
            .authority
            .sign(&join.csr, node, &facts.name)
            .map_err(|status| refusal(JoinRefusalKind::BadRequest, &status.message))?;
        let (peers, cluster_name) = self.registry.read(|state| {
            let others = state.nodes().members().filter(|member| member.id != node);
            let name = state.identity().map(|identity| identity.name.clone());
            (others.map(peer).collect(), name.unwrap_or_default())
        });
        Ok(JoinAccepted {
            node: node.0,
            name: facts.name.clone(),
            certificate: Some(certificate),
            peers,
            cluster_name,
        })
    }

    fn renew(&self, incoming: Incoming, request: RenewRequest) -> Result<RenewReply, Status> {
        let node = caller_node(&incoming)?;
        self.require_leadership()?;
        let name = self.registry.read(|state| {
            state.nodes().get(node).filter(|node| node.is_member()).map(|node| node.name.clone())
        });
        let name = name.ok_or_else(|| Status::denied(format!("{node} is no member any more")))?;
        let certificate = self.authority.sign(&request.csr, node, &name)?;
        tracing::info!(%node, name, "renewed a certificate");
        Ok(RenewReply { certificate: Some(certificate) })
    }

    fn hand_out_authority(&self, incoming: Incoming) -> Result<FetchAuthorityReply, Status> {
        let node = caller_node(&incoming)?;
        if !self.registry.standing().voters.contains(&node) {
            return Err(Status::denied(format!("{node} does not vote, as seen here")));
        }
        let key = self.authority.hand_out().ok_or_else(|| {
            Status::new(Code::NotFound, "this node does not have the authority's key either")
        })?;
        tracing::info!(to = %node, "gives the authority's key to a voter");
        Ok(key)
    }

    fn require_leadership(&self) -> Result<(), Status> {
        let consensus = self.registry.standing();
        match consensus.leader {
            Some(leader) if leader == self.own => Ok(()),
            Some(leader) => Err(Status::moved(Hint { node: leader, epoch: Epoch(consensus.term) })),
            None => Err(no_leader()),
        }
    }
}

pub fn no_leader() -> Status {
    Status::new(
        Code::Unavailable,
        "the cluster has no leader now; without a majority of its voters nothing can be changed",
    )
}

fn caller_node(incoming: &Incoming) -> Result<NodeId, Status> {
    incoming.caller.node.ok_or_else(|| Status::denied("only nodes may ask for this"))
}

fn peer(node: &Node) -> Peer {
    Peer { node: node.id.0, name: node.name.clone(), addresses: node.description.addresses.clone() }
}

fn refusal(kind: JoinRefusalKind, message: &str) -> JoinRefused {
    JoinRefused { kind: kind.into(), message: message.into() }
}

fn refused_join(refused: &Refused) -> JoinRefused {
    let kind = match refused {
        Refused::TokenUnknown => JoinRefusalKind::UnknownToken,
        Refused::TokenExpired => JoinRefusalKind::TokenExpired,
        Refused::TokenUsed => JoinRefusalKind::TokenUsed,
        Refused::TokenRole(_) => JoinRefusalKind::WrongRole,
        Refused::NameTaken(_) => JoinRefusalKind::NameTaken,
        Refused::Limit(..) => JoinRefusalKind::TooMany,
        _ => JoinRefusalKind::BadRequest,
    };
    refusal(kind, &refused.to_string())
}

/// Takes join requests at any node and hands them to the leader, who decides.
pub struct Desk {
    pub client: Client,
    pub directory: Arc<Directory>,
    pub registry: Registry,
}

impl JoinDesk for Desk {
    fn join(&self, from: SocketAddr, request: JoinRequest) -> JoinFuture {
        learn_leader(&self.directory, &self.registry);
        let client = self.client.clone();
        Box::pin(async move {
            let admit = AdmitRequest { request: Some(request), from: from.to_string() };
            let options = CallOptions::within(ADMIT_TIME_MAX);
            match client.call::<Admit>(&LEADER, admit, &options).await {
                Ok(JoinReply { outcome: Some(join_reply::Outcome::Accepted(accepted)) }) => {
                    Ok(accepted)
                }
                Ok(JoinReply { outcome: Some(join_reply::Outcome::Refused(refused)) }) => {
                    Err(refused)
                }
                Ok(JoinReply { outcome: None }) => {
                    Err(refusal(JoinRefusalKind::Unavailable, "the leader's answer is empty"))
                }
                Err(error) => Err(refusal(
                    JoinRefusalKind::Unavailable,
                    &format!("the cluster cannot take anybody in now: {error}"),
                )),
            }
        })
    }
}

/// Lets the name of the leader lead to it.
pub fn learn_leader(directory: &Directory, registry: &Registry) {
    let consensus = registry.standing();
    if let Some(node) = consensus.leader {
        directory.learn(&LEADER, Hint { node, epoch: Epoch(consensus.term) });
    }
}

/// Asks the leader for this node's next certificate.
pub async fn renew(
    client: Client,
    identity: Arc<IdentityStore>,
    csr: Vec<u8>,
) -> Result<unum_proto::cluster::Certificate, RpcError> {
    let options = CallOptions::within(RENEW_TIME_MAX);
    let reply = client.call::<Renew>(&LEADER, RenewRequest { csr }, &options).await?;
    let none = || RpcError::Protocol(format!("the leader sent {:?} nothing", identity.node()));
    reply.certificate.ok_or_else(none)
}

/// Has the authority's key fetched once this node votes.
pub async fn keep_authority(
    own: NodeId,
    registry: Registry,
    client: Client,
    authority: Arc<Authority>,
    stop: Stop,
) {
    while !stop.is_requested() {
        if authority.is_held() {
            // For good.
            return stop.requested().await;
        }
        let standing = registry.standing();
        if standing.voters.contains(&own) {
            let others = standing.voters.into_iter().filter(|node| *node != own);
            for node in standing.leader.into_iter().filter(|node| *node != own).chain(others) {
                match fetch_authority(&client, node, &authority).await {
                    Ok(()) => break,
                    Err(error) => tracing::debug!(%node, %error, "no authority's key from there"),
                }
            }
        }
        tokio::select! {
            () = stop.requested() => return,
            () = beat(AUTHORITY_LOOK_PERIOD) => {}
        }
    }
}

async fn fetch_authority(
    client: &Client,
    node: NodeId,
    authority: &Authority,
) -> Result<(), Status> {
    let options = CallOptions::within(FETCH_TIME_MAX);
    let request = FetchAuthorityRequest {};
    let given = client.call::<FetchAuthority>(&Name::Node(node), request, &options).await?;
    authority.hold(&given)?;
    tracing::info!(from = %node, "holds the authority's key, as voters do");
    Ok(())
}
