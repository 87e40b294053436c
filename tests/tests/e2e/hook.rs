//! libvirt's hook: it tells the daemon, and whatever the daemon is up to, it is over at once and exits 0.

use std::{
    fs,
    io::Write as _,
    os::unix::{fs::PermissionsExt as _, net::UnixListener},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use virt_cdp_tests::{daemon::Daemon, must, needs, needs_libvirt, program, run, unique, wait_for};

/// What libvirt may be made to wait.
const LIMIT: Duration = Duration::from_millis(200);

/// The hook as host-install lays it down, for the program under test.
fn hook(dir: &Path) -> PathBuf {
    let source = virt_cdp_tests::repository().join("plugins/libvirt-hook/50-virt-cdp");
    let text = fs::read_to_string(source).expect("the hook");
    let text = text.replace("@PROGRAM@", program().to_str().expect("plain"));
    let path = dir.join("50-virt-cdp");
    fs::write(&path, text).expect("a copy");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("its mode");
    path
}

/// Calls the hook as libvirt does, three times; it has to be silent, to succeed, and to be quick.
fn call(hook: &Path, socket: &Path, domain: &str, what: &str, stdin: &[u8]) {
    let mut best = Duration::MAX;
    for _ in 0..3 {
        let began = Instant::now();
        let mut child = Command::new(hook)
            .args([domain, "started", "begin", "-"])
            .env("VIRT_CDP_URI", socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the hook starts");
        let mut pipe = child.stdin.take().expect("a pipe");
        let bytes = stdin.to_vec();
        // libvirt does not mind that nobody reads it.
        let feeder = thread::spawn(move || {
            let _ = pipe.write_all(&bytes);
        });
        // As libvirt: until it has ended and nobody holds its output any more.
        let output = child.wait_with_output().expect("it ends");
        let took = began.elapsed();
        feeder.join().expect("fed");
        assert_eq!(output.status.code(), Some(0), "{what}: {output:?}");
        assert!(
            output.stdout.is_empty() && output.stderr.is_empty(),
            "{what}: it says nothing: {output:?}"
        );
        eprintln!("{what}: {took:?}");
        best = best.min(took);
    }
    assert!(best < LIMIT, "{what}: {best:?}");
}

fn told(daemon: &Daemon, domain: &str) {
    wait_for("the daemon hears of it", Duration::from_secs(10), || {
        let log = fs::read_to_string(daemon.log_path()).unwrap_or_default();
        let told = log.lines().any(|line| {
            line.contains("libvirt's hook")
                && line.contains(domain)
                && line.contains("started begin")
        });
        if told {
            Ok(())
        } else {
            Err(format!("no {domain} in its log"))
        }
    });
}

/// Waits until no `virt-cdp hook` of that domain is left.
fn none_left(domain: &str) {
    wait_for(
        "what the hook started is gone",
        Duration::from_secs(10),
        || {
            let left = run("pgrep", &["-f", &format!("virt-cdp hook {domain}")]);
            if left.out.trim().is_empty() {
                Ok(())
            } else {
                Err(left.out)
            }
        },
    );
}

#[test]
fn the_hook_is_over_at_once_whatever_the_daemon_does() {
    if !needs(&["pgrep"]) {
        return;
    }
    let mut daemon = Daemon::start();
    let hook = hook(&daemon.dir);
    let socket = daemon.socket();
    let domain = unique("hook");
    let xml = b"<domain type='qemu'><name>x</name></domain>";
    call(&hook, &socket, &domain, "alive", xml);
    told(&daemon, &domain);
    call(
        &hook,
        &socket,
        &domain,
        "with garbage on stdin",
        &[0xff; 4 << 20],
    );
    call(&hook, &socket, "--help", "with an odd name", xml);

    let pid = daemon.pid().to_string();
    must("kill", &["-STOP", &pid]);
    call(&hook, &socket, &domain, "stopped", xml);
    none_left(&domain);
    must("kill", &["-CONT", &pid]);
    daemon.kill();
    call(&hook, &socket, &domain, "dead", xml);
    let none = daemon.dir.join("none.sock");
    call(&hook, &none, &domain, "no socket", xml);
    // Somebody who takes the connection and never answers.
    let silent = daemon.dir.join("silent.sock");
    let listener = UnixListener::bind(&silent).expect("a socket");
    let held = thread::spawn(move || {
        let taken: Vec<_> = (0..3).map(|_| listener.accept()).collect();
        thread::sleep(Duration::from_secs(4));
        drop(taken);
    });
    call(&hook, &silent, &domain, "hanging", xml);
    none_left(&domain);
    held.join().expect("held");
    let gone = hook.with_file_name("gone");
    let text = fs::read_to_string(&hook).expect("the hook");
    let text = text.replace(program().to_str().expect("plain"), "/nowhere/virt-cdp");
    fs::write(&gone, text).expect("a copy");
    fs::set_permissions(&gone, fs::Permissions::from_mode(0o755)).expect("its mode");
    call(&gone, &socket, &domain, "no program", xml);
}

/// A libvirtd of its own, in mount namespaces of its own, so that the machine's is left alone: starts and destroys
/// a domain with the hook in place that `host-install` lays down.
const OWN_LIBVIRTD: &str = r#"
set -eu
dir=$1 domain=$2
mount --make-rprivate /
mkdir -p "$dir/etc"
cp /etc/libvirt/qemu.conf "$dir/etc/" 2>/dev/null || true
mount --bind "$dir/etc" /etc/libvirt
mount -t tmpfs none /run/libvirt
mount -t tmpfs none /var/lib/libvirt
mkdir -p /etc/libvirt/hooks/qemu.d
cp "$dir/root/etc/libvirt/hooks/qemu.d/50-virt-cdp" /etc/libvirt/hooks/qemu.d/
virtlogd -d -p /run/libvirt/virtlogd.pid
libvirtd -d -p /run/libvirt/libvirtd.pid
trap 'for pid in $(cat /run/libvirt/libvirtd.pid /run/libvirt/virtlogd.pid); do kill $pid 2>/dev/null || true; done' EXIT
for try in 1 2 3 4 5 6 7 8 9 10; do
  if virsh -q -c qemu:///system list >/dev/null 2>&1; then break; fi
  sleep 1
done
cat >"$dir/domain.xml" <<XML
<domain type='qemu'><name>$domain</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='pc'>hvm</type></os>
<devices><controller type='usb' model='none'/><memballoon model='none'/></devices></domain>
XML
virsh -q -c qemu:///system create "$dir/domain.xml"
virsh -q -c qemu:///system destroy "$domain"
"#;

#[test]
fn libvirt_calls_the_hook_that_host_install_lays_down() {
    if !needs_libvirt() || !needs(&["libvirtd", "virtlogd", "unshare"]) {
        return;
    }
    let daemon = Daemon::start();
    let root = daemon.dir.join("root");
    fs::create_dir(&root).expect("a root");
    daemon.ok(&[
        "host-install",
        "--root",
        root.to_str().expect("plain"),
        "--prefix",
        "/usr",
    ]);
    let laid_down = root.join("etc/libvirt/hooks/qemu.d/50-virt-cdp");
    let text = fs::read_to_string(&laid_down).expect("the hook");
    // In that root the program is elsewhere, and its daemon is the test's.
    let program = root.join("usr/bin/virt-cdp");
    let call = format!(
        "{}\" -c \"{}\" hook",
        program.display(),
        daemon.socket().display()
    );
    let text = text.replace("/usr/bin/virt-cdp\" hook", &call);
    assert!(text.contains(&call), "{text}");
    fs::write(&laid_down, text).expect("the hook with the program's place");
    let domain = unique("hooked");
    let dir = daemon.dir.to_str().expect("plain");
    must(
        "unshare",
        &["--mount", "sh", "-c", OWN_LIBVIRTD, "sh", dir, &domain],
    );
    told(&daemon, &domain);
}
