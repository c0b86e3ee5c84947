//! What a peer's certificate must show: a chain to the cluster's authority, this cluster's id, the
//! node expected, and that the node was not removed. Host names play no part.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use unum_proto::ids::NodeId;
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer};

use super::node::{ClusterId, IdentityError, NodeKey};

/// What a certificate says about a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    pub cluster: ClusterId,
    pub node: NodeId,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

/// Nodes that must not be talked to any more.
pub(crate) type Revoked = Arc<dyn Fn(NodeId) -> bool + Send + Sync>;

/// Why a certificate whose chain is right was refused all the same.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("its certificate names no node: {0}")]
    NoIdentity(String),
    #[error("it belongs to cluster {found}, not to {expected}")]
    ForeignCluster { found: ClusterId, expected: ClusterId },
    #[error("it is {found}, not {expected}")]
    WrongNode { found: NodeId, expected: NodeId },
}

fn refuse(refusal: Refusal) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refusal))))
}

/// Checks both directions for one identity.
pub(crate) struct PeerVerifier {
    cluster: ClusterId,
    roots: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
    algorithms: WebPkiSupportedAlgorithms,
    revoked: Revoked,
}

impl PeerVerifier {
    pub(crate) fn new(
        cluster: ClusterId,
        trusted: &[CertificateDer<'static>],
        provider: &Arc<CryptoProvider>,
        revoked: Revoked,
    ) -> Result<Self, IdentityError> {
        let mut roots = RootCertStore::empty();
        for authority in trusted {
            roots.add(authority.clone())?;
        }
        let roots = Arc::new(roots);
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|e| IdentityError::Malformed(format!("list of authorities: {e}")))?;
        let algorithms = provider.signature_verification_algorithms;
        Ok(PeerVerifier { cluster, roots, clients, algorithms, revoked })
    }

    fn check(&self, certificate: &CertificateDer<'_>) -> Result<PeerIdentity, Error> {
        let peer =
            read_node(certificate).map_err(|e| refuse(Refusal::NoIdentity(e.to_string())))?;
        if peer.cluster != self.cluster {
            let expected = self.cluster.clone();
            return Err(refuse(Refusal::ForeignCluster { found: peer.cluster, expected }));
        }
        if (self.revoked)(peer.node) {
            // The only refusal with an alert of its own: the peer learns why, and can tell its people.
            return Err(Error::InvalidCertificate(CertificateError::Revoked));
        }
        Ok(peer)
    }
}

impl fmt::Debug for PeerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerVerifier({})", self.cluster)
    }
}

/// The server name under which a dialler expects a node. It never leaves the process: SNI is off.
pub(crate) fn expected_name(
    node: NodeId,
) -> Result<ServerName<'static>, rustls::pki_types::InvalidDnsNameError> {
    ServerName::try_from(format!("node-{}", node.0))
}

fn expected_node(name: &ServerName<'_>) -> Option<NodeId> {
    let ServerName::DnsName(name) = name else { return None };
    name.as_ref().strip_prefix("node-")?.parse().ok().map(NodeId)
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        let found = self.check(end_entity)?.node;
        match expected_node(server_name) {
            Some(expected) if expected == found => Ok(ServerCertVerified::assertion()),
            Some(expected) => Err(refuse(Refusal::WrongNode { found, expected })),
            None => Err(refuse(Refusal::NoIdentity("the dialler expects no node".into()))),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.clients.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.clients.verify_client_cert(end_entity, intermediates, now)?;
        self.check(end_entity)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Who a certificate is for. Says nothing about who signed it.
pub(crate) fn read_node(certificate: &CertificateDer<'_>) -> Result<PeerIdentity, IdentityError> {
    let parsed = parse(certificate)?;
    let uris = uris(&parsed)?;
    let [uri] = uris.as_slice() else {
        return Err(malformed("certificate: it has not exactly one URI"));
    };
    let (cluster, node) = ClusterId::parse_node_uri(uri)
        .ok_or_else(|| IdentityError::Malformed(format!("identity {uri:?}")))?;
    let validity = parsed.validity();
    Ok(PeerIdentity {
        cluster,
        node,
        not_before: system_time(validity.not_before.timestamp()),
        not_after: system_time(validity.not_after.timestamp()),
    })
}

/// Cluster and name of a CA certificate, checked to be one and to be for this public key.
pub(super) fn read_authority(
    certificate: &CertificateDer<'_>,
    public_key: &[u8],
) -> Result<(ClusterId, String), IdentityError> {
    let parsed = parse(certificate)?;
    if !parsed.is_ca() {
        return Err(malformed("CA certificate: it is none of a CA"));
    }
    if parsed.public_key().raw != public_key {
        return Err(IdentityError::KeyMismatch);
    }
    let uris = uris(&parsed)?;
    let [uri] = uris.as_slice() else {
        return Err(malformed("CA certificate: it has not exactly one URI"));
    };
    let cluster = uri.strip_prefix("spiffe://").unwrap_or_default().parse()?;
    let name = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
    Ok((cluster, name.unwrap_or_default().to_owned()))
}

pub(super) fn check_key(
    certificate: &CertificateDer<'_>,
    key: &NodeKey,
) -> Result<(), IdentityError> {
    use rcgen::PublicKeyData;
    let parsed = parse(certificate)?;
    if parsed.public_key().raw == key.pair.subject_public_key_info() {
        Ok(())
    } else {
        Err(IdentityError::KeyMismatch)
    }
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, IdentityError> {
    match X509Certificate::from_der(certificate) {
        Ok(([], parsed)) => Ok(parsed),
        Ok(_) => Err(malformed("certificate: something follows it")),
        Err(error) => Err(IdentityError::Malformed(format!("certificate ({error})"))),
    }
}

fn uris<'a>(certificate: &X509Certificate<'a>) -> Result<Vec<&'a str>, IdentityError> {
    let names = certificate
        .extensions()
        .iter()
        .find_map(|extension| match extension.parsed_extension() {
            x509_parser::extensions::ParsedExtension::SubjectAlternativeName(names) => Some(names),
            _ => None,
        })
        .ok_or_else(|| malformed("certificate: it has no alternative name"))?;
    let uri = |name: &GeneralName<'a>| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    };
    Ok(names.general_names.iter().filter_map(uri).collect())
}

fn malformed(what: &str) -> IdentityError {
    IdentityError::Malformed(what.to_owned())
}

fn system_time(unix_seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(unix_seconds.max(0).cast_unsigned())
}
