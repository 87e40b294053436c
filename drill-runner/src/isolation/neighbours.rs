//! The guests that have shown themselves on the wire, from the kernel's table of neighbours.

use std::{net::IpAddr, process::Command};

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
