//! Ping, TCP and HTTP against real sockets.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use super::*;
use crate::outcome::Verdict;

/// A server on loopback that does the same with everybody.
fn serve(work: impl Fn(TcpStream) + Send + Sync + Clone + 'static) -> u16 {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in server.incoming() {
            let work = work.clone();
            thread::spawn(move || work(stream.unwrap()));
        }
    });
    port
}

fn tcp(port: u16, banner: Option<&str>) -> CheckKind {
    let banner = banner.map(pattern);
    CheckKind::Tcp { port, banner }
}

fn http(port: u16) -> CheckKind {
    CheckKind::Http {
        tls: false,
        port,
        path: "/health?full=1".into(),
        host: None,
        status: None,
        body: None,
    }
}

/// A server that answers every request with this, and keeps what it was asked.
fn answer(text: impl Fn(&str, u16) -> String + Send + Sync + Clone + 'static) -> u16 {
    serve(move |mut stream| {
        let port = stream.local_addr().unwrap().port();
        let mut request = Vec::new();
        let mut piece = [0; 4096];
        while !request.ends_with(b"\r\n\r\n") {
            match stream.read(&mut piece) {
                Ok(0) | Err(_) => return,
                Ok(read) => request.extend_from_slice(&piece[..read]),
            }
        }
        let request = String::from_utf8(request).unwrap();
        let _ = stream.write_all(text(&request, port).as_bytes());
    })
}

fn page(status: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
}

#[test]
fn loopback_answers_a_ping_over_both_protocols() {
    if !is_root() {
        eprintln!("SKIPPED: raw sockets need root");
        return;
    }
    for address in ["127.0.0.1", "::1"] {
        let scene = Scene::new();
        *scene.machine.addresses.lock().unwrap() = vec![address.parse().unwrap()];
        if address == "::1" && TcpListener::bind("[::1]:0").is_err() {
            eprintln!("SKIPPED: there is no IPv6 here");
            continue;
        }
        let report = scene.run(&once(CheckKind::Ping, 2000));
        assert_eq!(report.verdict, Verdict::Proved, "{}", report.why);
        assert!(report.attempts[0].saw.starts_with(address));
    }
}

#[test]
fn a_ping_that_nobody_answers_says_so_in_time() {
    if !is_root() {
        eprintln!("SKIPPED: raw sockets need root");
        return;
    }
    let scene = Scene::new();
    // An address of the block for documentation; some networks answer at once that it cannot be reached.
    *scene.machine.addresses.lock().unwrap() = vec!["192.0.2.77".parse().unwrap()];
    let report = scene.run(&once(CheckKind::Ping, 300));
    assert_eq!(report.verdict, Verdict::Failed);
    assert!(
        report.why == "no answer to a ping within 300 ms" || report.why.contains("192.0.2.77"),
        "{}",
        report.why
    );
}

#[test]
fn an_address_that_becomes_known_is_used() {
    let port = serve(drop);
    let scene = Scene::new();
    scene.machine.addresses.lock().unwrap().clear();
    let report = thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(200));
            *scene.machine.addresses.lock().unwrap() = vec!["127.0.0.1".parse().unwrap()];
        });
        scene.run(&once(tcp(port, None), 5000))
    });
    assert_eq!(
        (report.verdict, report.attempts_total),
        (Verdict::Proved, 1)
    );
    let at = report.ended_ms.unwrap() - report.started_ms.unwrap();
    assert!((200..1000).contains(&at), "{at} ms");

    scene.machine.addresses.lock().unwrap().clear();
    let report = scene.run(&once(tcp(port, None), 100));
    assert_eq!(report.why, "its address is not known yet");
}

#[test]
fn a_machine_without_a_network_is_not_waited_for() {
    let mut scene = Scene::new();
    scene.facts.has_network = false;
    scene.machine.addresses.lock().unwrap().clear();
    let mut plan = once(CheckKind::Ping, 20_000);
    plan.attempts = None;
    let began = std::time::Instant::now();
    let report = scene.run(&plan);
    assert_eq!(report.verdict, Verdict::Failed);
    assert!(report.why.contains("no network card"), "{}", report.why);
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn one_of_several_addresses_will_do() {
    let port = serve(drop);
    let scene = Scene::new();
    // Nobody listens at the first one.
    *scene.machine.addresses.lock().unwrap() =
        vec!["127.0.0.77".parse().unwrap(), "127.0.0.1".parse().unwrap()];
    let report = scene.run(&once(tcp(port, None), 1000));
    assert_eq!(report.verdict, Verdict::Proved);
    assert_eq!(report.attempts[0].saw, "127.0.0.1 took a connection");
}

#[test]
fn a_port_that_is_closed_refuses() {
    let port = {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        server.local_addr().unwrap().port()
    };
    for kind in [tcp(port, None), http(port)] {
        let report = Scene::new().run(&once(kind, 1000));
        assert_eq!(report.verdict, Verdict::Failed);
        assert_eq!(report.why, "connection refused");
    }
}

#[test]
fn a_banner_that_comes_in_drops_is_put_together() {
    let port = serve(|mut stream| {
        for byte in b"SSH-2.0-OpenSSH_9\r\n" {
            let _ = stream.write_all(&[*byte]);
            thread::sleep(Duration::from_millis(5));
        }
        thread::sleep(Duration::from_secs(5));
    });
    let report = Scene::new().run(&once(tcp(port, Some("^SSH-2.0-Open")), 3000));
    assert_eq!(report.verdict, Verdict::Proved, "{}", report.why);
    assert!(report.attempts[0].output.starts_with("SSH-2.0-Open"));
}

#[test]
fn a_banner_that_does_not_come_is_told_with_what_came() {
    let drips = serve(|mut stream| {
        while stream.write_all(b"x").is_ok() {
            thread::sleep(Duration::from_millis(20));
        }
    });
    let report = Scene::new().run(&once(tcp(drips, Some("SSH")), 400));
    assert!(
        report
            .why
            .starts_with("no banner with /SSH/ within 400 ms; it said \"xxx"),
        "{}",
        report.why
    );
    let silent = serve(|stream| {
        thread::sleep(Duration::from_secs(5));
        drop(stream);
    });
    let report = Scene::new().run(&once(tcp(silent, Some("SSH")), 400));
    assert_eq!(
        report.why,
        "no banner with /SSH/ within 400 ms; it said nothing"
    );
    let closes = serve(|mut stream| stream.write_all(b"bye\xff\n").unwrap());
    let report = Scene::new().run(&once(tcp(closes, Some("SSH")), 2000));
    assert_eq!(
        report.why,
        "no banner with /SSH/ before it closed the connection; it said \"bye\u{fffd}\""
    );
}

#[test]
fn a_banner_without_end_is_given_up() {
    let floods = serve(|mut stream| while stream.write_all(&[b'z'; 8192]).is_ok() {});
    let report = Scene::new().run(&once(tcp(floods, Some("SSH")), 5000));
    assert!(report.why.contains("in the first 64 KiB"), "{}", report.why);
}

#[test]
fn a_connection_that_is_reset_is_told() {
    let resets = serve(|stream| {
        let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        thread::sleep(Duration::from_millis(50));
    });
    let report = Scene::new().run(&once(tcp(resets, Some("SSH")), 2000));
    assert!(
        report.why.contains("connection reset by peer"),
        "{}",
        report.why
    );
    let report = Scene::new().run(&once(http(resets), 2000));
    assert!(
        report.why.contains("connection reset by peer") || report.why.contains("closed"),
        "{}",
        report.why
    );
}

#[test]
fn a_page_is_asked_for_with_its_path_and_host() {
    let port = answer(|request, _| {
        let is_right = request.starts_with("GET /health?full=1 HTTP/1.1\r\n")
            && request
                .to_lowercase()
                .contains("\r\nhost: www.example.com\r\n");
        page(if is_right { "200 OK" } else { "400 Bad" }, "all is well")
    });
    let mut kind = http(port);
    if let CheckKind::Http { host, body, .. } = &mut kind {
        *host = Some("www.example.com".into());
        *body = Some(pattern("^all is"));
    }
    let report = Scene::new().run(&once(kind, 2000));
    assert_eq!(report.verdict, Verdict::Proved, "{}", report.why);
    assert_eq!(report.attempts[0].output, "all is well");
}

#[test]
fn status_and_body_must_be_right() {
    let port = answer(|_, _| page("503 Service Unavailable", "starting"));
    let report = Scene::new().run(&once(http(port), 2000));
    assert_eq!(
        report.why,
        "status 503 Service Unavailable where one from 200 to 399 was expected"
    );
    let mut kind = http(port);
    if let CheckKind::Http { status, body, .. } = &mut kind {
        *status = Some(503);
        *body = Some(pattern("ready"));
    }
    let report = Scene::new().run(&once(kind, 2000));
    assert_eq!(
        report.why,
        "status 503 Service Unavailable, but nothing in the body is like /ready/"
    );
}

#[test]
fn redirects_are_followed_within_the_host_only() {
    let port = answer(|request, port| {
        if request.starts_with("GET /end ") {
            return page("200 OK", "the end");
        }
        format!(
            "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:{port}/end\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
    });
    let mut kind = http(port);
    if let CheckKind::Http { status, .. } = &mut kind {
        *status = Some(200);
    }
    let report = Scene::new().run(&once(kind, 2000));
    assert_eq!(report.verdict, Verdict::Proved, "{}", report.why);
    let away = answer(|_, _| {
        "HTTP/1.1 302 Found\r\nLocation: http://production.example/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".into()
    });
    let report = Scene::new().run(&once(http(away), 2000));
    assert_eq!(
        report.attempts[0].saw,
        "127.0.0.1 answered with status 302 Found"
    );
    let circle = answer(|_, port| {
        format!(
            "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:{port}/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
    });
    let report = Scene::new().run(&once(http(circle), 2000));
    assert_eq!(report.attempts_total, 1);
}

#[test]
fn a_page_that_drips_ends_with_the_attempt() {
    let drips = serve(|mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n");
        while stream.write_all(b"x").is_ok() {
            thread::sleep(Duration::from_millis(20));
        }
    });
    let began = Instant::now();
    let report = Scene::new().run(&once(http(drips), 400));
    assert!(began.elapsed() < Duration::from_millis(1000));
    assert_eq!(report.why, "no whole answer within 400 ms");
}

#[test]
fn a_body_without_end_is_read_in_part() {
    let floods = serve(|mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
        while stream.write_all(&[b'z'; 65536]).is_ok() {}
    });
    let report = Scene::new().run(&once(http(floods), 5000));
    assert_eq!(report.verdict, Verdict::Proved, "{}", report.why);
    assert!(report.attempts[0].output.len() <= crate::outcome::OUTPUT_KEPT);
}

#[test]
fn what_is_no_web_server_fails() {
    let port = serve(|mut stream| {
        let _ = stream.write_all(b"220 smtp ready\r\n");
        thread::sleep(Duration::from_millis(300));
    });
    let report = Scene::new().run(&once(http(port), 2000));
    assert_eq!(report.verdict, Verdict::Failed);
    assert!(!report.why.is_empty());
}

/// A TLS server with a certificate that nobody has signed; none where there is no `openssl`.
fn tls_server(folder: &Path) -> Option<(u16, Child)> {
    let (key, cert) = (folder.join("key"), folder.join("cert"));
    let made = Command::new("openssl")
        .args([
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1",
        ])
        .args(["-subj", "/CN=somebody.else", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&cert)
        .output()
        .ok()?;
    assert!(made.status.success());
    let port = {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        server.local_addr().unwrap().port()
    };
    let server = Command::new("openssl")
        .args([
            "s_server",
            "-quiet",
            "-www",
            "-accept",
            &port.to_string(),
            "-key",
        ])
        .arg(&key)
        .arg("-cert")
        .arg(&cert)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    Some((port, server))
}

#[test]
fn a_certificate_of_somebody_else_is_no_matter() {
    let folder = tempfile::tempdir().unwrap();
    let Some((port, mut server)) = tls_server(folder.path()) else {
        eprintln!("SKIPPED: there is no openssl");
        return;
    };
    for name in [None, Some("www.example.com".to_owned())] {
        let kind = CheckKind::Http {
            tls: true,
            port,
            path: "/".into(),
            host: name,
            status: Some(200),
            body: Some(pattern("TLS")),
        };
        let mut plan = once(kind, 2000);
        // It may be about to start.
        plan.attempts = None;
        let report = Scene::new().run(&plan);
        assert_eq!(report.verdict, Verdict::Proved, "{}", report.why);
    }
    server.kill().unwrap();
    server.wait().unwrap();
}

#[test]
fn a_proxy_in_the_environment_is_not_used() {
    // Another process, as the environment is everybody's.
    let port = answer(|_, _| page("200 OK", "direct"));
    if let Ok(port) = std::env::var("VIRT_CDP_TEST_DIRECT") {
        let report = Scene::new().run(&once(http(port.parse().unwrap()), 2000));
        assert_eq!(report.verdict, Verdict::Proved, "{}", report.why);
        return;
    }
    let name = "check::tests::sockets::a_proxy_in_the_environment_is_not_used";
    let out = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name])
        .env("VIRT_CDP_TEST_DIRECT", port.to_string())
        .env("http_proxy", "http://127.0.0.1:1")
        .env("HTTP_PROXY", "http://127.0.0.1:1")
        .env("ALL_PROXY", "http://127.0.0.1:1")
        .output()
        .unwrap();
    assert!(out.status.success(), "{out:?}");
    assert!(String::from_utf8_lossy(&out.stdout).contains("1 passed"));
}

#[test]
fn a_ping_works_in_a_new_network_namespace() {
    let name = "check::tests::sockets::a_ping_works_in_a_new_network_namespace";
    if std::env::var_os("VIRT_CDP_TEST_INSIDE").is_some() {
        let report = Scene::new().run(&once(CheckKind::Ping, 2000));
        assert_eq!(report.verdict, Verdict::Proved, "{}", report.why);
        return;
    }
    if !is_root() {
        eprintln!("SKIPPED: a network namespace needs root");
        return;
    }
    let inside = "ip link set lo up && exec \"$0\" --exact \"$1\"";
    let out = Command::new("unshare")
        .args(["--net", "sh", "-c", inside])
        .arg(std::env::current_exe().unwrap())
        .arg(name)
        .env("VIRT_CDP_TEST_INSIDE", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    if said.contains("unshare failed") || said.contains("ip: not found") {
        eprintln!("SKIPPED: {said}");
        return;
    }
    assert!(out.status.success(), "{out:?}");
    assert!(String::from_utf8_lossy(&out.stdout).contains("1 passed"));
}
