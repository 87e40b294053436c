//! The user libvirt runs QEMU as: the one who must be able to open overlays and view sockets.

use std::path::Path;
use std::process::Command;

/// The numbers of QEMU's user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QemuUser {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Users the distributions run QEMU as, in the order tried.
const KNOWN_USERS: [&str; 2] = ["libvirt-qemu", "qemu"];

/// Finds QEMU's user: `user` and `group` of libvirt's qemu.conf, else the user the distribution made for it.
///
/// None when there is no such user on this host; QEMU then runs as whoever runs libvirt.
pub fn qemu_identity() -> Option<QemuUser> {
    let conf = std::fs::read_to_string(Path::new("/etc/libvirt/qemu.conf")).unwrap_or_default();
    identity(&conf, &|user| lookup("passwd", user), &|group| {
        lookup("group", group)
    })
}

/// A line of passwd or group, from whatever the host keeps them in.
fn lookup(database: &str, key: &str) -> Option<String> {
    let found = Command::new("getent")
        .args([database, "--", key])
        .output()
        .ok()?;
    found
        .status
        .success()
        .then(|| String::from_utf8_lossy(&found.stdout).trim().to_owned())
}

type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

fn identity(conf: &str, passwd: Lookup<'_>, group: Lookup<'_>) -> Option<QemuUser> {
    let by_name = |name: &str| {
        let line = passwd(name)?;
        Some(QemuUser {
            uid: field(&line, 2)?,
            gid: field(&line, 3)?,
        })
    };
    let mut found = match setting(conf, "user") {
        None => KNOWN_USERS.iter().find_map(|name| by_name(name)),
        // libvirt takes "+1000" and "1000" as numbers, the second only where no user has that name.
        Some(user) => by_name(&user).or_else(|| {
            let uid = user.trim_start_matches('+').parse().ok()?;
            Some(QemuUser {
                uid,
                gid: by_name(&uid.to_string()).map_or(uid, |user| user.gid),
            })
        }),
    }?;
    if let Some(name) = setting(conf, "group") {
        let by_name = group(&name).and_then(|line| field(&line, 2));
        if let Some(gid) = by_name.or_else(|| name.trim_start_matches('+').parse().ok()) {
            found.gid = gid;
        }
    }
    Some(found)
}

fn field(line: &str, index: usize) -> Option<u32> {
    line.split(':').nth(index)?.parse().ok()
}

/// The last `name = "value"` of a libvirt configuration file.
fn setting(conf: &str, name: &str) -> Option<String> {
    let value = |line: &str| {
        let rest = line
            .trim()
            .strip_prefix(name)?
            .trim_start()
            .strip_prefix('=')?;
        let value = rest.trim().trim_matches(['"', '\'']);
        (!value.is_empty()).then(|| value.to_owned())
    };
    conf.lines().filter_map(value).next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemu_conf_comes_before_the_distributions_user() {
        let passwd = |name: &str| match name {
            "libvirt-qemu" => {
                Some("libvirt-qemu:x:64055:993::/var/lib/libvirt:/bin/false".to_owned())
            }
            "root" => Some("root:x:0:0:root:/root:/bin/bash".to_owned()),
            _ => None,
        };
        let group = |name: &str| (name == "kvm").then(|| "kvm:x:104:".to_owned());
        let table = [
            ("", Some((64055, 993))),
            ("#user = \"root\"\n", Some((64055, 993))),
            ("user = \"root\"\n", Some((0, 0))),
            ("user = \"root\"\ngroup = \"kvm\"\n", Some((0, 104))),
            ("user=\"+1000\"\ngroup = '+36'\n", Some((1000, 36))),
            ("user = \"gone\"\n", None),
            (
                "user = \"libvirt-qemu\"\nuser_namespace = \"x\"\n",
                Some((64055, 993)),
            ),
        ];
        for (conf, expected) in table {
            let found = identity(conf, &passwd, &group).map(|user| (user.uid, user.gid));
            assert_eq!(found, expected, "{conf:?}");
        }
        assert_eq!(identity("", &|_| None, &group), None);
    }
}
