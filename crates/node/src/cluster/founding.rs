//! Making a cluster: its authority, its id, and the first node's certificate.

use super::credentials::{CredentialError, Credentials};
use super::running::Found;
use crate::settings::Settings;
use unum_net::{CertificateAuthority, ClusterId, Identity, NodeKey};
use unum_proto::ids::NodeId;

/// The registry gives the founder this id.
const FOUNDER: NodeId = NodeId(1);
/// What people see of a cluster before they name it.
const CLUSTER_NAME: &str = "unum";

pub struct NewCluster {
    pub identity: Identity,
    pub found: Found,
}

/// Makes the secrets of a new cluster and saves them.
pub fn found(
    settings: &Settings,
    credentials: &Credentials,
) -> Result<NewCluster, CredentialError> {
    let authority = CertificateAuthority::create(CLUSTER_NAME)?;
    let key = NodeKey::generate()?;
    let lifetime = settings.certificate_lifetime;
    let certificate = authority.issue_for_key(&key, FOUNDER, &settings.name, lifetime)?;
    let identity = Identity::new(key, &certificate)?;
    let found = Found { cluster: id_bytes(authority.cluster()), name: CLUSTER_NAME.into() };
    credentials.save_authority(&authority)?;
    credentials.save(&identity, &settings.name)?;
    Ok(NewCluster { identity, found })
}

/// The 16 bytes that the id's 32 hexadecimal digits stand for.
fn id_bytes(id: &ClusterId) -> [u8; 16] {
    u128::from_str_radix(id.as_str(), 16).unwrap_or_default().to_be_bytes()
}
