//! Who may use the API: the credentials of the process at the other end of the socket.
//!
//! What: root, the daemon's own user, and members of the socket's group; nobody else, whatever the
//! socket's mode has become. How: the kernel tells user and group of the peer as they were when it
//! connected (SO_PEERCRED); membership beyond the primary group is looked up in `/etc/passwd` and
//! `/etc/group` at that time.
//! Invariant: the decision is made once a connection, before its first byte is read.

use std::collections::HashSet;

/// The process at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its process id, where the kernel tells.
    pub pid: Option<i32>,
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
}

/// Who is let in.
#[derive(Debug, Clone, Copy)]
pub struct Door {
    /// The daemon's user.
    pub own_uid: u32,
    /// The socket's group.
    pub gid: u32,
}

impl Door {
    /// Decides whether `peer` may use the API.
    #[must_use]
    pub fn admits(&self, peer: Peer, accounts: &Accounts) -> bool {
        peer.uid == 0
            || peer.uid == self.own_uid
            || peer.gid == self.gid
            || accounts.is_member(peer.uid, self.gid)
    }
}

/// The machine's users and groups, as far as the door needs them.
#[derive(Debug, Default)]
pub struct Accounts {
    names: Vec<(u32, String)>,
    groups: Vec<Group>,
}

#[derive(Debug)]
struct Group {
    name: String,
    gid: u32,
    members: HashSet<String>,
}

impl Accounts {
    /// Reads `/etc/passwd` and `/etc/group`; a missing file has nobody in it.
    #[must_use]
    pub fn read() -> Self {
        let text =
            |path| std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        Self::parse(
            &text("/etc/passwd").unwrap_or_default(),
            &text("/etc/group").unwrap_or_default(),
        )
    }

    /// Parses the texts of passwd(5) and group(5); lines that are not right are left out.
    #[must_use]
    pub fn parse(passwd: &str, group: &str) -> Self {
        let names = passwd.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            Some((fields.nth(1)?.parse().ok()?, name.to_owned()))
        });
        let groups = group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?.to_owned();
            let gid = fields.nth(1)?.parse().ok()?;
            let members = fields
                .next()
                .unwrap_or("")
                .split(',')
                .filter(|member| !member.is_empty());
            Some(Group {
                name,
                gid,
                members: members.map(str::to_owned).collect(),
            })
        });
        Self {
            names: names.collect(),
            groups: groups.collect(),
        }
    }

    /// Returns the number of the group `name`.
    #[must_use]
    pub fn group(&self, name: &str) -> Option<u32> {
        self.groups
            .iter()
            .find(|group| group.name == name)
            .map(|group| group.gid)
    }

    /// Returns the name of a user, or the number where there is none.
    #[must_use]
    pub fn user(&self, uid: u32) -> String {
        let mut names = self.names.iter().filter(|(of, _)| *of == uid);
        names
            .next()
            .map_or_else(|| format!("user {uid}"), |(_, name)| name.clone())
    }

    fn is_member(&self, uid: u32, gid: u32) -> bool {
        let names = self
            .names
            .iter()
            .filter(|(of, _)| *of == uid)
            .map(|(_, name)| name);
        let mut groups = self.groups.iter().filter(|group| group.gid == gid);
        let names: Vec<_> = names.collect();
        groups.any(|group| names.iter().any(|name| group.members.contains(*name)))
    }
}
