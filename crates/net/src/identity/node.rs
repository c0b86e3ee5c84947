//! A node's own key and certificate.

use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime},
};

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use unum_proto::{cluster, ids::NodeId};

use super::{
    authority::CLOCK_SKEW,
    verify::{PeerIdentity, read_node},
};

/// Certificates of a chain that are looked at.
const CHAIN_LENGTH_MAX: usize = 4;
/// Bytes in a cluster's id.
const CLUSTER_ID_SIZE: usize = 16;

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("{0} is malformed")]
    Malformed(String),
    #[error("the certificate is not for this key")]
    KeyMismatch,
    #[error("signing failed: {0}")]
    Signing(String),
    #[error("TLS refuses the certificate: {0}")]
    Tls(#[from] rustls::Error),
}

impl IdentityError {
    pub(super) fn signing(error: rcgen::Error) -> Self {
        IdentityError::Signing(error.to_string())
    }
}

/// Names a cluster for ever: 32 hexadecimal digits, the trust domain of its SPIFFE URIs.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterId(String);

impl ClusterId {
    pub fn random() -> Self {
        let bytes: [u8; CLUSTER_ID_SIZE] = rand::random();
        ClusterId(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn node_uri(&self, node: NodeId) -> String {
        format!("spiffe://{}/node/{}", self.0, node.0)
    }

    /// Reads `spiffe://<cluster-id>/node/<id>`.
    pub(super) fn parse_node_uri(uri: &str) -> Option<(Self, NodeId)> {
        let (cluster, node) = uri.strip_prefix("spiffe://")?.split_once("/node/")?;
        // One spelling for each number: "+7" and "007" are not names of node 7.
        let id: u64 = node.parse().ok()?;
        let spelled_so = node == id.to_string();
        (spelled_so && id != 0).then_some((cluster.parse().ok()?, NodeId(id)))
    }
}

impl FromStr for ClusterId {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let right = text.len() == 2 * CLUSTER_ID_SIZE
            && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if right {
            Ok(ClusterId(text.to_owned()))
        } else {
            Err(IdentityError::Malformed(format!("cluster id {text:?}")))
        }
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A node's private key.
pub struct NodeKey {
    pub(super) pair: KeyPair,
}

impl NodeKey {
    pub fn generate() -> Result<Self, IdentityError> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256);
        Ok(NodeKey { pair: pair.map_err(IdentityError::signing)? })
    }

    pub fn from_pem(pem: &str) -> Result<Self, IdentityError> {
        let pair = KeyPair::from_pem(pem)
            .map_err(|e| IdentityError::Malformed(format!("private key: {e}")))?;
        Ok(NodeKey { pair })
    }

    /// Secret: for a file of mode 0600.
    pub fn to_pem(&self) -> String {
        self.pair.serialize_pem()
    }

    /// A signing request (PKCS #10, DER). It names nobody: who the node is, the authority decides.
    pub fn signing_request(&self) -> Result<Vec<u8>, IdentityError> {
        let request = CertificateParams::default()
            .serialize_request(&self.pair)
            .map_err(IdentityError::signing)?;
        Ok(request.der().to_vec())
    }

    pub(super) fn der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.pair.serialize_der()))
    }

    fn clone_key(&self) -> Result<Self, IdentityError> {
        NodeKey::from_pem(&self.to_pem())
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeKey")
    }
}

/// A node's certificate with its key and the authorities that it trusts.
pub struct Identity {
    pub(super) peer: PeerIdentity,
    pub(super) key: NodeKey,
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) trusted: Vec<CertificateDer<'static>>,
}

impl Identity {
    pub fn new(key: NodeKey, certificate: &cluster::Certificate) -> Result<Self, IdentityError> {
        let chain = ders(&certificate.chain);
        let trusted = ders(&certificate.trusted);
        Self::from_parts(key, chain, trusted)
    }

    /// From what `chain_pem`, `trusted_pem` and `NodeKey::to_pem` gave.
    pub fn from_pem(key_pem: &str, chain: &str, trusted: &str) -> Result<Self, IdentityError> {
        Self::from_parts(NodeKey::from_pem(key_pem)?, read_pem(chain)?, read_pem(trusted)?)
    }

    fn from_parts(
        key: NodeKey,
        chain: Vec<CertificateDer<'static>>,
        trusted: Vec<CertificateDer<'static>>,
    ) -> Result<Self, IdentityError> {
        let own = chain.first().ok_or_else(|| malformed("certificate chain: empty"))?;
        if trusted.is_empty() || chain.len() > CHAIN_LENGTH_MAX {
            return Err(malformed("certificate chain or list of authorities"));
        }
        let peer = read_node(own)?;
        super::verify::check_key(own, &key)?;
        Ok(Identity { peer, key, chain, trusted })
    }

    pub fn cluster(&self) -> &ClusterId {
        &self.peer.cluster
    }

    pub fn node(&self) -> NodeId {
        self.peer.node
    }

    pub fn expires(&self) -> SystemTime {
        self.peer.not_after
    }

    /// When to ask for the next certificate: at two thirds of this one's life.
    pub fn renew_at(&self) -> SystemTime {
        let issued = self.peer.not_before + CLOCK_SKEW;
        let life = self.peer.not_after.duration_since(issued).unwrap_or(Duration::ZERO);
        issued + life * 2 / 3
    }

    pub fn key(&self) -> &NodeKey {
        &self.key
    }

    pub fn chain_pem(&self) -> String {
        write_pem(&self.chain)
    }

    pub fn trusted_pem(&self) -> String {
        write_pem(&self.trusted)
    }

    /// The same node and key with other trusted authorities, as during a change of CA.
    pub fn with_trusted(&self, trusted: &[Vec<u8>]) -> Result<Self, IdentityError> {
        Self::from_parts(self.key.clone_key()?, self.chain.clone(), ders(trusted))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({} of {})", self.peer.node, self.peer.cluster)
    }
}

fn malformed(what: &str) -> IdentityError {
    IdentityError::Malformed(what.to_owned())
}

fn ders(list: &[Vec<u8>]) -> Vec<CertificateDer<'static>> {
    list.iter().map(|der| CertificateDer::from(der.clone())).collect()
}

fn read_pem(pem: &str) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|e| IdentityError::Malformed(format!("certificate file: {e}")))
}

fn write_pem(list: &[CertificateDer<'_>]) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let mut pem = String::new();
    for certificate in list {
        pem.push_str("-----BEGIN CERTIFICATE-----\n");
        let text = STANDARD.encode(certificate);
        for line in text.as_bytes().chunks(64) {
            pem.push_str(&String::from_utf8_lossy(line));
            pem.push('\n');
        }
        pem.push_str("-----END CERTIFICATE-----\n");
    }
    pem
}
