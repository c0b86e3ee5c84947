//! Named values of the registry. Reads are linearizable; changes take an administrator.

use super::{Api, registry_status, time_left};
use crate::registry::RegistryError;
use std::sync::Arc;
use unum_core::registry::Refused;
use unum_net::{Incoming, Status};
use unum_proto::admin::{
    Value, ValueDeleteReply, ValueDeleteRequest, ValueGetReply, ValueGetRequest, ValueListReply,
    ValueListRequest, ValuePutReply, ValuePutRequest,
};
use unum_proto::registry::{CompareAndSet, DeleteValue, PutValue, command, reply};

/// Values in one listing.
const LIST_VALUES_MAX: usize = 10_000;

pub async fn get(
    api: Arc<Api>,
    incoming: Incoming,
    request: ValueGetRequest,
) -> Result<ValueGetReply, Status> {
    let parts = api.parts()?;
    parts.registry.barrier(time_left(&incoming)).await.map_err(registry_status)?;
    let value = parts.registry.read(|state| state.values().get(request.name.as_bytes()).cloned());
    Ok(ValueGetReply {
        value: value.map(|value| Value {
            name: request.name,
            size_bytes: value.bytes.len() as u64,
            content: value.bytes.to_vec(),
            version: value.version,
        }),
    })
}

pub async fn list(
    api: Arc<Api>,
    incoming: Incoming,
    request: ValueListRequest,
) -> Result<ValueListReply, Status> {
    let parts = api.parts()?;
    parts.registry.barrier(time_left(&incoming)).await.map_err(registry_status)?;
    let values = parts.registry.read(|state| {
        let found = state.values().with_prefix(request.prefix.as_bytes()).take(LIST_VALUES_MAX);
        found
            .map(|(key, value)| Value {
                name: String::from_utf8_lossy(key).into_owned(),
                content: Vec::new(),
                version: value.version,
                size_bytes: value.bytes.len() as u64,
            })
            .collect()
    });
    Ok(ValueListReply { values })
}

pub async fn put(
    api: Arc<Api>,
    incoming: Incoming,
    request: ValuePutRequest,
) -> Result<ValuePutReply, Status> {
    api.access.require_admin(&incoming.caller, "change a value of the registry")?;
    let (key, value) = (request.name.into_bytes().into(), request.content.into());
    let command = match request.if_version {
        None => command::Kind::PutValue(PutValue { key, value }),
        Some(expected) => {
            command::Kind::CompareAndSet(CompareAndSet { key, expected, value: Some(value) })
        }
    };
    let (done, version) = change(&api, &incoming, command).await?;
    Ok(ValuePutReply { done, version })
}

pub async fn delete(
    api: Arc<Api>,
    incoming: Incoming,
    request: ValueDeleteRequest,
) -> Result<ValueDeleteReply, Status> {
    api.access.require_admin(&incoming.caller, "delete a value of the registry")?;
    let key = request.name.into_bytes().into();
    let command = match request.if_version {
        None => command::Kind::DeleteValue(DeleteValue { key }),
        Some(expected) => {
            command::Kind::CompareAndSet(CompareAndSet { key, expected, value: None })
        }
    };
    let (done, version) = change(&api, &incoming, command).await?;
    Ok(ValueDeleteReply { done, version })
}

/// Whether it was done, and the version found or made.
async fn change(
    api: &Api,
    incoming: &Incoming,
    command: command::Kind,
) -> Result<(bool, u64), Status> {
    let parts = api.parts()?;
    match parts.proposer.propose(command, time_left(incoming)).await {
        Ok(reply::Kind::Version(version)) => Ok((true, version.version)),
        Ok(_) => Ok((true, 0)),
        Err(RegistryError::Refused(Refused::VersionConflict(found))) => Ok((false, found)),
        Err(RegistryError::Refused(Refused::ValueMissing)) => Ok((false, 0)),
        Err(error) => Err(registry_status(error)),
    }
}
