//! The joining machine's side.

use std::{fmt, net::SocketAddr, sync::Arc};

use prost::Message;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
    version::TLS13,
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use unum_proto::cluster::{
    JoinAccepted, JoinRefusalKind, JoinReply, JoinRequest, NodeFacts, join_reply::Outcome,
};

use super::{
    desk::{read_message, send},
    token::JoinToken,
};
use crate::{
    identity::{ALPN_JOIN, Identity, IdentityError, NodeKey, crypto, read_node},
    limits::{JOIN_TIMEOUT, PROTOCOL_VERSION},
};

/// What a machine has after joining.
#[derive(Debug)]
pub struct Joined {
    pub identity: Identity,
    pub accepted: JoinAccepted,
}

#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("{address} cannot be reached: {why}; is unumd running there, and the port open?")]
    Unreachable { address: SocketAddr, why: String },
    /// Nothing secret was sent.
    #[error(
        "{0} is not the cluster that made this token; nothing secret was sent. Check the address, \
         or make a new token with `unum token create` there"
    )]
    WrongCluster(SocketAddr),
    /// Nothing secret was sent.
    #[error("{address} does not speak Unum's join protocol: {why}")]
    NotUnum { address: SocketAddr, why: String },
    #[error("the cluster refused: {message}")]
    Refused { kind: JoinRefusalKind, message: String },
    /// The token may be used up.
    #[error("the connection to {address} broke before the answer: {why}")]
    Broken { address: SocketAddr, why: String },
    #[error("the cluster's answer cannot be used: {0}")]
    BadAnswer(String),
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Asks a node of the cluster to take this machine in.
pub async fn join(
    address: SocketAddr,
    token: &JoinToken,
    facts: NodeFacts,
    role: &str,
) -> Result<Joined, JoinError> {
    let slow =
        |_| JoinError::Unreachable { address, why: format!("no answer in {JOIN_TIMEOUT:?}") };
    let key = NodeKey::generate()?;
    let request = JoinRequest {
        version: PROTOCOL_VERSION,
        token_id: token.id.to_vec(),
        secret: token.secret.as_bytes().to_vec(),
        csr: key.signing_request()?,
        facts: Some(facts),
        role: role.to_owned(),
    };
    let exchange = exchange(address, token, &request);
    let accepted = tokio::time::timeout(JOIN_TIMEOUT, exchange).await.map_err(slow)??;
    admit(key, token, accepted)
}

async fn exchange(
    address: SocketAddr,
    token: &JoinToken,
    request: &JoinRequest,
) -> Result<JoinAccepted, JoinError> {
    let tcp = TcpStream::connect(address)
        .await
        .map_err(|e| JoinError::Unreachable { address, why: e.to_string() })?;
    let connector = TlsConnector::from(Arc::new(config(token)?));
    let name = ServerName::IpAddress(address.ip().into());
    let mut stream = connector.connect(name, tcp).await.map_err(|e| handshake_error(address, e))?;
    if stream.get_ref().1.alpn_protocol() != Some(ALPN_JOIN) {
        return Err(JoinError::NotUnum { address, why: "it chose no join protocol".into() });
    }
    let broken = |e: std::io::Error| JoinError::Broken { address, why: e.to_string() };
    send_request(&mut stream, request).await.map_err(broken)?;
    let bytes = read_message(&mut stream).await.map_err(broken)?;
    let reply = JoinReply::decode(bytes.as_slice());
    match reply.map_err(|e| JoinError::BadAnswer(e.to_string()))?.outcome {
        Some(Outcome::Accepted(accepted)) => Ok(accepted),
        Some(Outcome::Refused(refused)) => {
            Err(JoinError::Refused { kind: refused.kind(), message: refused.message })
        }
        None => Err(JoinError::BadAnswer("it is empty".into())),
    }
}

async fn send_request<S>(stream: &mut S, request: &JoinRequest) -> std::io::Result<()>
where
    S: tokio::io::AsyncWrite + Unpin,
{
    send(stream, request).await
}

/// Takes the certificate only if the token's CA is among the trusted and the key is ours.
fn admit(key: NodeKey, token: &JoinToken, accepted: JoinAccepted) -> Result<Joined, JoinError> {
    let certificate = accepted
        .certificate
        .as_ref()
        .ok_or_else(|| JoinError::BadAnswer("it has no certificate".into()))?;
    let known = |der: &Vec<u8>| *blake3::hash(der).as_bytes() == token.authority_hash;
    if !certificate.trusted.iter().any(known) {
        return Err(JoinError::BadAnswer("the token's CA is not among the trusted ones".into()));
    }
    let identity = Identity::new(key, certificate)?;
    if identity.node().0 != accepted.node {
        return Err(JoinError::BadAnswer(format!("the certificate is for {}", identity.node())));
    }
    Ok(Joined { identity, accepted })
}

fn handshake_error(address: SocketAddr, error: std::io::Error) -> JoinError {
    let cause = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match cause {
        Some(Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
            JoinError::WrongCluster(address)
        }
        _ => JoinError::NotUnum { address, why: error.to_string() },
    }
}

fn config(token: &JoinToken) -> Result<ClientConfig, IdentityError> {
    let provider = crypto();
    let pinned = Pinned {
        authority_hash: token.authority_hash,
        algorithms: provider.signature_verification_algorithms,
    };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(pinned))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_JOIN.to_vec()];
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Accepts a server whose chain contains the CA certificate that the token names, and which that CA
/// signed as a node.
struct Pinned {
    authority_hash: [u8; 32],
    algorithms: WebPkiSupportedAlgorithms,
}

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pinned")
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let authority = intermediates
            .iter()
            .find(|der| *blake3::hash(der).as_bytes() == self.authority_hash)
            .ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        read_node(end_entity).map_err(|_| {
            Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)
        })?;
        Ok(ServerCertVerified::assertion())
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
