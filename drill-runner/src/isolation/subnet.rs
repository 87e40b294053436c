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

    /// The subnet of a guest's address, with another address in it for us: the highest that none of `guests` has. None where
    /// there is no other.
    #[must_use]
    pub fn beside(guest: IpAddr, prefix: u8, guests: &[IpAddr]) -> Option<Self> {
        let subnet = Self::new(guest, prefix);
        let (first, last) = subnet.hosts();
        // So many are taken at most, and the guest's.
        let mut free = (first..=last)
            .rev()
            .take(guests.len() + 2)
            .map(|number| match guest {
                IpAddr::V4(_) => {
                    u32::try_from(number).map_or(guest, |number| Ipv4Addr::from(number).into())
                }
                IpAddr::V6(_) => Ipv6Addr::from(number).into(),
            });
        let own = free.find(|own| *own != guest && !guests.contains(own))?;
        Some(Self { own, ..subnet })
    }

    /// The first and the last address that somebody may have, as numbers.
    fn hosts(&self) -> (u128, u128) {
        let (number, bits) = match self.own {
            IpAddr::V4(own) => (u128::from(u32::from(own)), 32),
            IpAddr::V6(own) => (u128::from(own), 128),
        };
        let hosts = u128::MAX
            .checked_shr(128 - bits + u32::from(self.prefix))
            .unwrap_or(0);
        let (first, last) = (number & !hosts, number | hosts);
        // The ends are for the subnet itself and for broadcasts, where there are enough.
        match hosts {
            0 | 1 => (first, last),
            _ => (first + 1, last - u128::from(self.is_ipv4())),
        }
    }

    /// The bits of its prefix.
    pub(super) fn prefix(&self) -> u8 {
        self.prefix
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
    fn we_are_beside_the_guests_in_their_subnet() {
        for (guest, prefix, own) in [
            ("192.168.1.7", 24, "192.168.1.254/24"),
            ("192.168.1.254", 24, "192.168.1.253/24"),
            ("10.0.0.1", 8, "10.255.255.254/8"),
            ("10.0.0.1", 30, "10.0.0.2/30"),
            ("10.0.0.0", 31, "10.0.0.1/31"),
            ("10.0.0.1", 31, "10.0.0.0/31"),
            ("203.0.113.1", 0, "255.255.255.254/0"),
            ("fd00::1", 64, "fd00::ffff:ffff:ffff:ffff/64"),
        ] {
            let subnet = Subnet::beside(ip(guest), prefix, &[]).unwrap();
            assert_eq!(subnet.to_string(), own, "{guest}/{prefix}");
            assert!(subnet.holds(ip(guest)), "{guest}/{prefix}");
        }
        let others = ["192.168.1.254", "192.168.1.252", "192.168.1.253"].map(ip);
        let subnet = Subnet::beside(ip("192.168.1.7"), 24, &others).unwrap();
        assert_eq!(subnet.to_string(), "192.168.1.251/24");
        assert_eq!(Subnet::beside(ip("10.0.0.1"), 32, &[]), None);
        assert_eq!(Subnet::beside(ip("10.0.0.1"), 30, &[ip("10.0.0.2")]), None);
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
