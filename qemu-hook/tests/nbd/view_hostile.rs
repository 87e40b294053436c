//! Clients that mean harm: the server neither falls nor stalls, and serves the next one.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use qemu_hook::nbd::NbdServer;

use crate::device::{Device, Numbers, serve};
use crate::raw::{self, Raw, context_data, go_data};

fn connect(server: &NbdServer) -> UnixStream {
    UnixStream::connect(server.path()).unwrap()
}

fn serves_the_next_one(server: &NbdServer) {
    let mut raw = Raw::open(connect(server), "vda");
    raw.request(raw::READ, 0, 1, 0, 512);
    assert_eq!(raw.simple(1), 0);
    raw.take(512);
}

fn server(dir: &tempfile::TempDir) -> NbdServer {
    serve(dir.path(), "vda", Device::sparse(1 << 20, 31)).0
}

#[test]
fn random_bytes_at_every_state() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(&dir);
    for seed in 1..=120u64 {
        let mut numbers = Numbers(seed << 32 | 0x9e37_79b9);
        let mut noise = vec![0; 1 + numbers.below(3000) as usize];
        numbers.fill(&mut noise);
        let mut stream = match seed % 5 {
            0 => connect(&server),
            1 => {
                let mut raw = Raw::new(connect(&server));
                raw.greet();
                raw.0
            }
            2 => {
                // A good option's head, with noise for data.
                let mut raw = Raw::new(connect(&server));
                raw.greet();
                raw.option(8, &[]);
                raw.reply(8);
                let option = [1, 3, 6, 7, 9, 10][numbers.below(6) as usize];
                raw.option(option, &noise);
                raw.0
            }
            3 => Raw::open(connect(&server), "vda").0,
            _ => {
                // Good requests' magic, with noise for the rest.
                let raw = Raw::open(connect(&server), "vda");
                for part in noise.chunks_exact_mut(28) {
                    part[..4].copy_from_slice(&0x25609513u32.to_be_bytes());
                    part[6] = 0;
                    part[7] &= 15;
                }
                raw.0.set_nonblocking(true).unwrap();
                raw.0
            }
        };
        // The server may hang up in the middle of it, or reply until nobody takes it any more.
        let _ = stream.write_all(&noise);
        if seed % 10 == 0 {
            serves_the_next_one(&server);
        }
    }
    serves_the_next_one(&server);
}

#[test]
fn lengths_that_lie() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(&dir);
    for len in [u32::MAX, (64 << 10) + 1] {
        let mut raw = Raw::new(connect(&server));
        raw.greet();
        let mut head = b"IHAVEOPT\0\0\0\x07".to_vec();
        head.extend_from_slice(&len.to_be_bytes());
        raw.send(&head);
        raw.expect_end();
    }
    let mut raw = Raw::new(connect(&server));
    raw.greet();
    raw.option(8, &[]);
    raw.reply(8);
    let mut huge_name = u32::MAX.to_be_bytes().to_vec();
    huge_name.extend_from_slice(b"name");
    let mut many_queries = context_data("vda", &[]);
    many_queries.truncate(7);
    many_queries.extend_from_slice(&u32::MAX.to_be_bytes());
    let lies = [
        (7, huge_name.clone()),
        (10, huge_name),
        (10, many_queries),
        (7, go_data(&"x".repeat(5000))),
        (7, [&raw::string("vda")[..], &[0xff, 0xff, 0, 1]].concat()),
    ];
    for (option, data) in lies {
        raw.option(option, &data);
        assert_eq!(raw.reply(option).0, raw::ERR_INVALID);
    }
    raw.option(raw::GO, &go_data("vda"));
    assert_eq!(raw.reply(raw::GO).0, 3);
    serves_the_next_one(&server);
}

#[test]
fn requests_at_the_end_of_the_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(&dir);
    let mut raw = Raw::open(connect(&server), "vda");
    let size = 1 << 20;
    let requests: &[(u16, u16, u64, u32, u32)] = &[
        (raw::READ, 0, u64::MAX, 1, 22),
        (raw::READ, 0, u64::MAX, u32::MAX, 22),
        (raw::READ, 0, 0, u32::MAX, 22),
        (raw::READ, 0, size, 1, 22),
        (raw::READ, 0, 0, 0, 22),
        (raw::READ, 4, 0, 512, 22), // DF without structured replies
        (raw::READ, 0xff00, 0, 512, 22),
        (raw::STATUS, 0, u64::MAX, u32::MAX, 22),
        (raw::STATUS, 0, 0, 512, 22), // not agreed on
        (raw::CACHE, 0, u64::MAX, 1, 22),
        (raw::TRIM, 0, u64::MAX, u32::MAX, 1),
        (raw::ZEROES, 0, 0, u32::MAX, 1),
        (raw::FLUSH, 0, 0, 0, 0),
        (99, 0, 0, 0, 22),
    ];
    for (cookie, (command, flags, offset, len, error)) in requests.iter().enumerate() {
        let cookie = cookie as u64;
        raw.request(*command, *flags, cookie, *offset, *len);
        assert_eq!(raw.simple(cookie), *error, "request {cookie}");
    }
    serves_the_next_one(&server);
}

#[test]
fn writes_are_refused_with_their_payload_taken_or_the_connection_ended() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(&dir);
    let mut raw = Raw::open(connect(&server), "vda");
    let payload = vec![0x25; 32 << 20];
    for (cookie, len) in [(1, 0), (2, 1), (3, 4096), (4, 32 << 20)] {
        raw.request(raw::WRITE, 0, cookie, u64::MAX, len);
        raw.send(&payload[..len as usize]);
        assert_eq!(raw.simple(cookie), 1);
    }
    raw.request(raw::WRITE, 0, 5, 0, (32 << 20) + 1);
    raw.expect_end();
    serves_the_next_one(&server);
}

#[test]
fn clients_that_stop_half_way() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(&dir);
    let mut half_option = Raw::new(connect(&server));
    half_option.greet();
    half_option.send(b"IHAVEOPT\0\0\0\x07\0\0\x10\0half");
    let mut half_request = Raw::open(connect(&server), "vda");
    half_request.send(&0x25609513u32.to_be_bytes());
    let mut half_payload = Raw::open(connect(&server), "vda");
    half_payload.request(raw::WRITE, 0, 1, 0, 4096);
    half_payload.send(b"half");
    let silent = Raw::new(connect(&server));
    serves_the_next_one(&server);
    drop((half_option, half_request, half_payload, silent));
    crate::peers::wait_until("no connection", || server.connections() == 0);
    serves_the_next_one(&server);
}

#[test]
fn a_handshake_has_ten_seconds_however_slowly_it_goes() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(&dir);
    let started = Instant::now();
    let mut silent = Raw::new(connect(&server));
    let mut slow = Raw::new(connect(&server));
    slow.greet();
    slow.send(b"IHAVEOPT\0\0\0\x07\0\0\xf0\0");
    let mut stream = slow.0.try_clone().unwrap();
    let trickle = std::thread::spawn(move || {
        while stream.write_all(b"x").is_ok() {
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    silent.expect_end();
    slow.expect_end();
    trickle.join().unwrap();
    let waited = started.elapsed();
    assert!(waited > Duration::from_secs(9) && waited < Duration::from_secs(12));
    serves_the_next_one(&server);
}
