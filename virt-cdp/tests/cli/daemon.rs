//! The daemon as a process: its start, its locks, its neighbours, its end.

use std::{
    io::{Read as _, Write as _},
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            fs::PermissionsExt,
            net::{SocketAddr, UnixDatagram, UnixListener, UnixStream},
            process::CommandExt as _,
        },
    },
    path::Path,
    process::Command,
};

use crate::stage::{Daemon, PATIENCE, Ran, Stage, daemon_in, program};

#[test]
fn sigterm_ends_it_with_0_and_takes_the_socket_away() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(daemon_in(dir.path()), dir.path());
    let socket = dir.path().join("run/api.sock");
    assert_eq!(
        socket.metadata().unwrap().permissions().mode() & 0o777,
        0o660
    );
    assert_eq!(
        dir.path()
            .join("run")
            .metadata()
            .unwrap()
            .permissions()
            .mode()
            & 0o777,
        0o711
    );
    assert_eq!(
        dir.path()
            .join("state")
            .metadata()
            .unwrap()
            .permissions()
            .mode()
            & 0o777,
        0o700
    );
    let ran = daemon.stop();
    assert_eq!(
        (ran.code, ran.stdout.as_str()),
        (Some(0), ""),
        "{}",
        ran.stderr
    );
    assert!(!socket.exists());
}

#[test]
fn a_second_daemon_is_refused_by_name_and_the_first_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(daemon_in(dir.path()), dir.path());
    let pid = daemon.child.id();
    let state = dir.path().join("state");
    let other = dir.path().join("other.sock");
    let mut second = program("virtcdpd", dir.path());
    second
        .arg("--state-dir")
        .arg(&state)
        .arg("--socket")
        .arg(&other);
    let ran = Ran::from(second.output().unwrap());
    assert_eq!(
        (ran.code, ran.stderr),
        (
            Some(1),
            format!(
                "error: the state directory {} belongs to another virtcdpd that is running (pid {pid})\n\
                 hint: stop it (`systemctl stop virtcdpd` or `kill {pid}`), \
                 or give this one its own --state-dir and --socket\n",
                state.display()
            )
        )
    );
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn a_socket_that_is_served_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(daemon_in(dir.path()), dir.path());
    let socket = dir.path().join("run/api.sock");
    let mut second = program("virtcdpd", dir.path());
    second
        .arg("--state-dir")
        .arg(dir.path().join("state2"))
        .arg("--socket")
        .arg(&socket);
    let ran = Ran::from(second.output().unwrap());
    let expected = format!(
        "error: another process is serving {}\nhint: ",
        socket.display()
    );
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.starts_with(&expected), "{}", ran.stderr);
    assert_eq!(daemon.stop().code, Some(0));
}

#[test]
fn the_socket_of_a_crashed_daemon_is_taken_over_and_other_files_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(daemon_in(dir.path()), dir.path());
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    let socket = dir.path().join("run/api.sock");
    assert!(socket.exists());
    assert_eq!(
        Daemon::start(daemon_in(dir.path()), dir.path()).stop().code,
        Some(0)
    );

    std::fs::write(&socket, "precious").unwrap();
    let ran = Ran::from(daemon_in(dir.path()).output().unwrap());
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.stderr
            .contains("exists and is no socket\nhint: remove it"),
        "{}",
        ran.stderr
    );
    assert_eq!(std::fs::read_to_string(&socket).unwrap(), "precious");
}

#[test]
fn a_state_directory_that_cannot_be_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let mut command = program("virtcdpd", dir.path());
    command
        .arg("--state-dir")
        .arg(file.join("state"))
        .arg("--socket")
        .arg(dir.path().join("s"));
    let ran = Ran::from(command.output().unwrap());
    assert_eq!(ran.code, Some(1));
    let expected = format!(
        "error: cannot use the state directory {}/state: ",
        file.display()
    );
    assert!(
        ran.stderr.starts_with(&expected) && ran.stderr.contains("\nhint: "),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_configuration_that_is_wrong_stops_it_with_2() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("c.toml");
    std::fs::write(&config, "stat_dir = 1\n").unwrap();
    let mut command = program("virtcdpd", dir.path());
    let ran = Ran::from(command.arg("--config").arg(&config).output().unwrap());
    assert_eq!(ran.code, Some(2));
    let expected = format!(
        "error: {}, line 1: stat_dir: there is no key `stat_dir`\nhint: known is one of `state_dir`",
        config.display()
    );
    assert!(ran.stderr.starts_with(&expected), "{}", ran.stderr);
    let mut command = program("virtcdpd", dir.path());
    assert_eq!(
        command
            .args(["--config", "/nonexistent"])
            .output()
            .unwrap()
            .status
            .code(),
        Some(2)
    );
}

#[test]
fn several_daemons_live_side_by_side() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = Daemon::start(daemon_in(one.path()), one.path());
    let second = Daemon::start(daemon_in(two.path()), two.path());
    assert_eq!(first.stop().code, Some(0));
    assert_eq!(second.stop().code, Some(0));
}

#[test]
fn the_hidden_daemon_command_is_the_daemon_too() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = program("virt-cdp", dir.path());
    command.args(["daemon", "--config", "/nonexistent"]);
    let ran = Ran::from(command.output().unwrap());
    assert_eq!(ran.code, Some(2));
    assert!(ran.stderr.contains("/nonexistent"), "{}", ran.stderr);
}

/// Starts and stops a daemon that is told `address`; returns what came to `socket`.
fn notifications(dir: &Path, address: &str, socket: &UnixDatagram) -> String {
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = daemon_in(dir);
    command.env("NOTIFY_SOCKET", address);
    let daemon = Daemon::start(command, dir);
    assert_eq!(daemon.stop().code, Some(0));
    let mut all = String::new();
    while !all.contains("STOPPING=1") {
        let mut datagram = [0; 4096];
        let length = socket.recv(&mut datagram).unwrap();
        all.push_str(std::str::from_utf8(&datagram[..length]).unwrap());
    }
    all
}

#[test]
fn systemd_is_told_when_it_serves_and_when_it_stops() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    let told = notifications(dir.path(), path.to_str().unwrap(), &socket);
    let (ready, stopping) = (
        told.find("READY=1\nSTATUS=serving\n"),
        told.find("STOPPING=1\n"),
    );
    assert!(ready.is_some() && ready < stopping, "{told}");
}

#[test]
fn systemd_is_told_in_the_abstract_namespace_too() {
    let dir = tempfile::tempdir().unwrap();
    let name = format!("virt-cdp-test-{}", std::process::id());
    let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let told = notifications(dir.path(), &format!("@{name}"), &socket);
    assert!(told.contains("READY=1"), "{told}");
}

#[test]
fn garbage_on_the_socket_disturbs_nobody() {
    let stage = Stage::new();
    let garbage: &[&[u8]] = &[
        b"",
        b"\0",
        b"GET / HTTP/1.1\r\n\r\n",
        &[0xff; 100_000],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff",
    ];
    let mut open = Vec::new();
    for bytes in garbage.iter().cycle().take(50) {
        let mut stream = UnixStream::connect(&stage.socket).unwrap();
        // The daemon may hang up in the middle of it.
        let _ = stream.write_all(bytes);
        open.push(stream);
        stage.run(&["info", "web1"]).good();
    }
    drop(open);
    stage.run(&["list"]).good();
}

#[test]
fn a_stranger_is_refused_even_where_the_socket_is_open_to_all() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can become somebody else");
        return;
    }
    const NOBODY: u32 = 65534;
    let stage = Stage::new();
    let open =
        |path: &Path| std::fs::set_permissions(path, PermissionsExt::from_mode(0o777)).unwrap();
    open(stage.dir.path());
    open(&stage.socket);
    // A copy, as the build's own directory may be closed to others.
    let copy = stage.dir.path().join("virt-cdp");
    std::fs::copy(env!("CARGO_BIN_EXE_virt-cdp"), &copy).unwrap();
    let list = |uid: u32| {
        let mut command = Command::new(&copy);
        Ran::from(
            command
                .arg("-c")
                .arg(&stage.socket)
                .arg("list")
                .uid(uid)
                .gid(uid)
                .output()
                .unwrap(),
        )
    };
    let ran = list(NOBODY);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""));
    assert_eq!(
        ran.stderr,
        "error: user 65534 may not use virtcdpd\nhint: be root, or a member of the group that owns its socket\n"
    );
    list(0).good();
}

#[test]
fn a_client_that_meets_no_virtcdpd_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("other.sock");
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 100]);
            let _ = stream.write_all(b"220 mail.example ESMTP\r\n");
        }
    });
    let ran = Ran::from(
        program("virt-cdp", dir.path())
            .arg("-c")
            .arg(&path)
            .arg("list")
            .output()
            .unwrap(),
    );
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""));
    assert!(
        ran.stderr
            .starts_with("error: the connection to virtcdpd at unix:///"),
        "{}",
        ran.stderr
    );
}

#[test]
fn logs_are_json_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = daemon_in(dir.path());
    command.args(["--log-format", "json"]);
    let ran = Daemon::start(command, dir.path()).stop();
    for line in ran.stderr.lines() {
        assert!(
            serde_json::from_str::<serde_json::Value>(line).is_ok(),
            "{line}"
        );
    }
    assert!(
        ran.stderr.contains("\"message\":\"serving\""),
        "{}",
        ran.stderr
    );
}
