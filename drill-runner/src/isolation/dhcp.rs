//! The addresses of guests that ask by DHCP: dnsmasq in the drill's namespace gives them those they have in production.

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use super::{HOLDER, IsolationError, MARKER, Result, subnet::Subnet};

/// What is given on one bridge.
pub(super) struct Range<'a> {
    pub(super) bridge: &'a str,
    pub(super) subnets: &'a [Subnet],
    pub(super) guests: &'a [(String, IpAddr)],
}

/// dnsmasq's command line.
pub(super) fn arguments<'a>(dir: &Path, ranges: impl Iterator<Item = Range<'a>>) -> Vec<String> {
    let mut all: Vec<String> = [
        "--conf-file=/dev/null",
        "--keep-in-foreground",
        "--log-facility=-",
        "--user=root",
        "--group=root",
        "--pid-file=",
        "--bind-interfaces",
        "--except-interface=lo",
        // There is nobody to ask: guests are told so at once.
        "--no-resolv",
        "--no-hosts",
        "--no-poll",
        "--dhcp-authoritative",
        // Nobody else gives addresses here, and guests are not to wait until that is found out.
        "--no-ping",
    ]
    .map(str::to_owned)
    .into();
    all.push(format!("--dhcp-leasefile={}", lease_file(dir).display()));
    for range in ranges {
        all.push(format!("--interface={}", range.bridge));
        for subnet in range.subnets {
            let Some((first, last)) = subnet.pool() else {
                continue;
            };
            all.push(format!("--dhcp-range={first},{last},1h"));
        }
        let reachable = |ip: &IpAddr| range.subnets.iter().any(|subnet| subnet.holds(*ip));
        for (mac, ip) in range.guests.iter().filter(|(_, ip)| reachable(ip)) {
            if ip.is_ipv4() {
                all.push(format!("--dhcp-host={mac},{ip}"));
            }
        }
    }
    all
}

/// Starts dnsmasq in the namespace of the calling thread.
pub(super) fn start(id: &str, arguments: Vec<String>) -> Result<Child> {
    let program = ["/usr/sbin/dnsmasq", "/sbin/dnsmasq"];
    let program = program.iter().find(|path| Path::new(path).exists());
    Command::new(program.unwrap_or(&"dnsmasq"))
        .args(arguments)
        .env_clear()
        .env(MARKER, id)
        .env(HOLDER, id)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| IsolationError::Program {
            program: "dnsmasq",
            what: format!("{error}; is dnsmasq-base installed?"),
        })
}

/// The leases given so far: MAC address in lower case, and IP address.
pub(super) fn leases(dir: &Path) -> Vec<(String, IpAddr)> {
    parse(&fs::read_to_string(lease_file(dir)).unwrap_or_default())
}

fn parse(text: &str) -> Vec<(String, IpAddr)> {
    let line = |line: &str| {
        let mut words = line.split(' ');
        let (mac, ip) = (words.nth(1)?, words.next()?);
        Some((mac.to_ascii_lowercase(), ip.parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

fn lease_file(dir: &Path) -> PathBuf {
    dir.join("leases")
}

/// Removes what dnsmasq leaves.
pub(super) fn remove_files(dir: &Path) {
    match fs::remove_file(lease_file(dir)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, dir = %dir.display(), "the leases of a drill stay");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reservations_are_for_addresses_that_can_be_reached() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let subnets = [Subnet::new(ip("192.168.122.1"), 24)];
        let guests = [
            ("52:54:00:00:00:01".to_owned(), ip("192.168.122.9")),
            ("52:54:00:00:00:02".to_owned(), ip("10.0.0.9")),
            ("52:54:00:00:00:03".to_owned(), ip("fd00::9")),
        ];
        let range = Range {
            bridge: "br0",
            subnets: &subnets,
            guests: &guests,
        };
        let all = arguments(Path::new("/d"), [range].into_iter()).join(" ");
        assert!(all.contains("--dhcp-leasefile=/d/leases"), "{all}");
        assert!(
            all.ends_with(
                "--interface=br0 --dhcp-range=192.168.122.1,192.168.122.254,1h \
                 --dhcp-host=52:54:00:00:00:01,192.168.122.9"
            ),
            "{all}"
        );
    }

    #[test]
    fn leases_are_read() {
        let found = parse("1700000000 52:54:00:AA:00:01 192.168.122.9 small *\nnonsense\n");
        assert_eq!(
            found,
            [(
                "52:54:00:aa:00:01".to_owned(),
                "192.168.122.9".parse().unwrap()
            )]
        );
    }
}
