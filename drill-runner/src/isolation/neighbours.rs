//! The guests that have shown themselves on the wire: from the kernel's table of neighbours, and from what they ask for.
//!
//! The kernel takes note of who asks for its own addresses. A guest may only ever ask for its gateway, whose address is not
//! known here where the original's network is none of libvirt's: so all ARP is listened to.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::OwnedFd,
    process::Command,
    sync::{Mutex, PoisonError},
};

use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, eth, recv, socket_with};

/// The most addresses that are kept of what is heard: a guest may say anything.
const HEARD_MAX: usize = 64;
/// The most packets that are read at once.
const PACKETS_MAX: usize = 256;

/// Hears who speaks ARP in the namespace of the thread that made it.
#[derive(Debug)]
pub(super) struct Ear {
    socket: OwnedFd,
    heard: Mutex<Vec<(String, IpAddr)>>,
}

impl Ear {
    pub(super) fn open() -> io::Result<Self> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(
            AddressFamily::PACKET,
            SocketType::DGRAM,
            flags,
            Some(eth::ARP),
        )?;
        Ok(Self {
            socket,
            heard: Mutex::default(),
        })
    }

    /// Everybody who was heard so far: MAC address in lower case, and IP address.
    pub(super) fn heard(&self) -> Vec<(String, IpAddr)> {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let mut packet = [0; 64];
        for _ in 0..PACKETS_MAX {
            let Ok((length, _)) = recv(&self.socket, &mut packet[..], RecvFlags::empty()) else {
                break;
            };
            let told = packet.get(..length).and_then(sender);
            if let Some(told) = told
                && heard.len() < HEARD_MAX
                && !heard.contains(&told)
            {
                heard.push(told);
            }
        }
        heard.clone()
    }
}

/// Who sent an ARP packet; none where it does not say so, as one that only asks whether an address is free.
fn sender(packet: &[u8]) -> Option<(String, IpAddr)> {
    let is_ours = packet.get(..6)? == [0, 1, 8, 0, 6, 4];
    let mac: &[u8; 6] = packet.get(8..14)?.try_into().ok()?;
    let ip: [u8; 4] = packet.get(14..18)?.try_into().ok()?;
    let ip = Ipv4Addr::from(ip);
    let is_one =
        !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast() && !ip.is_loopback();
    let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
    (is_ours && is_one).then_some((mac, ip.into()))
}

/// Reads the table of the calling thread's namespace: MAC address in lower case, and IP address.
pub(super) fn read() -> Vec<(String, IpAddr)> {
    let output = Command::new("ip").args(["neighbour", "show"]).output();
    output
        .map(|output| parse(&String::from_utf8_lossy(&output.stdout)))
        .unwrap_or_default()
}

fn parse(text: &str) -> Vec<(String, IpAddr)> {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let ip: IpAddr = words.next()?.parse().ok()?;
        let words: Vec<&str> = words.collect();
        let at = words.iter().position(|word| *word == "lladdr")?;
        let mac = words.get(at + 1)?.to_ascii_lowercase();
        let is_known = !words.contains(&"FAILED") && !words.contains(&"INCOMPLETE");
        is_known.then_some((mac, ip))
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_asks_is_heard() {
        let packet = |ip: [u8; 4]| {
            let mut packet = vec![0, 1, 8, 0, 6, 4, 0, 1, 0x52, 0x54, 0, 0xaa, 0, 1];
            packet.extend(ip);
            packet.extend([0, 0, 0, 0, 0, 0, 10, 0, 0, 1]);
            packet
        };
        let told = |packet: &[u8]| sender(packet).map(|(mac, ip)| format!("{mac} {ip}"));
        assert_eq!(
            told(&packet([10, 0, 0, 5])).as_deref(),
            Some("52:54:00:aa:00:01 10.0.0.5")
        );
        assert_eq!(told(&packet([0; 4])), None);
        assert_eq!(told(&packet([255; 4])), None);
        assert_eq!(told(&[0, 1, 8]), None);
        let mut other = packet([10, 0, 0, 5]);
        other[2] = 9;
        assert_eq!(told(&other), None);
    }

    #[test]
    fn neighbours_with_an_address_are_known() {
        let found = parse(
            "192.168.122.77 dev br0 lladdr 52:54:00:AA:bb:01 DELAY \n\
             192.168.122.78 dev br0 FAILED\n\
             fe80::1 dev br0 lladdr 52:54:00:aa:bb:02 router STALE\nnonsense\n",
        );
        let told: Vec<String> = found.iter().map(|(m, i)| format!("{m} {i}")).collect();
        assert_eq!(
            told,
            [
                "52:54:00:aa:bb:01 192.168.122.77",
                "52:54:00:aa:bb:02 fe80::1"
            ]
        );
    }
}
