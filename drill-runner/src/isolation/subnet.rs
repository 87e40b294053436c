//! Subnets: which addresses are in one, and which of them is ours. Pure.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// A subnet, with the address the drill itself has in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    own: IpAddr,
    prefix: u8,
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.own, self.prefix)
    }
}

impl Subnet {
    /// The subnet of `own`, whose prefix has `prefix` bits.
    #[must_use]
    pub fn new(own: IpAddr, prefix: u8) -> Self {
        let most = if own.is_ipv4() { 32 } else { 128 };
        Self {
            own,
            prefix: prefix.min(most),
        }
    }

    /// A subnet for a network of which nothing is known.
    #[must_use]
    pub fn stand_in(number: usize) -> Self {
        let third = u8::try_from(number).unwrap_or(u8::MAX);
        Self::new(Ipv4Addr::new(10, 255, third, 1).into(), 24)
    }

    /// The subnet of a guest's address, with another address in it for us: the highest that is not the guest's.
    #[must_use]
    pub fn beside(guest: IpAddr, prefix: u8) -> Self {
        let own = match guest {
            IpAddr::V4(guest) => {
                let bits = u32::from(prefix.min(32));
                let hosts = u32::MAX.checked_shr(bits).unwrap_or(0);
                let last = u32::from(guest) | hosts;
                // The last of all is for broadcasts where there are enough.
                let highest = if hosts > 1 { last - 1 } else { last };
                let own = match highest == u32::from(guest) {
                    true => highest.wrapping_sub(1),
                    false => highest,
                };
                IpAddr::V4(Ipv4Addr::from(own))
            }
            IpAddr::V6(guest) => {
                let bits = u32::from(prefix.min(128));
                let hosts = u128::MAX.checked_shr(bits).unwrap_or(0);
                let highest = u128::from(guest) | hosts;
                let own = match highest == u128::from(guest) {
                    true => highest.wrapping_sub(1),
                    false => highest,
                };
                IpAddr::V6(Ipv6Addr::from(own))
            }
        };
        Self::new(own, prefix)
    }

    /// True for IPv4.
    #[must_use]
    pub fn is_ipv4(&self) -> bool {
        self.own.is_ipv4()
    }

    /// The drill's own address in it.
    #[must_use]
    pub fn own(&self) -> IpAddr {
        self.own
    }

    /// Tells whether an address is in it.
    #[must_use]
    pub fn holds(&self, address: IpAddr) -> bool {
        match (self.own, address) {
            (IpAddr::V4(own), IpAddr::V4(address)) => {
                let mask = !u32::MAX.checked_shr(u32::from(self.prefix)).unwrap_or(0);
                u32::from(own) & mask == u32::from(address) & mask
            }
            (IpAddr::V6(own), IpAddr::V6(address)) => {
                let mask = !u128::MAX.checked_shr(u32::from(self.prefix)).unwrap_or(0);
                u128::from(own) & mask == u128::from(address) & mask
            }
            _ => false,
        }
    }

    /// The first and the last address for guests; none where it is too small, or IPv6.
    #[must_use]
    pub fn pool(&self) -> Option<(Ipv4Addr, Ipv4Addr)> {
        let IpAddr::V4(own) = self.own else {
            return None;
        };
        let hosts = u32::MAX.checked_shr(u32::from(self.prefix)).unwrap_or(0);
        if hosts < 3 {
            return None;
        }
        let base = u32::from(own) & !hosts;
        Some((Ipv4Addr::from(base + 1), Ipv4Addr::from(base + (hosts - 1))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn we_are_beside_the_guest_in_its_subnet() {
        for (guest, prefix, own) in [
            ("192.168.1.7", 24, "192.168.1.254/24"),
            ("192.168.1.254", 24, "192.168.1.253/24"),
            ("10.0.0.1", 8, "10.255.255.254/8"),
            ("10.0.0.1", 30, "10.0.0.2/30"),
            ("10.0.0.0", 31, "10.0.0.1/31"),
            ("10.0.0.1", 31, "10.0.0.0/31"),
            ("10.0.0.1", 32, "10.0.0.0/32"),
            ("fd00::1", 64, "fd00::ffff:ffff:ffff:ffff/64"),
        ] {
            let subnet = Subnet::beside(ip(guest), prefix);
            assert_eq!(subnet.to_string(), own, "{guest}/{prefix}");
            assert!(prefix == 32 || subnet.holds(ip(guest)), "{guest}/{prefix}");
        }
    }

    #[test]
    fn pools_leave_out_the_ends() {
        let pool = |own: &str, prefix| Subnet::new(ip(own), prefix).pool();
        let four = |text: &str| text.parse::<Ipv4Addr>().unwrap();
        assert_eq!(
            pool("192.168.122.1", 24),
            Some((four("192.168.122.1"), four("192.168.122.254")))
        );
        assert_eq!(
            pool("10.1.2.9", 29),
            Some((four("10.1.2.9"), four("10.1.2.14")))
        );
        assert_eq!(pool("10.1.2.9", 31), None);
        assert_eq!(pool("fd00::1", 64), None);
        assert!(!Subnet::new(ip("10.1.2.9"), 29).holds(ip("10.1.2.16")));
        assert!(!Subnet::new(ip("10.1.2.9"), 29).holds(ip("fd00::1")));
    }
}
