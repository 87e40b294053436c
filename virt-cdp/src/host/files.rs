//! The list of what is laid down: the sources are the files of `plugins/`, as they were when this was built.

use std::path::{Path, PathBuf};

/// One thing that is laid down.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    /// Its path on the host.
    pub(crate) path: PathBuf,
    /// What it holds.
    pub(crate) content: Content,
}

/// What an item holds.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    /// A file, and its mode.
    File(Vec<u8>, u32),
    /// A symbolic link, and where it leads.
    Link(PathBuf),
    /// Lines between our markers in a file of somebody else's.
    Block(String),
}

const UNIT: &str = include_str!("../../../plugins/host/virtcdpd.service");
const CONFIGURATION: &str = include_str!("../../../plugins/host/virtcdpd.toml");
const APPARMOR: &str = include_str!("../../../plugins/host/apparmor/libvirt-qemu");
const CHECKS: &str = include_str!("../../../plugins/checks.d/README.md");
const REDIS_PING: &str = include_str!("../../../plugins/checks.d/redis-ping");
const HOOK: &str = include_str!("../../../plugins/libvirt-hook/50-virt-cdp");

/// Where AppArmor keeps its profiles, on a host that has it.
pub(crate) const APPARMOR_DIR: &str = "/etc/apparmor.d";

/// A page of the manual: its file name, such as `virt-cdp.1`, and its text.
pub(crate) type Page = (String, Vec<u8>);

/// What comes out of the program itself.
pub(crate) struct Generated {
    /// The program.
    pub(crate) program: Vec<u8>,
    /// The manual.
    pub(crate) pages: Vec<Page>,
    /// The completions of bash, zsh and fish.
    pub(crate) completions: [Vec<u8>; 3],
}

/// Lists what is laid down below `prefix` and `/etc`; AppArmor's rules where `apparmor` is there.
pub(crate) fn items(prefix: &Path, apparmor: bool, generated: Generated) -> Vec<Item> {
    let program = prefix.join("bin/virt-cdp");
    let daemon = prefix.join("sbin/virtcdpd");
    let text = |path: &str, text: String, mode| Item {
        path: path.into(),
        content: Content::File(text.into_bytes(), mode),
    };
    let file = |path: PathBuf, bytes, mode| Item {
        path,
        content: Content::File(bytes, mode),
    };
    let unit = UNIT.replace("/usr/bin/virtcdpd", &daemon.display().to_string());
    let hook = HOOK.replace("@PROGRAM@", &program.display().to_string());
    let [bash, zsh, fish] = generated.completions;
    let share = prefix.join("share");
    let mut items = vec![
        file(program, generated.program, 0o755),
        Item {
            path: daemon,
            content: Content::Link("../bin/virt-cdp".into()),
        },
        text("/etc/virt-cdp/virtcdpd.toml", CONFIGURATION.into(), 0o644),
        text("/etc/systemd/system/virtcdpd.service", unit, 0o644),
        text("/etc/libvirt/hooks/qemu.d/50-virt-cdp", hook, 0o755),
        text("/etc/virt-cdp/checks.d/README.md", CHECKS.into(), 0o644),
        text(
            "/etc/virt-cdp/checks.d/redis-ping",
            REDIS_PING.into(),
            0o755,
        ),
        file(
            share.join("bash-completion/completions/virt-cdp"),
            bash,
            0o644,
        ),
        file(share.join("zsh/site-functions/_virt-cdp"), zsh, 0o644),
        file(
            share.join("fish/vendor_completions.d/virt-cdp.fish"),
            fish,
            0o644,
        ),
    ];
    for (name, page) in generated.pages {
        let section = name.rsplit('.').next().unwrap_or("1");
        items.push(file(
            share.join(format!("man/man{section}")).join(&name),
            page,
            0o644,
        ));
    }
    if apparmor {
        items.push(Item {
            path: Path::new(APPARMOR_DIR).join("local/abstractions/libvirt-qemu"),
            content: Content::Block(APPARMOR.into()),
        });
    }
    items
}
