//! The cluster's own certificate authority.
//!
//! It signs what it decided itself: of a signing request only the public key is used.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, pem::PemObject};
use time::OffsetDateTime;
use unum_proto::{cluster, ids::NodeId};

use super::node::{ClusterId, IdentityError, NodeKey};

/// How long a CA certificate is valid.
const CA_VALIDITY: Duration = Duration::from_secs(3650 * 24 * 3600);
/// Certificates begin so much in the past, for clocks that lag behind.
pub(super) const CLOCK_SKEW: Duration = Duration::from_secs(300);

/// Signs the certificates of a cluster's nodes.
pub struct CertificateAuthority {
    cluster: ClusterId,
    name: String,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    key_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl CertificateAuthority {
    /// A new authority for a new cluster, with a random cluster id.
    pub fn create(name: &str) -> Result<Self, IdentityError> {
        let cluster = ClusterId::random();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(IdentityError::signing)?;
        let key_pem = key.serialize_pem();
        let mut params = CertificateParams::default();
        params.distinguished_name = distinguished_name(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(random_serial());
        params.subject_alt_names = vec![spiffe(&format!("spiffe://{cluster}"))?];
        (params.not_before, params.not_after) = validity(CA_VALIDITY)?;
        let certificate = params.self_signed(&key).map_err(IdentityError::signing)?;
        let pem = certificate.pem();
        Self::load(&pem, &key_pem)
    }

    /// From the certificate and the private key, both PEM.
    pub fn load(certificate_pem: &str, key_pem: &str) -> Result<Self, IdentityError> {
        let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|e| IdentityError::Malformed(format!("CA certificate: {e}")))?;
        let key = KeyPair::from_pem(key_pem)
            .map_err(|e| IdentityError::Malformed(format!("CA key: {e}")))?;
        let (cluster, name) =
            super::verify::read_authority(&certificate, &key.subject_public_key_info())?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(IdentityError::signing)?;
        Ok(CertificateAuthority {
            cluster,
            name,
            certificate,
            certificate_pem: certificate_pem.to_owned(),
            key_pem: key_pem.to_owned(),
            issuer,
        })
    }

    pub fn cluster(&self) -> &ClusterId {
        &self.cluster
    }

    /// The cluster's name for people.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The secret of the cluster.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// What a join token carries of the CA.
    pub fn hash(&self) -> [u8; 32] {
        *blake3::hash(&self.certificate).as_bytes()
    }

    /// Signs a request (PKCS #10, DER), whose own signature is checked.
    pub fn issue(
        &self,
        csr: &[u8],
        node: NodeId,
        name: &str,
        valid_for: Duration,
    ) -> Result<cluster::Certificate, IdentityError> {
        let csr = read_signing_request(csr)?;
        self.sign(&csr.public_key, node, name, valid_for)
    }

    /// Signs for a key that is at hand: the first node's own.
    pub fn issue_for_key(
        &self,
        key: &NodeKey,
        node: NodeId,
        name: &str,
        valid_for: Duration,
    ) -> Result<cluster::Certificate, IdentityError> {
        self.sign(&key.pair, node, name, valid_for)
    }

    fn sign(
        &self,
        key: &impl PublicKeyData,
        node: NodeId,
        name: &str,
        valid_for: Duration,
    ) -> Result<cluster::Certificate, IdentityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = distinguished_name(name);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.serial_number = Some(random_serial());
        params.subject_alt_names = vec![spiffe(&self.cluster.node_uri(node))?];
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = validity(valid_for)?;
        let certificate = params.signed_by(key, &self.issuer).map_err(IdentityError::signing)?;
        Ok(cluster::Certificate {
            chain: vec![certificate.der().to_vec(), self.certificate.to_vec()],
            trusted: vec![self.certificate.to_vec()],
        })
    }
}

impl fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateAuthority")
            .field("cluster", &self.cluster)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Whether a signing request is one that `issue` can read.
pub fn check_signing_request(csr: &[u8]) -> Result<(), IdentityError> {
    read_signing_request(csr).map(drop)
}

fn read_signing_request(csr: &[u8]) -> Result<CertificateSigningRequestParams, IdentityError> {
    CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr))
        .map_err(|error| IdentityError::Malformed(format!("certificate signing request: {error}")))
}

fn distinguished_name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

fn spiffe(uri: &str) -> Result<SanType, IdentityError> {
    let uri = uri.try_into().map_err(|_| IdentityError::Malformed(format!("URI {uri:?}")))?;
    Ok(SanType::URI(uri))
}

fn random_serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    bytes[0] &= 0x7f;
    SerialNumber::from_slice(&bytes)
}

fn validity(valid_for: Duration) -> Result<(OffsetDateTime, OffsetDateTime), IdentityError> {
    let now = SystemTime::now();
    let end = now.checked_add(valid_for).filter(|_| valid_for <= CA_VALIDITY);
    let end = end.ok_or_else(|| IdentityError::Malformed(format!("validity of {valid_for:?}")))?;
    Ok((OffsetDateTime::from(now - CLOCK_SKEW), OffsetDateTime::from(end)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::NodeKey;

    #[test]
    fn only_a_whole_signing_request_passes() {
        let request = NodeKey::generate().unwrap().signing_request().unwrap();
        assert!(check_signing_request(&request).is_ok());
        let mut forged = request.clone();
        *forged.last_mut().unwrap() ^= 1;
        for bad in [&b""[..], b"nonsense", &request[..request.len() - 1], &forged] {
            assert!(check_signing_request(bad).is_err(), "{bad:02x?}");
        }
    }
}
