//! The text that a person carries from a node of the cluster to the joining machine.

use std::{fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

const PREFIX: &str = "unum-";
const ID_SIZE: usize = 8;
const SECRET_SIZE: usize = 32;
const HASH_SIZE: usize = 32;

/// What proves that a machine may join. Never printed by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenSecret([u8; SECRET_SIZE]);

impl TokenSecret {
    pub fn as_bytes(&self) -> &[u8; SECRET_SIZE] {
        &self.0
    }

    /// What the cluster keeps instead of the secret. A secret has 256 random bits, so a plain hash
    /// cannot be searched.
    pub fn hash(&self) -> [u8; 32] {
        Self::hash_of(&self.0)
    }

    /// The same of a secret that arrived in a join request. Compare with `hashes_equal`.
    pub fn hash_of(secret: &[u8]) -> [u8; 32] {
        blake3::derive_key("unum join token secret v1", secret)
    }

    /// In constant time.
    pub fn hashes_equal(a: &[u8; 32], b: &[u8; 32]) -> bool {
        blake3::Hash::from_bytes(*a) == blake3::Hash::from_bytes(*b)
    }
}

impl fmt::Debug for TokenSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

/// `unum-` and the base64url of: 8 bytes id, 32 bytes secret, 32 bytes blake3 of the CA
/// certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinToken {
    pub id: [u8; ID_SIZE],
    pub secret: TokenSecret,
    pub authority_hash: [u8; HASH_SIZE],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("a join token begins with \"unum-\"; print one with `unum token create`")]
    Prefix,
    #[error("the join token is incomplete or mistyped; copy it again from `unum token create`")]
    Body,
}

impl JoinToken {
    /// A new random token for the cluster of this CA.
    pub fn create(authority_hash: [u8; HASH_SIZE]) -> Self {
        JoinToken { id: rand::random(), secret: TokenSecret(rand::random()), authority_hash }
    }

    /// The text to hand over; the only way to see the secret.
    pub fn to_text(&self) -> String {
        let mut bytes = Vec::with_capacity(ID_SIZE + SECRET_SIZE + HASH_SIZE);
        bytes.extend_from_slice(&self.id);
        bytes.extend_from_slice(&self.secret.0);
        bytes.extend_from_slice(&self.authority_hash);
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let body = text.trim().strip_prefix(PREFIX).ok_or(TokenError::Prefix)?;
        let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| TokenError::Body)?;
        let (id, rest) = bytes.split_first_chunk::<ID_SIZE>().ok_or(TokenError::Body)?;
        let (secret, rest) = rest.split_first_chunk::<SECRET_SIZE>().ok_or(TokenError::Body)?;
        let hash: [u8; HASH_SIZE] = rest.try_into().map_err(|_| TokenError::Body)?;
        Ok(JoinToken { id: *id, secret: TokenSecret(*secret), authority_hash: hash })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_its_text_and_hides_its_secret() {
        let token = JoinToken::create([7; 32]);
        let text = token.to_text();
        assert_eq!(text.parse(), Ok(token.clone()));
        let secret = URL_SAFE_NO_PAD.encode(token.secret.as_bytes());
        assert!(!format!("{token:?}").contains(&secret));
        assert!(format!("{token:?}").contains("(hidden)"));
    }

    #[test]
    fn a_mistyped_token_is_refused() {
        let text = JoinToken::create([7; 32]).to_text();
        assert_eq!("k10abc".parse::<JoinToken>(), Err(TokenError::Prefix));
        assert_eq!(text[..text.len() - 1].parse::<JoinToken>(), Err(TokenError::Body));
        assert_eq!(format!("{text}A").parse::<JoinToken>(), Err(TokenError::Body));
        assert_eq!(text.replace('-', "!-").parse::<JoinToken>(), Err(TokenError::Prefix));
        assert_eq!("unum-".parse::<JoinToken>(), Err(TokenError::Body));
    }
}
