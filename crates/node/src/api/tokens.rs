//! Join tokens: made here, hashed into the registry, shown once.

use super::{Api, registry_status, time_left};
use crate::cluster::authority::authority_hash;
use crate::cluster::leader::wall_clock;
use std::sync::Arc;
use std::time::Duration;
use unum_core::registry::{Token, TokenHash};
use unum_net::{Code, Incoming, JoinToken, Status};
use unum_proto::admin::{
    NodeRole, TokenCreateReply, TokenCreateRequest, TokenListReply, TokenListRequest,
    TokenRevokeReply, TokenRevokeRequest,
};
use unum_proto::registry::{CreateToken, RevokeToken, Role, command};

/// How many nodes a newcomer is told to turn to.
const ADDRESSES_MAX: usize = 3;

pub async fn create(
    api: Arc<Api>,
    incoming: Incoming,
    request: TokenCreateRequest,
) -> Result<TokenCreateReply, Status> {
    api.access.require_admin(&incoming.caller, "make a join token")?;
    let parts = api.parts()?;
    let authority = authority_hash(&parts.identity)
        .ok_or_else(|| Status::internal("this node knows no authority"))?;
    let token = JoinToken::create(authority);
    let ttl = match request.ttl_ms {
        0 => parts.settings.token_lifetime,
        ms => Duration::from_millis(ms),
    };
    let hash = token.secret.hash();
    let command = command::Kind::CreateToken(CreateToken {
        hash: hash.to_vec().into(),
        role: role_of(request.role).into(),
        ttl_ms: u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX),
        uid: incoming.caller.uid,
    });
    parts.proposer.propose(command, time_left(&incoming)).await.map_err(registry_status)?;
    // The registry's clock counts; ours may differ.
    let expires = parts.registry.read(|state| state.tokens().get(&hash).map(|t| t.expires));
    Ok(TokenCreateReply {
        token: token.to_text(),
        id: token_id(&hash),
        addresses: addresses(&parts),
        expires_ms: expires.unwrap_or(wall_clock().after(ttl)).0 / 1_000_000,
    })
}

pub async fn list(
    api: Arc<Api>,
    incoming: Incoming,
    _request: TokenListRequest,
) -> Result<TokenListReply, Status> {
    api.access.require_admin(&incoming.caller, "list the join tokens")?;
    let parts = api.parts()?;
    parts.registry.barrier(time_left(&incoming)).await.map_err(registry_status)?;
    let now = wall_clock();
    let usable = |token: &Token| token.used_by.is_none() && token.expires > now;
    let tokens = parts.registry.read(|state| {
        let usable = state.tokens().iter().filter(|(_, token)| usable(token));
        usable.map(|(hash, token)| shown(hash, token)).collect()
    });
    Ok(TokenListReply { tokens })
}

pub async fn revoke(
    api: Arc<Api>,
    incoming: Incoming,
    request: TokenRevokeRequest,
) -> Result<TokenRevokeReply, Status> {
    api.access.require_admin(&incoming.caller, "revoke a join token")?;
    let parts = api.parts()?;
    parts.registry.barrier(time_left(&incoming)).await.map_err(registry_status)?;
    let hash = parts.registry.read(|state| {
        state.tokens().iter().map(|(hash, _)| *hash).find(|hash| token_id(hash) == request.id)
    });
    let hash = hash.ok_or_else(|| {
        let message = format!("no token is called {:?}; see `unum token list`", request.id);
        Status::new(Code::NotFound, message)
    })?;
    let command = command::Kind::RevokeToken(RevokeToken { hash: hash.to_vec().into() });
    parts.proposer.propose(command, time_left(&incoming)).await.map_err(registry_status)?;
    Ok(TokenRevokeReply {})
}

/// A token's public name: the beginning of its secret's hash.
fn token_id(hash: &TokenHash) -> String {
    hash.iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

fn shown(hash: &TokenHash, token: &Token) -> unum_proto::admin::Token {
    let role = match token.role {
        Role::Node => NodeRole::Node,
        Role::Witness => NodeRole::Witness,
        Role::Unspecified => NodeRole::Unspecified,
    };
    unum_proto::admin::Token {
        id: token_id(hash),
        role: role.into(),
        created_ms: 0,
        expires_ms: token.expires.0 / 1_000_000,
    }
}

fn role_of(role: i32) -> Role {
    match NodeRole::try_from(role) {
        Ok(NodeRole::Witness) => Role::Witness,
        Ok(NodeRole::Node | NodeRole::Unspecified) | Err(_) => Role::Node,
    }
}

/// This node first, then others that are alive.
fn addresses(parts: &crate::cluster::running::Parts) -> Vec<String> {
    let others = parts.registry.read(|state| {
        let alive = |id| parts.membership.is_reachable(id);
        let others = state.nodes().members().filter(|node| node.id != parts.node && alive(node.id));
        others.filter_map(|node| node.description.addresses.first().cloned()).collect::<Vec<_>>()
    });
    std::iter::once(parts.address.clone()).chain(others).take(ADDRESSES_MAX).collect()
}
