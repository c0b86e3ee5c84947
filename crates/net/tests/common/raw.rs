//! Connections whose frames a test writes by hand.

use std::{net::SocketAddr, sync::Arc};

use prost::Message;
use tokio::net::TcpStream;
use unum_net::Identity;
use unum_proto::rpc::{Hello, RequestHeader};

/// The kinds of frames that are written here.
pub const HELLO: u8 = 1;
pub const REQUEST: u8 = 2;

pub fn frame(kind: u8, header: &impl Message, body: &[u8]) -> Vec<u8> {
    let header = header.encode_to_vec();
    let mut bytes = Vec::from(((header.len() + body.len()) as u32).to_le_bytes());
    bytes.push(kind);
    bytes.extend_from_slice(&(header.len() as u32).to_le_bytes()[..3]);
    bytes.extend_from_slice(&header);
    bytes.extend_from_slice(body);
    bytes
}

pub fn hello() -> Vec<u8> {
    frame(HELLO, &Hello { version: 1, class: 1, run: 1 }, &[])
}

pub fn request(call: u64, method: &str, body: &[u8]) -> Vec<u8> {
    let header = RequestHeader { call, method: method.into(), ..Default::default() };
    frame(REQUEST, &header, body)
}

/// A TLS connection with a certificate, for speaking frames by hand.
pub async fn raw_tls(
    me: &Identity,
    address: SocketAddr,
    alpn: &[u8],
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(me.chain_pem().as_bytes()).map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_slice(me.key().to_pem().as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TrustAnybody(provider)))
        .with_client_auth_cert(chain, key)
        .unwrap();
    config.alpn_protocols = if alpn.is_empty() { vec![] } else { vec![alpn.to_vec()] };
    let tcp = TcpStream::connect(address).await?;
    let name = ServerName::try_from("anything").unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await
}

#[derive(Debug)]
struct TrustAnybody(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for TrustAnybody {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
