//! libvirt's virtual networks: which there are, and whether a takeover can be plugged into one.

use crate::connection::Hypervisor;
use crate::error::{ErrorKind, LibvirtError, Result};

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
        let mut networks = all
            .iter()
            .map(describe)
            .collect::<std::result::Result<Vec<_>, _>>()
            .map_err(error)?;
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
