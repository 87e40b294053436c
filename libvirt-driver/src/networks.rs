//! libvirt's virtual networks: which there are, whether a takeover can be plugged into one, and which addresses it gives.

use std::net::IpAddr;

use xmltree::Element;

use crate::connection::Hypervisor;
use crate::error::{ErrorKind, LibvirtError, Result};
use crate::ffi;
use crate::xml_tree::Tree;

/// The addresses of a virtual network.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NetworkAddresses {
    /// The host's addresses in it, with their prefix lengths: what its guests have as gateway.
    pub gateways: Vec<(IpAddr, u8)>,
    /// Addresses of guests: the MAC address in lower case and the IP address; reservations first, then leases.
    pub guests: Vec<(String, IpAddr)>,
}

/// A virtual network of libvirt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// True when it is started.
    pub active: bool,
    /// The bridge, where it has one.
    pub bridge: Option<String>,
}

impl Hypervisor {
    /// Lists libvirt's virtual networks, sorted by name.
    ///
    /// # Errors
    /// [`ErrorKind::NotConnected`].
    pub fn networks(&self) -> Result<Vec<Network>> {
        let error = |error| self.error("list the networks", error);
        let all = self.connection()?.list_all_networks(0).map_err(error)?;
        // One that goes while it is asked is none.
        let described = all.iter().map(|one| describe(one).map_err(error));
        let is_there = |one: &Result<Network>| !matches!(one, Err(error) if error.kind == ErrorKind::NoSuchNetwork);
        let mut networks = described.filter(is_there).collect::<Result<Vec<_>>>()?;
        networks.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(networks)
    }

    /// Tells whether there is a network of that name, started or not.
    ///
    /// # Errors
    /// [`ErrorKind::NotConnected`].
    pub fn network_exists(&self, name: &str) -> Result<bool> {
        Ok(self.networks()?.iter().any(|network| network.name == name))
    }

    /// Tells which addresses a network has and gives.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchNetwork`], [`ErrorKind::NotConnected`], [`ErrorKind::BadXml`].
    pub fn network_addresses(&self, name: &str) -> Result<NetworkAddresses> {
        let error = |error| self.error(format!("read network {name}"), error);
        let connect = self.connection()?;
        let network = connect.lookup_network_by_name(name).map_err(error)?;
        let xml = network.xml_desc(0).map_err(error)?;
        let mut addresses = parse_addresses(&xml)?;
        // A network that is not started has none.
        addresses
            .guests
            .extend(ffi::leases(&network).unwrap_or_default());
        Ok(addresses)
    }

    /// Checks that domains can be plugged into the network.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchNetwork`], [`ErrorKind::NetworkOff`]; both messages tell the cure.
    pub fn require_network(&self, name: &str) -> Result<()> {
        judge(&self.networks()?, name)
    }
}

fn describe(network: &virt::network::Network) -> std::result::Result<Network, virt::error::Error> {
    // A network that only names a host's device has no bridge: libvirt calls that an error.
    let bridge = network.bridge_name().ok();
    Ok(Network {
        name: network.name()?,
        active: network.is_active()?,
        bridge,
    })
}

/// The addresses in a network's XML.
fn parse_addresses(xml: &str) -> Result<NetworkAddresses> {
    let what = "read a network's XML";
    let root = Element::parse(xml.as_bytes())
        .map_err(|error| LibvirtError::new(ErrorKind::BadXml, what, error.to_string()))?;
    let mut found = NetworkAddresses::default();
    for ip in root.elements().filter(|child| child.name == "ip") {
        let Some(address) = ip.attr("address").and_then(|a| a.parse::<IpAddr>().ok()) else {
            continue;
        };
        let given = ip.attr("prefix").and_then(|prefix| prefix.parse().ok());
        let of_mask = || {
            let mask = ip.attr("netmask")?.parse::<std::net::Ipv4Addr>().ok()?;
            u8::try_from(u32::from(mask).leading_ones()).ok()
        };
        let usual = if address.is_ipv4() { 24 } else { 64 };
        let prefix = given.or_else(of_mask).unwrap_or(usual);
        found.gateways.push((address, prefix));
        let hosts = ip.elements().filter(|child| child.name == "dhcp");
        for host in hosts.flat_map(|dhcp| dhcp.elements().filter(|child| child.name == "host")) {
            let ip = host.attr("ip").and_then(|ip| ip.parse().ok());
            if let (Some(mac), Some(ip)) = (host.attr("mac"), ip) {
                found.guests.push((mac.to_ascii_lowercase(), ip));
            }
        }
    }
    Ok(found)
}

fn judge(networks: &[Network], name: &str) -> Result<()> {
    let what = format!("use network {name}");
    match networks.iter().find(|network| network.name == name) {
        Some(network) if network.active => Ok(()),
        Some(_) => Err(LibvirtError::new(
            ErrorKind::NetworkOff,
            what,
            format!("it is not started; start it with: virsh net-start {name}"),
        )),
        None => {
            let names: Vec<_> = networks
                .iter()
                .map(|network| network.name.as_str())
                .collect();
            let known = if names.is_empty() {
                "there are none".to_owned()
            } else {
                format!("there is: {}", names.join(", "))
            };
            Err(LibvirtError::new(
                ErrorKind::NoSuchNetwork,
                what,
                format!("libvirt has no such network; {known}"),
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_from_a_networks_xml() {
        let xml = "<network><name>n</name><ip address='10.1.2.1' netmask='255.255.254.0'><dhcp>\
            <range start='10.1.2.2' end='10.1.2.9'/><host mac='52:54:00:AA:00:01' name='a' ip='10.1.2.5'/></dhcp></ip>\
            <ip family='ipv6' address='fd00::1' prefix='64'/></network>";
        let found = parse_addresses(xml).unwrap();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(found.gateways, [(ip("10.1.2.1"), 23), (ip("fd00::1"), 64)]);
        assert_eq!(
            found.guests,
            [("52:54:00:aa:00:01".to_owned(), ip("10.1.2.5"))]
        );
        assert!(parse_addresses("<network").is_err());
    }

    #[test]
    fn a_network_must_be_there_and_started() {
        let network = |name: &str, active| Network {
            name: name.to_owned(),
            active,
            bridge: None,
        };
        let networks = [network("default", true), network("lab", false)];
        assert!(judge(&networks, "default").is_ok());
        let off = judge(&networks, "lab").unwrap_err();
        assert_eq!(off.kind, ErrorKind::NetworkOff);
        assert!(off.to_string().contains("virsh net-start lab"), "{off}");
        let none = judge(&networks, "dmz").unwrap_err();
        assert_eq!(none.kind, ErrorKind::NoSuchNetwork);
        assert!(none.to_string().contains("default, lab"), "{none}");
    }
}
