//! The server as a whole: its socket, its connections, its end.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use qemu_hook::nbd::{Exports, NbdError, NbdServer};

use crate::device::{Device, serve};
use crate::peers::wait_until;
use crate::raw::{self, Raw};

#[test]
fn the_socket_has_the_mode_and_owner_asked_for_and_goes_with_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("view.sock");
    let ours = std::fs::metadata(dir.path()).unwrap();
    let owner = Some((ours.uid(), ours.gid()));
    let server = NbdServer::listen_unix(&path, 0o660, owner, Exports::new()).unwrap();
    assert_eq!(server.path(), path);
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    server.stop();
    assert!(!path.exists());
}

#[test]
fn a_dead_servers_socket_is_replaced_a_live_ones_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("view.sock");
    drop(UnixListener::bind(&path).unwrap());
    let server = NbdServer::listen_unix(&path, 0o600, None, Exports::new()).unwrap();
    let second = NbdServer::listen_unix(&path, 0o600, None, Exports::new());
    assert!(matches!(second, Err(NbdError::Listen { .. })));
    assert!(path.exists());

    // Someone else's socket at the same place outlives us.
    std::fs::remove_file(&path).unwrap();
    let other = UnixListener::bind(&path).unwrap();
    server.stop();
    assert!(path.exists());
    drop(other);

    let file = dir.path().join("a-file");
    std::fs::write(&file, "precious").unwrap();
    assert!(NbdServer::listen_unix(&file, 0o600, None, Exports::new()).is_err());
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
}

#[test]
fn stop_ends_connections_that_are_in_use_idle_or_stuck() {
    let dir = tempfile::tempdir().unwrap();
    let (server, _) = serve(dir.path(), "vda", Device::sparse(64 << 20, 21));
    let connect = || UnixStream::connect(server.path()).unwrap();
    let mut idle = Raw::open(connect(), "vda");
    let mut half_open = Raw::new(connect());
    let mut stuck = Raw::open(connect(), "vda");
    for cookie in 0..8 {
        // Nobody takes these replies: the server waits in the middle of one.
        stuck.request(raw::READ, 0, cookie, 0, 32 << 20);
    }
    wait_until("three connections", || server.connections() == 3);
    std::thread::sleep(Duration::from_millis(100));
    let started = Instant::now();
    server.stop();
    assert!(started.elapsed() < Duration::from_secs(2));
    idle.expect_end();
    half_open.expect_end();
    stuck.expect_end();
}

#[test]
fn connections_beyond_the_bound_are_closed_and_places_become_free_again() {
    let dir = tempfile::tempdir().unwrap();
    let (server, _) = serve(dir.path(), "vda", Device::sparse(4096, 22));
    let connect = || UnixStream::connect(server.path()).unwrap();
    let mut kept: Vec<Raw> = (0..64).map(|_| Raw::open(connect(), "vda")).collect();
    assert_eq!(server.connections(), 64);
    let started = Instant::now();
    Raw::new(connect()).expect_end();
    // At once, and not at the deadline of its handshake.
    assert!(started.elapsed() < Duration::from_secs(2));
    let mut leaver = kept.pop().unwrap();
    leaver.request(raw::DISC, 0, 0, 0, 0);
    leaver.expect_end();
    wait_until("a free place", || server.connections() == 63);
    let mut newcomer = Raw::open(connect(), "vda");
    newcomer.request(raw::READ, 0, 1, 0, 1);
    assert_eq!(newcomer.simple(1), 0);
}

#[test]
fn one_client_that_takes_nothing_does_not_hold_up_another() {
    let dir = tempfile::tempdir().unwrap();
    let (server, _) = serve(dir.path(), "vda", Device::sparse(64 << 20, 23));
    let connect = || UnixStream::connect(server.path()).unwrap();
    let mut stuck = Raw::open(connect(), "vda");
    stuck.request(raw::READ, 0, 1, 0, 32 << 20);
    let mut other = Raw::open(connect(), "vda");
    let started = Instant::now();
    for cookie in 0..100 {
        other.request(raw::READ, 0, cookie, 0, 4096);
        assert_eq!(other.simple(cookie), 0);
        other.take(4096);
    }
    assert!(started.elapsed() < Duration::from_secs(1));
}

#[test]
fn a_slow_device_is_read_at_several_places_at_once_and_every_reply_is_right() {
    const READS: u64 = 200;
    let dir = tempfile::tempdir().unwrap();
    let mut device = Device::sparse(8 << 20, 24);
    device.delay = Duration::from_millis(5);
    device.broken = Some(4096 * 7..4096 * 8);
    let (server, device) = serve(dir.path(), "vda", device);
    let mut raw = Raw::open(UnixStream::connect(server.path()).unwrap(), "vda");
    let started = Instant::now();
    for cookie in 0..READS {
        raw.request(raw::READ, 0, cookie, cookie * 4096, 4096);
    }
    let mut answered = vec![false; READS as usize];
    let mut in_order = true;
    for number in 0..READS {
        let head = raw.take(16);
        assert_eq!(head[..4], 0x67446698u32.to_be_bytes());
        let cookie = u64::from_be_bytes(head[8..].try_into().unwrap());
        in_order &= cookie == number;
        assert!(!std::mem::replace(&mut answered[cookie as usize], true));
        let error = u32::from_be_bytes(head[4..8].try_into().unwrap());
        assert_eq!(error, if cookie == 7 { 5 } else { 0 });
        if error == 0 {
            let at = cookie as usize * 4096;
            assert!(raw.take(4096) == device.bytes[at..at + 4096]);
        }
    }
    assert!(answered.iter().all(|done| *done));
    // One after the other they take 1 s.
    let took = started.elapsed();
    assert!(
        took < Duration::from_millis(700),
        "{took:?}, in order: {in_order}"
    );
    raw.request(raw::DISC, 0, 0, 0, 0);
    raw.expect_end();
    wait_until("no connection", || server.connections() == 0);
}

#[test]
fn stop_and_a_client_that_goes_end_slow_reads_in_all_threads() {
    let dir = tempfile::tempdir().unwrap();
    let mut device = Device::sparse(8 << 20, 25);
    device.delay = Duration::from_millis(5);
    let (server, _) = serve(dir.path(), "vda", device);
    let ask = || {
        let mut raw = Raw::open(UnixStream::connect(server.path()).unwrap(), "vda");
        (0..300).for_each(|cookie| raw.request(raw::READ, 0, cookie, cookie * 4096, 4096));
        raw.take(100 * 4112);
        raw
    };
    drop(ask());
    wait_until("no connection", || server.connections() == 0);
    let mut served = ask();
    let started = Instant::now();
    server.stop();
    assert!(started.elapsed() < Duration::from_secs(1));
    served.expect_end();
}

#[test]
fn a_thread_that_panics_ends_its_connection_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let mut device = Device::sparse(8 << 20, 26);
    device.delay = Duration::from_millis(1);
    device.broken = Some(4096 * 150..4096 * 151);
    device.panics = true;
    let (server, _) = serve(dir.path(), "vda", device);
    let open = || Raw::open(UnixStream::connect(server.path()).unwrap(), "vda");
    let mut other = open();
    let mut raw = open();
    (0..200).for_each(|cookie| raw.request(raw::READ, 0, cookie, cookie * 4096, 4096));
    raw.expect_end();
    other.request(raw::READ, 0, 1, 0, 4096);
    assert_eq!(other.simple(1), 0);
}
