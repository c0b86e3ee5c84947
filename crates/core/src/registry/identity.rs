//! What the cluster is: its id, its name, and the certificates of its authority.
//!
//! Leaves out the authority's key, which never enters the registry.

use unum_proto::registry::Found;

use super::limits::{AUTHORITIES_MAX, AUTHORITY_PEM_SIZE_MAX, CLUSTER_NAME_SIZE_MAX};
use super::nodes::check_name;
use super::refused::{Field, Refused};
use crate::time::Time;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub cluster: [u8; 16],
    pub name: String,
    /// PEM. More than one during a rollover.
    pub authorities_pem: Vec<String>,
    pub founded: Time,
}

impl Identity {
    pub(super) fn new(now: Time, command: &Found) -> Result<Self, Refused> {
        let cluster = command.cluster.as_ref().try_into();
        let cluster =
            cluster.map_err(|_| Refused::Invalid(Field::ClusterId, "it is not 16 bytes".into()))?;
        check_name(Field::ClusterName, &command.name, CLUSTER_NAME_SIZE_MAX)?;
        check_authorities(&command.authorities_pem)?;
        Ok(Self {
            cluster,
            name: command.name.clone(),
            authorities_pem: command.authorities_pem.clone(),
            founded: now,
        })
    }

    pub(super) fn set_authorities(&mut self, authorities_pem: &[String]) -> Result<(), Refused> {
        check_authorities(authorities_pem)?;
        self.authorities_pem = authorities_pem.to_vec();
        Ok(())
    }
}

fn check_authorities(authorities_pem: &[String]) -> Result<(), Refused> {
    if authorities_pem.is_empty() || authorities_pem.len() > AUTHORITIES_MAX {
        let text = format!("there must be 1 to {AUTHORITIES_MAX} of them");
        return Err(Refused::Invalid(Field::Authorities, text));
    }
    if authorities_pem.iter().any(|pem| pem.len() > AUTHORITY_PEM_SIZE_MAX) {
        return Err(Refused::Limit(Field::Authorities, AUTHORITY_PEM_SIZE_MAX as u64));
    }
    Ok(())
}
