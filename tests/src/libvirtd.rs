//! A libvirtd of the test's own: with its own sockets, state and configuration, beside the machine's.
//!
//! It runs in a mount namespace of its own where its directories lie over libvirt's. Its guests live on when it is
//! ended, and it finds them when it is started again.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::{must, run, unique, wait_for};

/// What lies over what: a directory of ours, a directory of libvirt's.
const OVER: [(&str, &str); 5] = [
    ("run", "/run/libvirt"),
    ("lib", "/var/lib/libvirt/qemu"),
    ("etc", "/etc/libvirt"),
    ("log", "/var/log/libvirt"),
    ("cache", "/var/cache/libvirt"),
];

/// A running (or ended, to be started again) libvirtd.
pub struct Libvirtd {
    dir: PathBuf,
    child: Option<Child>,
}

impl Libvirtd {
    /// Starts one; to others it is another host.
    pub fn start() -> Self {
        let dir = PathBuf::from("/var/tmp").join(unique("libvirtd"));
        for (ours, _) in OVER {
            fs::create_dir_all(dir.join(ours)).expect("a directory for libvirtd");
        }
        for open in ["", "run", "lib"] {
            let path = dir.join(open);
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("its mode");
        }
        let migration = dir.join("migration");
        fs::create_dir_all(&migration).expect("a directory for migration sockets");
        fs::set_permissions(migration, fs::Permissions::from_mode(0o777)).expect("its mode");
        let uuid = must("cat", &["/proc/sys/kernel/random/uuid"]);
        let config = format!("host_uuid = \"{}\"\nauth_unix_rw = \"none\"\n", uuid.trim());
        fs::write(dir.join("etc/libvirtd.conf"), config).expect("its configuration");
        fs::write(dir.join("etc/qemu.conf"), "stdio_handler = \"file\"\n")
            .expect("its configuration");
        let mut libvirtd = Self { dir, child: None };
        libvirtd.start_again();
        libvirtd
    }

    /// Starts it on what an earlier run left.
    pub fn start_again(&mut self) {
        assert!(self.child.is_none(), "it runs");
        let binds = OVER.map(|(ours, theirs)| {
            format!("mount --bind {} {theirs}", self.dir.join(ours).display())
        });
        let script = format!(
            "{} && exec libvirtd --config /etc/libvirt/libvirtd.conf --pid-file {}",
            binds.join(" && "),
            self.dir.join("run/libvirtd.pid").display()
        );
        let log = fs::File::create(self.dir.join("libvirtd.log")).expect("a log");
        let child = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", &script])
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("its log"))
            .stderr(log)
            .spawn()
            .expect("unshare");
        self.child = Some(child);
        let uri = self.uri();
        wait_for("libvirtd answers", Duration::from_secs(30), || {
            let ran = run("virsh", &["-q", "-c", &uri, "list"]);
            if ran.ok { Ok(()) } else { Err(ran.err) }
        });
    }

    /// Ends it; guests go on.
    pub fn stop(&mut self) {
        let mut child = self.child.take().expect("it runs");
        run("kill", &["-TERM", &child.id().to_string()]);
        child.wait().expect("it is gone");
    }

    /// The URI to reach it by.
    pub fn uri(&self) -> String {
        let socket = self.dir.join("run/libvirt-sock");
        format!("qemu+unix:///system?socket={}", socket.display())
    }

    /// For [`Guest::start_at`](crate::guest::Guest::start_at).
    pub fn at(&self) -> (String, PathBuf) {
        (self.uri(), self.dir.join("run"))
    }

    /// A URI by which QEMU can send a guest here.
    pub fn migration_uri(&self) -> String {
        let socket = self.dir.join("migration").join(unique("socket"));
        format!("unix://{}", socket.display())
    }
}

impl Drop for Libvirtd {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            run("kill", &["-TERM", &child.id().to_string()]);
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}
