//! Join tokens, by the hash of their secret.
//!
//! Invariant: a token lets in one node at most. A used or expired one is remembered for a while so
//! that its holder learns what is wrong with it.

use std::time::Duration;

use bytes::Bytes;
use imbl::OrdMap;
use unum_proto::ids::NodeId;
use unum_proto::registry::{CreateToken, Role};

use super::limits::{TOKEN_MEMORY_MS, TOKEN_TTL_MS_MAX, TOKENS_MAX};
use super::refused::{Field, Refused};
use crate::time::Time;

/// blake3 of a token's secret.
pub type TokenHash = [u8; 32];

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    pub role: Role,
    pub expires: Time,
    pub creator_node: NodeId,
    pub creator_uid: u32,
    pub used_by: Option<NodeId>,
}

#[derive(Clone, Debug, Default)]
pub struct Tokens {
    pub(super) map: OrdMap<TokenHash, Token>,
}

impl Tokens {
    pub fn get(&self, hash: &TokenHash) -> Option<&Token> {
        self.map.get(hash)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&TokenHash, &Token)> {
        self.map.iter()
    }

    pub(super) fn create(
        &mut self,
        now: Time,
        creator_node: NodeId,
        command: &CreateToken,
    ) -> Result<(), Refused> {
        let hash = parse_hash(&command.hash)?;
        let role = parse_role(command.role)?;
        if command.ttl_ms == 0 || command.ttl_ms > TOKEN_TTL_MS_MAX {
            let text = format!("it must be between 1 ms and {TOKEN_TTL_MS_MAX} ms");
            return Err(Refused::Invalid(Field::TokenTtl, text));
        }
        self.sweep(now);
        if self.map.contains_key(&hash) {
            return Err(Refused::TokenExists);
        }
        if self.map.len() >= TOKENS_MAX {
            return Err(Refused::Limit(Field::Tokens, TOKENS_MAX as u64));
        }
        let expires = now.after(Duration::from_millis(command.ttl_ms));
        let creator_uid = command.uid;
        self.map.insert(hash, Token { role, expires, creator_node, creator_uid, used_by: None });
        Ok(())
    }

    pub(super) fn revoke(&mut self, hash: &Bytes) -> Result<(), Refused> {
        let hash = parse_hash(hash)?;
        self.map.remove(&hash).map(|_| ()).ok_or(Refused::TokenUnknown)
    }

    /// Whether the token would let in a node with this role now.
    pub(super) fn check(&self, now: Time, hash: &TokenHash, role: Role) -> Result<(), Refused> {
        let token = self.map.get(hash).ok_or(Refused::TokenUnknown)?;
        if token.used_by.is_some() {
            return Err(Refused::TokenUsed);
        }
        if token.expires <= now {
            return Err(Refused::TokenExpired);
        }
        if token.role != role {
            return Err(Refused::TokenRole(role_name(token.role).into()));
        }
        Ok(())
    }

    pub(super) fn mark_used(&mut self, hash: &TokenHash, by: NodeId) {
        if let Some(token) = self.map.get_mut(hash) {
            token.used_by = Some(by);
        }
    }

    fn sweep(&mut self, now: Time) {
        let over =
            |token: &Token| token.expires.after(Duration::from_millis(TOKEN_MEMORY_MS)) <= now;
        if self.map.values().any(over) {
            self.map = self
                .map
                .iter()
                .filter(|(_, token)| !over(token))
                .map(|(hash, token)| (*hash, token.clone()))
                .collect();
        }
    }
}

pub(super) fn parse_hash(hash: &[u8]) -> Result<TokenHash, Refused> {
    hash.try_into().map_err(|_| Refused::Invalid(Field::TokenHash, "it is not 32 bytes".into()))
}

pub(super) fn parse_role(role: i32) -> Result<Role, Refused> {
    match Role::try_from(role) {
        Ok(Role::Node) => Ok(Role::Node),
        Ok(Role::Witness) => Ok(Role::Witness),
        Ok(Role::Unspecified) | Err(_) => {
            Err(Refused::Invalid(Field::Role, "it is neither node nor witness".into()))
        }
    }
}

/// As people write it.
pub fn role_name(role: Role) -> &'static str {
    match role {
        Role::Unspecified => "unspecified",
        Role::Node => "node",
        Role::Witness => "witness",
    }
}
