//! Joining a cluster: a token and some addresses lead to a certificate.

use super::facts;
use crate::settings::Settings;
use std::net::SocketAddr;
use unum_net::join::{JoinError, Joined};
use unum_net::{Code, JoinToken, Status};
use unum_proto::admin::JoinRequest;
use unum_proto::cluster::JoinRefusalKind;

/// Addresses that are tried.
const ADDRESSES_MAX: usize = 16;

/// Tries the addresses in order until one answers for the cluster.
pub async fn join(settings: &Settings, request: &JoinRequest) -> Result<Joined, Status> {
    let token: JoinToken = request
        .token
        .parse()
        .map_err(|error: unum_net::join::TokenError| invalid(error.to_string()))?;
    let mut last = invalid("name the address of a node of the cluster: unum join TOKEN ADDRESS");
    for address in targets(&request.addresses).await? {
        let facts = facts::node_facts(settings, settings.listen);
        match unum_net::join::join(address, &token, facts, "").await {
            Ok(joined) => return Ok(joined),
            Err(error) => {
                tracing::warn!(%address, %error, "join");
                let final_word = is_final(&error);
                last = status_of(error);
                if final_word {
                    break;
                }
            }
        }
    }
    Err(last)
}

async fn targets(addresses: &[String]) -> Result<Vec<SocketAddr>, Status> {
    let mut found = Vec::new();
    for address in addresses.iter().take(ADDRESSES_MAX) {
        let complete = with_port(address);
        let resolved = facts::resolve(std::slice::from_ref(&complete)).await;
        if resolved.is_empty() && addresses.len() == 1 {
            return Err(invalid(format!("the address {address:?} cannot be found")));
        }
        found.extend(resolved);
    }
    Ok(found)
}

fn with_port(address: &str) -> String {
    let has_port = match address.rsplit_once(':') {
        Some((host, port)) => {
            port.parse::<u16>().is_ok() && (!host.contains(':') || host.ends_with(']'))
        }
        None => false,
    };
    match address.parse::<std::net::IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, crate::settings::PORT).to_string(),
        Err(_) if has_port => address.into(),
        Err(_) => format!("{address}:{}", crate::settings::PORT),
    }
}

/// Another node of the same cluster would say the same.
fn is_final(error: &JoinError) -> bool {
    match error {
        JoinError::Refused { kind, .. } => *kind != JoinRefusalKind::Unavailable,
        // The token may be used up: asking again would only hide what happened.
        JoinError::Broken { .. } | JoinError::BadAnswer(_) | JoinError::Identity(_) => true,
        JoinError::Unreachable { .. } | JoinError::WrongCluster(_) | JoinError::NotUnum { .. } => {
            false
        }
    }
}

fn status_of(error: JoinError) -> Status {
    let code = match &error {
        JoinError::Unreachable { .. } | JoinError::Broken { .. } => Code::Unavailable,
        JoinError::WrongCluster(_) | JoinError::NotUnum { .. } | JoinError::BadAnswer(_) => {
            Code::Denied
        }
        JoinError::Refused { kind, .. } => match kind {
            JoinRefusalKind::Unavailable | JoinRefusalKind::TooMany => Code::Unavailable,
            JoinRefusalKind::NameTaken => Code::Exists,
            _ => Code::Denied,
        },
        JoinError::Identity(_) => Code::Internal,
    };
    Status::new(code, error.to_string())
}

fn invalid(message: impl Into<String>) -> Status {
    Status::new(Code::Invalid, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_may_be_left_out() {
        let completed = |address| with_port(address);
        assert_eq!(completed("lab-1"), "lab-1:7117");
        assert_eq!(completed("lab-1:9"), "lab-1:9");
        assert_eq!(completed("10.0.0.1"), "10.0.0.1:7117");
        assert_eq!(completed("fe80::1"), "[fe80::1]:7117");
        assert_eq!(completed("[fe80::1]:9"), "[fe80::1]:9");
    }
}
