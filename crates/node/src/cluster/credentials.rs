//! What makes this machine a node, on disk: its certificate and key, the authorities that it
//! trusts, and, on nodes that vote, the authority's key.
//!
//! Each file is replaced whole and synced, mode 0600. The certificate and its key are one file, so
//! that no crash parts them. `node.pem` is written last at a join and removed first at a leave:
//! with it this machine is a node, without it it is not.

use crate::system::write_durably;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use unum_net::identity::IdentityError;
use unum_net::{CertificateAuthority, Identity, NodeKey};

/// The largest file that is read.
const CREDENTIAL_SIZE_MAX: u64 = 256 * 1024;
const KEY_BEGIN: &str = "-----BEGIN PRIVATE KEY-----";

#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    #[error("cannot use the node's credentials in {path}: {error}")]
    File { path: PathBuf, error: io::Error },
    #[error(
        "the node's credentials in {path} are damaged: {why}; restore them, or remove the node \
         with `unum remove` elsewhere and join again with an empty data directory"
    )]
    Damaged { path: PathBuf, why: String },
    #[error("making the cluster's certificates failed: {0}")]
    Signing(#[from] IdentityError),
}

/// The credentials in a node's data directory.
#[derive(Clone, Debug)]
pub struct Credentials {
    node: PathBuf,
    authorities: PathBuf,
    authority_certificate: PathBuf,
    authority_key: PathBuf,
    name: PathBuf,
}

impl Credentials {
    pub fn of(data_dir: &Path) -> Self {
        Self {
            node: data_dir.join("node.pem"),
            authorities: data_dir.join("authorities.pem"),
            authority_certificate: data_dir.join("ca.pem"),
            authority_key: data_dir.join("ca.key"),
            name: data_dir.join("name"),
        }
    }

    /// None: this machine belongs to no cluster.
    pub fn load(&self) -> Result<Option<(Identity, String)>, CredentialError> {
        let Some(node) = read(&self.node)? else { return Ok(None) };
        let damaged =
            |why: &str| CredentialError::Damaged { path: self.node.clone(), why: why.into() };
        let authorities = read(&self.authorities)?
            .ok_or_else(|| damaged("the authorities' certificates are missing"))?;
        let name = read(&self.name)?.unwrap_or_default().trim().to_string();
        let key_at = node.find(KEY_BEGIN).ok_or_else(|| damaged("there is no private key"))?;
        let (chain, key) = node.split_at(key_at);
        let identity = Identity::from_pem(key, chain, &authorities)
            .map_err(|error| damaged(&error.to_string()))?;
        Ok(Some((identity, name)))
    }

    pub fn save(&self, identity: &Identity, name: &str) -> Result<(), CredentialError> {
        write(&self.name, name)?;
        self.save_identity(identity)
    }

    /// A renewed certificate.
    pub fn save_identity(&self, identity: &Identity) -> Result<(), CredentialError> {
        write(&self.authorities, &identity.trusted_pem())?;
        write(&self.node, &format!("{}{}", identity.chain_pem(), identity.key().to_pem()))
    }

    /// As `load`, with a new certificate if the old one has expired and this node holds the
    /// authority's key. Without that, a cluster that was off for longer than a certificate lives could
    /// never start again: no two nodes would speak to each other, so nobody could lead and sign.
    pub fn load_current(
        &self,
        lifetime: Duration,
    ) -> Result<Option<(Identity, String)>, CredentialError> {
        let Some((identity, name)) = self.load()? else { return Ok(None) };
        if identity.expires() > SystemTime::now() {
            return Ok(Some((identity, name)));
        }
        let Some(authority) = self.load_authority()? else { return Ok(Some((identity, name))) };
        let key = NodeKey::generate()?;
        let certificate = authority.issue_for_key(&key, identity.node(), &name, lifetime)?;
        let identity = Identity::new(key, &certificate)?;
        self.save_identity(&identity)?;
        Ok(Some((identity, name)))
    }

    /// None: this node does not hold the authority's key.
    pub fn load_authority(&self) -> Result<Option<CertificateAuthority>, CredentialError> {
        let (certificate, key) = (read(&self.authority_certificate)?, read(&self.authority_key)?);
        let (Some(certificate), Some(key)) = (certificate, key) else { return Ok(None) };
        CertificateAuthority::load(&certificate, &key).map(Some).map_err(|error| {
            CredentialError::Damaged { path: self.authority_key.clone(), why: error.to_string() }
        })
    }

    pub fn save_authority(&self, authority: &CertificateAuthority) -> Result<(), CredentialError> {
        write(&self.authority_certificate, authority.certificate_pem())?;
        write(&self.authority_key, authority.key_pem())
    }

    /// This machine is no node any more.
    pub fn forget(&self) -> Result<(), CredentialError> {
        let files = [
            &self.node,
            &self.authority_key,
            &self.authority_certificate,
            &self.authorities,
            &self.name,
        ];
        for path in files {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(CredentialError::File { path: path.clone(), error });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<Option<String>, CredentialError> {
    let failed = |error| CredentialError::File { path: path.into(), error };
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
        Ok(meta) if meta.len() > CREDENTIAL_SIZE_MAX => {
            return Err(failed(io::Error::other("it is larger than any credential")));
        }
        Ok(_) => {}
    }
    std::fs::read_to_string(path).map(Some).map_err(failed)
}

fn write(path: &Path, content: &str) -> Result<(), CredentialError> {
    write_durably(path, content.as_bytes(), 0o600)
        .map_err(|error| CredentialError::File { path: path.into(), error })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use unum_proto::ids::NodeId;

    const HOUR: Duration = Duration::from_secs(3600);

    fn made() -> (CertificateAuthority, Identity) {
        made_for(HOUR)
    }

    fn made_for(lifetime: Duration) -> (CertificateAuthority, Identity) {
        let authority = CertificateAuthority::create("lab").unwrap();
        let key = NodeKey::generate().unwrap();
        let certificate = authority.issue_for_key(&key, NodeId(7), "n7", lifetime).unwrap();
        (authority, Identity::new(key, &certificate).unwrap())
    }

    #[test]
    fn what_is_saved_is_loaded_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let credentials = Credentials::of(dir.path());
        assert!(credentials.load().unwrap().is_none());
        let (authority, identity) = made();
        credentials.save(&identity, "n7").unwrap();
        credentials.save_authority(&authority).unwrap();
        let (loaded, name) = credentials.load().unwrap().unwrap();
        assert_eq!((loaded.node(), name.as_str()), (NodeId(7), "n7"));
        assert_eq!(loaded.cluster(), authority.cluster());
        let held = credentials.load_authority().unwrap().unwrap();
        assert_eq!(held.hash(), authority.hash());
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let mode = entry.unwrap().metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        credentials.forget().unwrap();
        assert!(credentials.load().unwrap().is_none());
        assert!(credentials.load_authority().unwrap().is_none());
    }

    #[test]
    fn damage_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let credentials = Credentials::of(dir.path());
        credentials.save(&made().1, "n7").unwrap();
        std::fs::write(dir.path().join("node.pem"), "nonsense").unwrap();
        assert!(matches!(credentials.load(), Err(CredentialError::Damaged { .. })));
    }

    #[test]
    fn who_holds_the_authoritys_key_is_never_locked_out() {
        let dir = tempfile::tempdir().unwrap();
        let credentials = Credentials::of(dir.path());
        let (authority, expired) = made_for(Duration::ZERO);
        credentials.save(&expired, "n7").unwrap();
        let (loaded, _) = credentials.load_current(HOUR).unwrap().unwrap();
        assert_eq!(loaded.expires(), expired.expires(), "no key, no new certificate");
        credentials.save_authority(&authority).unwrap();
        let (renewed, name) = credentials.load_current(HOUR).unwrap().unwrap();
        assert!(renewed.expires() > SystemTime::now());
        assert_eq!((renewed.node(), name.as_str()), (NodeId(7), "n7"));
        assert_eq!(renewed.cluster(), authority.cluster());
        let (kept, _) = credentials.load_current(HOUR).unwrap().unwrap();
        assert_eq!(kept.expires(), renewed.expires(), "it is saved, and stays while it is valid");
    }
}
