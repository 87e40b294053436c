//! The metrics endpoint, from the outside: what it answers, whom it refuses, and that it does not keep the daemon.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{runtime::Runtime, sync::watch};
use virt_cdp::daemon::metrics;

use crate::{
    fake::Fake,
    stage::{Daemon, PATIENCE, daemon_in, wait_for},
};

/// An address of the loopback that nobody uses now, and that no other test is given: one that the system chooses may be
/// chosen again as soon as it is let go.
fn free() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 20_000 + u16::try_from(std::process::id() % 500).unwrap() * 20;
    loop {
        let port = first + NEXT.fetch_add(1, Ordering::Relaxed) % 20;
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            return listener.local_addr().unwrap();
        }
    }
}

struct Endpoint {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    _runtime: Runtime,
}

impl Endpoint {
    fn start(address: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let (stop, stopped) = watch::channel(false);
        runtime.spawn(metrics::serve(address, Arc::new(Fake::default()), stopped));
        Self {
            address,
            stop,
            _runtime: runtime,
        }
    }

    fn ready() -> Self {
        let endpoint = Self::start(free());
        wait_for("it listens", || {
            TcpStream::connect(endpoint.address).is_ok()
        });
        endpoint
    }
}

/// Sends `request` and returns the whole answer.
fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answer = String::new();
    // Whoever is refused may be hung up on in the middle.
    let _ = stream
        .write_all(request.as_bytes())
        .and_then(|()| stream.read_to_string(&mut answer));
    answer
}

#[test]
fn the_page_is_at_metrics_and_nothing_else_is_anywhere() {
    let endpoint = Endpoint::ready();
    let of = |request: &str| ask(endpoint.address, request);
    let page = of("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(page.starts_with("HTTP/1.1 200 OK\r\n"), "{page}");
    assert!(
        page.contains("\r\ncontent-type: text/plain; version=0.0.4\r\n"),
        "{page}"
    );
    assert!(page.ends_with("\r\n\r\n# HELP fake Of a fake.\n# TYPE fake gauge\nfake 1\n"));
    let head = of("HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.ends_with("\r\n\r\n"), "{head}");
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", "404 Not Found"),
        ("GET /metrics/ HTTP/1.1\r\nHost: x\r\n\r\n", "404 Not Found"),
        (
            "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
            "405 Method Not Allowed",
        ),
        ("nonsense\r\n\r\n", "400 Bad Request"),
    ] {
        let answer = of(request);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}\r\n")),
            "{answer}"
        );
        assert!(!answer.contains("fake 1"), "{answer}");
    }
    let long = format!(
        "GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n",
        "x".repeat(100_000)
    );
    assert!(!of(&long).contains("fake 1"));
}

#[test]
fn clients_that_say_nothing_keep_others_out_only_for_a_while() {
    let endpoint = Endpoint::ready();
    // Whoever looked whether it listens is gone, and has not one of the places any more.
    std::thread::sleep(Duration::from_millis(500));
    let begun = Instant::now();
    let silent: Vec<TcpStream> = (0..40)
        .map(|_| TcpStream::connect(endpoint.address).unwrap())
        .collect();
    let page = || ask(endpoint.address, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    wait_for("they have been hung up on", || page().contains("fake 1"));
    assert!(begun.elapsed() < Duration::from_secs(15));
    assert!(begun.elapsed() > Duration::from_secs(5), "there are bounds");
    drop(silent);
}

#[test]
fn an_address_that_is_taken_is_served_once_it_is_free_and_let_go_at_the_end() {
    let address = free();
    let taken = TcpListener::bind(address).unwrap();
    let endpoint = Endpoint::start(address);
    std::thread::sleep(Duration::from_millis(300));
    drop(taken);
    let serves = || {
        TcpStream::connect(address).is_ok()
            && ask(address, "GET /metrics HTTP/1.0\r\n\r\n").contains("fake 1")
    };
    wait_for("it is served", serves);
    endpoint.stop.send(true).unwrap();
    wait_for("it is let go", || TcpStream::connect(address).is_err());
}

#[test]
fn a_daemon_serves_its_own_figures_where_it_is_told_to_and_ends_in_good_order() {
    let dir = tempfile::tempdir().unwrap();
    let address = free();
    let mut command = daemon_in(dir.path());
    let config = dir.path().join("virtcdpd.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let port = address.port();
    std::fs::write(&config, format!("{text}[metrics]\nlisten = \"{port}\"\n")).unwrap();
    command.env_remove("RUST_LOG");
    let daemon = Daemon::start(command, dir.path());
    let page = ask(address, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    let version = concat!(
        "virtcdp_build_info{version=\"",
        env!("CARGO_PKG_VERSION"),
        "\""
    );
    assert!(page.contains(version), "{page}");
    assert!(page.contains("\nvirtcdp_guard_up 1\n"), "{page}");
    assert!(page.contains("\nprocess_resident_memory_bytes "), "{page}");
    // A client that stays does not keep it.
    let _stays = TcpStream::connect(address).unwrap();
    let ran = daemon.stop();
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
}
