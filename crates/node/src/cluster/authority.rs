//! The cluster's certificate authority, as far as this node has to do with it.
//!
//! Invariant: the authority's private key lies on the nodes that vote, and nowhere else in the
//! cluster: not in the registry, not in a snapshot. A node fetches it from the other voters as soon
//! as it votes, so a leader has it, or gets it before the first join or renewal that needs it is
//! tried again.

use super::credentials::{CredentialError, Credentials};
use arc_swap::ArcSwapOption;
use std::sync::Arc;
use std::time::Duration;
use unum_net::{CertificateAuthority, Code, IdentityStore, Status};
use unum_proto::cluster::{Certificate, FetchAuthorityReply};
use unum_proto::ids::NodeId;

pub struct Authority {
    held: ArcSwapOption<CertificateAuthority>,
    credentials: Credentials,
    identity: Arc<IdentityStore>,
    lifetime: Duration,
}

impl Authority {
    pub fn load(
        credentials: Credentials,
        identity: Arc<IdentityStore>,
        lifetime: Duration,
    ) -> Result<Self, CredentialError> {
        let held = ArcSwapOption::from(credentials.load_authority()?.map(Arc::new));
        Ok(Self { held, credentials, identity, lifetime })
    }

    pub fn is_held(&self) -> bool {
        self.held.load().is_some()
    }

    /// Signs for a node. Whether the node may have a certificate is the caller's decision.
    pub fn sign(&self, csr: &[u8], node: NodeId, name: &str) -> Result<Certificate, Status> {
        let authority = self.held.load_full().ok_or_else(|| {
            Status::new(
                Code::Unavailable,
                "this node leads the cluster but does not have the authority's key (ca.key) yet; \
                 it asks the other voters for it. If none has it, restore the file from a backup",
            )
        })?;
        authority.issue(csr, node, name, self.lifetime).map_err(|error| {
            Status::new(Code::Invalid, format!("the signing request is not acceptable: {error}"))
        })
    }

    /// What another voter has to be given.
    pub fn hand_out(&self) -> Option<FetchAuthorityReply> {
        let held = self.held.load_full()?;
        Some(FetchAuthorityReply {
            certificate_pem: held.certificate_pem().into(),
            key_pem: held.key_pem().into(),
        })
    }

    /// Takes the key that another voter gave, if it is the key of an authority that this node
    /// trusts already.
    pub fn hold(&self, given: &FetchAuthorityReply) -> Result<(), Status> {
        let authority = CertificateAuthority::load(&given.certificate_pem, &given.key_pem)
            .map_err(|error| Status::new(Code::Invalid, format!("not an authority: {error}")))?;
        let trusted = trusted_certificates(&self.identity);
        if !trusted.iter().any(|der| der.as_slice() == authority.certificate().as_ref()) {
            return Err(Status::denied("this authority is not one of the cluster's"));
        }
        self.credentials
            .save_authority(&authority)
            .map_err(|error| Status::internal(error.to_string()))?;
        self.held.store(Some(Arc::new(authority)));
        Ok(())
    }
}

/// The certificates of the authorities that this node trusts, DER.
pub fn trusted_certificates(identity: &IdentityStore) -> Vec<Vec<u8>> {
    identity.with(|identity| pem_bodies(&identity.trusted_pem()))
}

/// What a join token carries: the hash of the newest authority's certificate.
pub fn authority_hash(identity: &IdentityStore) -> Option<[u8; 32]> {
    let newest = trusted_certificates(identity).pop()?;
    Some(*blake3::hash(&newest).as_bytes())
}

pub fn trusted_pem(identity: &IdentityStore) -> String {
    identity.with(|identity| identity.trusted_pem())
}

fn pem_bodies(pem: &str) -> Vec<Vec<u8>> {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    let mut bodies = Vec::new();
    let mut body = String::new();
    for line in pem.lines() {
        if line.starts_with("-----BEGIN") {
            body.clear();
        } else if line.starts_with("-----END") {
            bodies.extend(STANDARD.decode(&body));
        } else {
            body.push_str(line.trim());
        }
    }
    bodies
}
