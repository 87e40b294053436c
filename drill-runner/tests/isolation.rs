//! The network of a drill, for real: two of them with the same addresses beside each other, and nothing left.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::{
    fs,
    io::{BufRead, Read},
    net::{IpAddr, TcpListener, TcpStream},
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use drill_runner::isolation::{Isolation, MARKER, Segment, leftover};
use tempfile::TempDir;

fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("SKIPPED: making network namespaces needs root");
    }
    is_root
}

fn segment() -> Segment {
    Segment {
        name: "default".into(),
        gateways: vec![("192.168.122.1".parse().unwrap(), 24)],
        guests: vec![("52:54:00:00:00:01".into(), "192.168.122.9".parse().unwrap())],
    }
}

/// What `ip` prints in the host's own namespace.
fn ip(arguments: &[&str]) -> String {
    let output = Command::new("ip").args(arguments).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn drills_have_the_same_addresses_side_by_side_and_leave_nothing() {
    if !is_root() {
        return;
    }
    let before = ip(&["-brief", "link"]);
    let homes = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    let made: Vec<Isolation> = homes
        .iter()
        .enumerate()
        .map(|(n, home)| {
            Isolation::make(
                &format!("test-{}-{n}", std::process::id()),
                home.path(),
                &[segment()],
            )
            .unwrap()
        })
        .collect();
    assert_eq!(
        ip(&["-brief", "link"]),
        before,
        "nothing of it is in the host's namespace"
    );
    // Each hears itself alone under the same address.
    std::thread::scope(|scope| {
        for (number, one) in made.iter().enumerate() {
            scope.spawn(move || {
                one.enter().unwrap();
                let own: IpAddr = "192.168.122.1".parse().unwrap();
                let listener = TcpListener::bind((own, 7777)).unwrap();
                let mut client = TcpStream::connect((own, 7777)).unwrap();
                client
                    .set_read_timeout(Some(Duration::from_secs(5)))
                    .unwrap();
                let (mut server, _) = listener.accept().unwrap();
                use std::io::Write;
                server.write_all(number.to_string().as_bytes()).unwrap();
                drop(server);
                let mut heard = String::new();
                client.read_to_string(&mut heard).unwrap();
                assert_eq!(heard, number.to_string());
                // There is no way out, not even to the host.
                let out = Command::new("ip")
                    .args(["route", "get", "1.1.1.1"])
                    .output()
                    .unwrap();
                assert!(!out.status.success());
            });
        }
    });
    made[0]
        .reach("default", "10.7.0.5".parse().unwrap(), 24)
        .unwrap();
    made[0]
        .reach("default", "10.7.0.6".parse().unwrap(), 24)
        .unwrap();
    // An address that turns out to be a guest's is not ours any more.
    let answers = |port: u16, ip: &str| {
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| {
                made[0].enter().unwrap();
                TcpListener::bind((ip, port)).is_ok()
            });
            asked.join().unwrap()
        })
    };
    assert!(answers(7778, "192.168.122.1") && answers(7778, "10.7.0.254"));
    for (guest, ours) in [
        ("192.168.122.1", "192.168.122.254"),
        ("10.7.0.254", "10.7.0.253"),
    ] {
        made[0]
            .reach("default", guest.parse().unwrap(), 24)
            .unwrap();
        assert!(!answers(7778, guest), "{guest} is the guest's");
        assert!(answers(7778, ours), "{ours} is ours");
    }
    assert!(
        made[0]
            .reach("other", "10.7.0.6".parse().unwrap(), 24)
            .is_err()
    );
    assert!(made[0].plug("nosuchdevice", "default").is_err());
    let ids: Vec<String> = (0..2)
        .map(|n| format!("test-{}-{n}", std::process::id()))
        .collect();
    assert_eq!(leftover::find(&ids[0]).len(), 2, "the holder and dnsmasq");
    // A device of the host comes in, and none is left behind.
    let device = format!("vct{}", std::process::id());
    assert!(
        Command::new("ip")
            .args(["tuntap", "add", &device, "mode", "tap"])
            .status()
            .unwrap()
            .success()
    );
    made[0].plug(&device, "default").unwrap();
    assert!(!ip(&["-brief", "link"]).contains(&device));
    drop(made);
    for id in &ids {
        assert_eq!(leftover::find(id), Vec::<i32>::new());
    }
    assert_eq!(ip(&["-brief", "link"]), before);
    for home in &homes {
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
    }
}

#[test]
fn what_is_left_after_a_crash_is_found_by_its_marker_and_its_namespace() {
    if !is_root() {
        return;
    }
    let id = format!("test-{}-left", std::process::id());
    // As after a SIGKILL: nobody waits for them, and one has forgotten its environment.
    let script = "unshare --net sh -c 'env -i sleep 300 & sleep 301 & sleep 302' & sleep 0.1";
    let started = Command::new("sh")
        .args(["-c", script])
        .env(MARKER, &id)
        .env("VIRT_CDP_DRILL_HOLDER", &id)
        .status()
        .unwrap();
    assert!(started.success());
    let other = Command::new("sleep")
        .arg("303")
        .env(MARKER, format!("{id}x"))
        .spawn()
        .unwrap();
    assert!(leftover::find(&id).len() >= 3, "{:?}", leftover::find(&id));
    assert_eq!(leftover::kill(&id), Vec::<i32>::new());
    assert_eq!(leftover::find(&id), Vec::<i32>::new());
    assert_eq!(
        leftover::find(&format!("{id}x")).len(),
        1,
        "another's is not touched"
    );
    leftover::kill(&format!("{id}x"));
    let mut other = other;
    other.wait().unwrap();
}

#[test]
fn what_another_user_marks_is_neither_a_holder_nor_ended_with_its_namespace() {
    if !is_root() {
        return;
    }
    let id = format!("test-{}-foreign", std::process::id());
    // A namespace with a process of root's in it, and one of another user's that says it holds it for a drill.
    let foreign = "exec setpriv --reuid=65534 --regid=65534 --clear-groups sleep 304";
    let script =
        format!("sleep 305 & VIRT_CDP_DRILL_HOLDER={id} sh -c '{foreign}' & echo $!; wait");
    let mut space = Command::new("unshare")
        .args(["--net", "sh", "-c", &script])
        .process_group(0)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let output = space.stdout.take().unwrap();
    std::io::BufReader::new(output)
        .read_line(&mut line)
        .unwrap();
    let marked: i32 = line.trim().parse().unwrap();
    let is_foreign = || {
        let status = fs::read_to_string(format!("/proc/{marked}/status")).unwrap();
        status.contains("Uid:\t65534\t65534\t65534\t65534")
    };
    let give_up = Instant::now() + Duration::from_secs(5);
    while !is_foreign() && Instant::now() < give_up {
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(is_foreign());
    assert_eq!(leftover::holder(&id), None);
    assert_eq!(leftover::find(&id), Vec::<i32>::new());
    assert_eq!(leftover::kill(&id), Vec::<i32>::new());
    assert!(is_foreign(), "it goes on");
    assert!(space.try_wait().unwrap().is_none());
    let group = rustix::process::Pid::from_child(&space);
    rustix::process::kill_process_group(group, rustix::process::Signal::KILL).unwrap();
    space.wait().unwrap();
    // One of root's that is in the namespace of the host holds none, either.
    let mut outside = Command::new("sleep")
        .arg("306")
        .env("VIRT_CDP_DRILL_HOLDER", &id)
        .spawn()
        .unwrap();
    assert_eq!(leftover::holder(&id), None);
    assert_eq!(leftover::find(&id), Vec::<i32>::new());
    outside.kill().unwrap();
    outside.wait().unwrap();
}
