//! Who is who: the cluster's certificate authority, node certificates, and their verification.
//!
//! A node's certificate carries one SPIFFE URI, `spiffe://<cluster-id>/node/<id>`; that, and not a
//! host name, is what both sides check. Keys are P-256: certificates and signatures are as small as
//! Ed25519's, and it is the curve that security chips, PKCS #11 tokens and every TLS library can do,
//! so that a CA key can move into hardware later without a change of format.
//!
//! Left out: where keys are stored, and the registry's list of removed nodes (a predicate here).

mod authority;
mod node;
mod store;
mod verify;

pub use authority::{CertificateAuthority, check_signing_request};
pub use node::{ClusterId, Identity, IdentityError, NodeKey};
pub(crate) use store::{ALPN_JOIN, ALPN_RPC, crypto};
pub use store::{IdentityStore, TurnedAway, keep_renewed};
pub use verify::PeerIdentity;
pub(crate) use verify::{expected_name, read_node};
