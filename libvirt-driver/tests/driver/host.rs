//! What the tests need of the host: libvirt, domains that go away by themselves, images, programs.

use std::fs::Permissions;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use libvirt_driver::{Domain, Hypervisor};
use tempfile::TempDir;

pub(crate) const URI: &str = "qemu:///system";

/// Connects to libvirt, or says that the test is skipped.
pub(crate) fn hypervisor() -> Option<Hypervisor> {
    match Hypervisor::connect(URI) {
        Ok(hypervisor) => Some(hypervisor),
        Err(error) => {
            drop(writeln!(
                std::io::stderr(),
                "SKIPPED: needs libvirt ({error})"
            ));
            None
        }
    }
}

/// A directory QEMU's user can read.
pub(crate) fn directory() -> TempDir {
    let directory = tempfile::Builder::new().prefix("lvd-").tempdir().unwrap();
    std::fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
    directory
}

/// Runs a program that must succeed; returns what it printed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// Makes an image with `qemu-img`.
pub(crate) fn image(directory: &TempDir, name: &str, arguments: &[&str], size: &str) -> PathBuf {
    let path = directory.path().join(name);
    let mut all = vec!["create", "-q"];
    all.extend(arguments);
    all.extend([path.to_str().unwrap(), size]);
    run("qemu-img", &all);
    path
}

/// A domain of this test; destroyed and undefined when dropped.
pub(crate) struct TestDomain {
    pub(crate) name: String,
}

impl TestDomain {
    /// A name nobody else has.
    pub(crate) fn named(test: &str) -> Self {
        Self {
            name: format!("lvd-{}-{test}", std::process::id()),
        }
    }

    /// Defines a domain without an operating system.
    pub(crate) fn define(&self, devices: &str) {
        let xml = format!(
            "<domain type='qemu'><name>{}</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64' machine='q35'>hvm</type></os><features><acpi/></features>\
             <devices>{devices}</devices></domain>",
            self.name
        );
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), xml).unwrap();
        self.virsh(&["define", file.path().to_str().unwrap()]);
    }

    /// Runs a virsh command that must succeed.
    pub(crate) fn virsh(&self, arguments: &[&str]) -> String {
        let mut all = vec!["-q", "-c", URI];
        all.extend(arguments);
        run("virsh", &all)
    }

    /// Defines and starts it, and looks it up.
    pub(crate) fn start(&self, hypervisor: &Hypervisor, devices: &str) -> Domain {
        self.define(devices);
        self.virsh(&["start", &self.name]);
        hypervisor.lookup(&self.name).unwrap()
    }
}

impl Drop for TestDomain {
    fn drop(&mut self) {
        for verb in ["destroy", "undefine"] {
            let _ = Command::new("virsh")
                .args(["-q", "-c", URI, verb, &self.name])
                .stderr(Stdio::null())
                .status();
        }
    }
}

/// A program that is killed when dropped.
pub(crate) struct Server(Child);

impl Server {
    /// Serves a raw image read-only over NBD on a unix socket, at most 16 MiB a second.
    pub(crate) fn nbd(image: &Path, socket: &Path, export: &str) -> Self {
        let slow = "driver=raw,file.driver=throttle,file.throttle-group=slow,file.file.driver=file";
        let image = format!("{slow},file.file.filename={}", image.display());
        let group = "throttle-group,id=slow,x-bps-total=16777216";
        Self::serve(&["--object", group, "--image-opts", &image], socket, export)
    }

    /// Serves a qcow2 image's contents.
    pub(crate) fn nbd_at_full_speed(image: &Path, socket: &Path, export: &str) -> Self {
        Self::serve(
            &["--format", "qcow2", image.to_str().unwrap()],
            socket,
            export,
        )
    }

    fn serve(image: &[&str], socket: &Path, export: &str) -> Self {
        let _ = std::fs::remove_file(socket);
        let child = Command::new("qemu-nbd")
            .args([
                "--read-only",
                "--persistent",
                "--shared=8",
                "--export-name",
                export,
                "--socket",
            ])
            .arg(socket)
            .args(image)
            .spawn()
            .unwrap();
        wait("the NBD server's socket", || socket.exists());
        if let Some(owner) = libvirt_driver::qemu_user::qemu_identity() {
            std::os::unix::fs::chown(socket, Some(owner.uid), Some(owner.gid)).unwrap();
        }
        Self(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits at most 40 s.
pub(crate) fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(
            start.elapsed() < Duration::from_secs(40),
            "waited too long for {what}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}
