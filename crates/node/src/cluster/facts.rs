//! What this machine says about itself.

use crate::membership::loads::{read_cores, read_machine};
use crate::settings::Settings;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use unum_proto::cluster::NodeFacts;
use unum_proto::registry::Description;

/// The version that daemons tell each other.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Where the other nodes reach this one: what the settings say, else the address it listens on. A
/// host that stands for "any" is replaced by the leader with the address that it sees.
pub fn advertised(settings: &Settings, listening: SocketAddr) -> String {
    match &settings.advertise {
        Some(address) if has_port(address) => address.clone(),
        Some(host) => format!("{host}:{}", listening.port()),
        None => listening.to_string(),
    }
}

fn has_port(address: &str) -> bool {
    let Some((host, port)) = address.rsplit_once(':') else { return false };
    port.parse::<u16>().is_ok() && (!host.contains(':') || host.ends_with(']'))
}

/// The address under which others reach this machine when it listens on all: the one that the
/// kernel would use to speak to the world. Nothing is sent.
pub fn own_address(listening: SocketAddr) -> SocketAddr {
    if !listening.ip().is_unspecified() {
        return listening;
    }
    let guess = std::net::UdpSocket::bind(("0.0.0.0", 0)).and_then(|socket| {
        socket.connect(("192.0.2.1", 9))?;
        socket.local_addr()
    });
    match guess {
        Ok(address) if !address.ip().is_unspecified() => {
            SocketAddr::new(address.ip(), listening.port())
        }
        _ => first_interface_address(listening),
    }
}

/// The address under which this machine reaches its own daemon.
pub fn loopback(listening: SocketAddr) -> SocketAddr {
    let ip = match listening.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listening.port())
}

/// Without a route to the world, the first address in the kernel's table of local ones.
fn first_interface_address(listening: SocketAddr) -> SocketAddr {
    let table = std::fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
    let ip = local_addresses(&table).into_iter().find(|ip| !ip.is_loopback());
    SocketAddr::new(ip.unwrap_or(Ipv4Addr::LOCALHOST).into(), listening.port())
}

/// In the table, an address of this host is a line `|-- ADDRESS` followed by `/32 host LOCAL`.
fn local_addresses(table: &str) -> Vec<Ipv4Addr> {
    let mut last: Option<Ipv4Addr> = None;
    let mut found = Vec::new();
    for line in table.lines() {
        if let Some(address) = line.trim().strip_prefix("|-- ") {
            last = address.parse().ok();
        } else if line.trim() == "/32 host LOCAL" {
            found.extend(last);
        }
    }
    found
}

pub fn node_facts(settings: &Settings, listening: SocketAddr) -> NodeFacts {
    let load = read_machine(read_cores());
    let uname = rustix::system::uname();
    NodeFacts {
        name: settings.name.clone(),
        addresses: vec![advertised(settings, listening)],
        cpus: load.cores,
        memory_bytes: load.memory_total,
        architecture: uname.machine().to_string_lossy().into_owned(),
        kernel: uname.release().to_string_lossy().into_owned(),
        version: VERSION.into(),
    }
}

/// The registry's form of what a node says of itself.
pub fn description(facts: &NodeFacts, addresses: Vec<String>) -> Description {
    Description {
        addresses,
        cores: facts.cpus,
        memory_bytes: facts.memory_bytes,
        architecture: facts.architecture.clone(),
        version: facts.version.clone(),
    }
}

/// A newcomer's addresses, with "any" replaced by the address that its request came from.
pub fn seen_addresses(told: &[String], from: &str) -> Vec<String> {
    let seen = from.parse::<SocketAddr>().ok().map(|from| from.ip());
    told.iter()
        .map(|address| match (address.parse::<SocketAddr>(), seen) {
            (Ok(any), Some(seen)) if any.ip().is_unspecified() => {
                SocketAddr::new(seen, any.port()).to_string()
            }
            _ => address.clone(),
        })
        .collect()
}

/// Addresses as the directory wants them. Names are looked up; what cannot be found is left out.
pub async fn resolve(addresses: &[String]) -> Vec<SocketAddr> {
    let mut found = Vec::new();
    for address in addresses {
        if let Ok(literal) = address.parse() {
            found.push(literal);
        } else if let Ok(looked_up) = tokio::net::lookup_host(address.as_str()).await {
            found.extend(looked_up);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_completed() {
        let any: SocketAddr = "0.0.0.0:7117".parse().unwrap();
        let with = |advertise: Option<&str>| Settings {
            advertise: advertise.map(String::from),
            ..Settings::default()
        };
        assert_eq!(advertised(&with(None), any), "0.0.0.0:7117");
        assert_eq!(advertised(&with(Some("lab-1")), any), "lab-1:7117");
        assert_eq!(advertised(&with(Some("lab-1:9")), any), "lab-1:9");
        assert_eq!(advertised(&with(Some("[fe80::1]:9")), any), "[fe80::1]:9");
        let seen = seen_addresses(&["0.0.0.0:7".into(), "h:8".into()], "10.1.2.3:40000");
        assert_eq!(seen, ["10.1.2.3:7", "h:8"]);
    }

    #[test]
    fn the_kernels_table_is_understood() {
        let table = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.9.0.0\n        /24 link UNICAST\n     \
                     |-- 127.0.0.1\n        /32 host LOCAL\n     |-- 10.9.0.2\n        /32 host LOCAL\n";
        let found: Vec<String> = local_addresses(table).iter().map(|ip| ip.to_string()).collect();
        assert_eq!(found, ["127.0.0.1", "10.9.0.2"]);
    }
}
