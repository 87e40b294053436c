//! What the daemon tells of itself: metrics that say what happened, alerts that come and go, and whom they are sent to.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use qemu_hook::monitor::Monitor;
use serde_json::{Value, json};
use virt_cdp_tests::{
    HangingFs,
    daemon::Daemon,
    exposition::{Page, free_port, get},
    nbd::Writer,
    needs,
    storage_daemon::StorageDaemon,
    wait_for,
};

const MACHINE: &str = "told";
const SOON: Duration = Duration::from_secs(40);
/// A scrape, whatever hangs.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Scrapes the daemon, which may not take long, and reads what came strictly; no counter may have fallen since `before`.
fn scrape(port: u16, before: &mut Page) -> Page {
    let begun = Instant::now();
    let answer = get(port).expect("the endpoint answers");
    let took = begun.elapsed();
    assert!(took < AT_ONCE, "a scrape took {took:?}");
    let (head, text) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let page = Page::read(text).unwrap_or_else(|wrong| panic!("{wrong}\n---\n{text}"));
    assert_eq!(page.fallen_since(before), None);
    *before = Page::read(text).expect("it was read");
    page
}

/// Has promtool look at the page, where there is one.
fn lint(port: u16) {
    let has = Command::new("promtool").arg("--version").output().is_ok();
    if !has {
        return eprintln!("promtool is not there; the test's own parser has read the page");
    }
    let answer = get(port).expect("the endpoint answers");
    let (_, text) = answer.split_once("\r\n\r\n").expect("a head");
    let mut tool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("promtool starts");
    let mut input = tool.stdin.take().expect("its input");
    input.write_all(text.as_bytes()).expect("it reads");
    drop(input);
    assert!(tool.wait().expect("it ends").success());
}

fn of(name: &str, labels: &str) -> String {
    format!("{name}{{machine=\"{MACHINE}\"{labels}}}")
}

/// Waits until a series has a value.
fn wait_value(port: u16, before: &mut Page, series: &str, value: f64) -> Page {
    wait_for(series, SOON, || {
        let page = scrape(port, before);
        match page.value(series) {
            Some(found) if found == value => Ok(page),
            found => Err(format!("{found:?}")),
        }
    })
}

/// Takes messages of the webhook; it is not able to at first.
fn receiver() -> (String, mpsc::Receiver<(String, Value)>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/hook", listener.local_addr().expect("an address"));
    let (send, got) = mpsc::channel();
    thread::spawn(move || {
        for (at, stream) in listener.incoming().enumerate() {
            let mut stream = stream.expect("a connection");
            let message = receive(&stream);
            let status = if at == 0 { "503 Later" } else { "204 Taken" };
            let answer =
                format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            let _ = stream.write_all(answer.as_bytes());
            if at > 0 && send.send(message).is_err() {
                return;
            }
        }
    });
    (url, got)
}

fn receive(stream: &TcpStream) -> (String, Value) {
    let mut reader = BufReader::new(stream);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).expect("a line");
        let line = line.trim_end().to_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.parse().expect("a length");
        }
        head.push_str(&line);
        head.push('\n');
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("a body");
    (head, serde_json::from_slice(&body).expect("JSON"))
}

#[test]
fn metrics_count_what_happens_to_a_machine() {
    if !needs(&["qemu-storage-daemon", "qemu-img"]) {
        return;
    }
    let storage = StorageDaemon::start(&[("raw", 16 << 20)]);
    let port = free_port();
    let mut daemon = Daemon::start_with(&format!("[metrics]\nlisten = '{port}'"));
    let mut last = Page::default();
    wait_for("the endpoint", SOON, || {
        get(port).map_err(|e| e.to_string())
    });
    assert!(scrape(port, &mut last).of("virtcdp_points").is_empty());

    let qmp = storage.qmp().display().to_string();
    daemon.ok(&["protect", MACHINE, "--qmp", &qmp, "--node", "disk0"]);
    wait_value(
        port,
        &mut last,
        &of("virtcdp_machine_state", ",state=\"protected\""),
        1.0,
    );
    let socket = storage.serve(1);
    let mut writer = Writer::connect(&socket, "disk0", 4, 0);
    for at in 0..100 {
        writer.write(at * 4096, 4096, |seq| vec![seq as u8 + 1; 4096]);
    }
    writer.zero(1 << 20, 65_536);
    writer.finish();
    let volume = ",volume=\"disk0\"";
    let written = of("virtcdp_captured_writes_total", volume);
    let page = wait_value(port, &mut last, &written, 101.0);
    let value = |series: &str| page.value(series);
    assert_eq!(
        value(&of("virtcdp_captured_bytes_total", volume)),
        Some(409_600.0)
    );
    assert_eq!(
        value(&of("virtcdp_captured_zeroed_bytes_total", volume)),
        Some(65_536.0)
    );
    let waited = |part: &str| {
        value(&of(
            &format!("virtcdp_capture_latency_seconds_{part}"),
            volume,
        ))
    };
    assert_eq!(waited("count"), Some(101.0));
    assert!(
        waited("sum").is_some_and(|s| s > 0.0 && s < 60.0),
        "{:?}",
        waited("sum")
    );
    let states = page.of("virtcdp_machine_state");
    let sum: f64 = states.iter().map(|(_, value)| value).sum();
    assert_eq!((states.len(), sum), (9, 1.0), "{states:?}");
    assert_eq!(value(&of("virtcdp_open_gap_seconds", "")), Some(0.0));
    let sizes = |page: &Page| {
        let [journal, base] =
            ["virtcdp_journal_bytes", "virtcdp_base_bytes"].map(|name| page.value(&of(name, "")));
        journal
            .zip(base)
            .filter(|(j, b)| *j > 409_600.0 && *b > 0.0)
    };
    wait_for("the harbor is measured", SOON, || {
        sizes(&scrape(port, &mut last)).ok_or_else(|| "not yet".into())
    });
    lint(port);

    // QEMU has one NBD server, and a resync needs it.
    storage.stop_serving();
    // Somebody ends the mirror: a gap, which is counted, and the counters go on where they were.
    let jobs = storage.control().execute("query-block-jobs", json!(null));
    let jobs = jobs.expect("jobs");
    let job = jobs[0]["device"].as_str().expect("a job");
    let cancel = json!({"device": job, "force": true});
    storage
        .control()
        .execute("block-job-cancel", cancel)
        .expect("cancelled");
    wait_value(
        port,
        &mut last,
        &of("virtcdp_gaps_total", ",reason=\"resync\""),
        1.0,
    );
    daemon.wait_state(MACHINE, "protected", SOON);
    let page = wait_value(
        port,
        &mut last,
        &of("virtcdp_machine_state", ",state=\"protected\""),
        1.0,
    );
    assert_eq!(
        page.value(&of("virtcdp_gaps_total", ",reason=\"tap-lost\"")),
        Some(1.0)
    );
    let seconds = page.value(&of("virtcdp_gap_seconds_total", ",reason=\"tap-lost\""));
    assert!(seconds.is_some_and(|s| s > 0.0 && s < 60.0), "{seconds:?}");
    assert_eq!(page.value(&written), Some(101.0));

    let status = daemon.json(&["status"]);
    let told = &status["protection"][0];
    assert_eq!(
        (&told["name"], &told["state"]),
        (&json!(MACHINE), &json!("protected"))
    );
    assert_eq!(told["gaps"], 2, "{told}");
    let activity = wait_for("rates are known", SOON, || {
        let info = daemon.json(&["info", MACHINE]);
        let known = info["activity"]["window_ms"].as_u64() > Some(0);
        let activity = info["activity"].clone();
        if known {
            Ok(activity)
        } else {
            Err(activity.to_string())
        }
    });
    assert!(
        activity["bytes_per_second"].as_f64() > Some(0.0),
        "{activity}"
    );
    assert!(activity["latency_p99_us"].as_u64() > Some(0), "{activity}");
    daemon.stop();
}

#[test]
fn a_harbors_disk_that_hangs_keeps_no_scrape_waiting_and_is_an_alert() {
    if !needs(&["qemu-storage-daemon", "fsfreeze", "mkfs.ext4"]) {
        return;
    }
    let storage = StorageDaemon::start(&[("raw", 16 << 20)]);
    let port = free_port();
    let mut daemon = Daemon::start_with(&format!("[metrics]\nlisten = '{port}'"));
    let disk = HangingFs::mount(&daemon.harbors(), &daemon.dir.join("harbors.img"), 700);
    let qmp = storage.qmp().display().to_string();
    daemon.ok(&["protect", MACHINE, "--qmp", &qmp, "--node", "disk0"]);
    daemon.wait_state(MACHINE, "protected", SOON);
    let socket = storage.serve(1);
    let mut last = Page::default();
    wait_value(
        port,
        &mut last,
        &of("virtcdp_machine_state", ",state=\"protected\""),
        1.0,
    );

    disk.hang();
    let mut writer = Writer::connect(&socket, "disk0", 4, 0);
    for at in 0..10 {
        writer.write(at * 4096, 4096, |seq| vec![seq as u8 + 1; 4096]);
    }
    writer.finish();
    let late =
        format!("virtcdp_alert{{key=\"write-late\",machine=\"{MACHINE}\",severity=\"warning\"}}");
    let page = wait_value(port, &mut last, &late, 1.0);
    let age = page.value(&of("virtcdp_unsynced_age_seconds", ""));
    assert!(age.is_some_and(|age| age > 5.0), "{age:?}");
    let begun = Instant::now();
    let status = daemon.json(&["status"]);
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    assert_eq!(status["alerts"][0]["key"], "write-late", "{status}");

    disk.answer();
    wait_for("the alert is over", SOON, || {
        match scrape(port, &mut last).value(&late) {
            None => Ok(()),
            Some(_) => Err("it stands".into()),
        }
    });
    daemon.stop();
}

#[test]
fn alerts_are_shown_logged_once_and_sent() {
    if !needs(&["qemu-storage-daemon"]) {
        return;
    }
    let (url, got) = receiver();
    let mut daemon = Daemon::start_with(&format!(
        "[alerts]\nwebhook = '{url}'\nwebhook_token = 't0ps3cret'"
    ));
    assert_eq!(daemon.json(&["status"])["alerts"], json!([]));
    daemon.stop();
    let broken = daemon.harbors().join("broken");
    std::fs::create_dir(&broken).expect("a harbor that is none");
    daemon.start_again();
    let (head, message) = got.recv_timeout(SOON).expect("it is sent, the second time");
    assert!(head.starts_with("post /hook http/1.1\n"), "{head}");
    assert!(
        head.contains("\nauthorization: bearer t0ps3cret\n"),
        "{head}"
    );
    assert_eq!(message["event"], "raised", "{message}");
    assert_eq!(message["key"], "harbor-closed", "{message}");
    assert_eq!(message["machine"], "broken", "{message}");
    let alert = daemon.json(&["status"])["alerts"][0].clone();
    assert_eq!(alert["key"], "harbor-closed", "{alert}");
    assert_eq!(alert["text"], message["text"]);
    // A while is long enough for it to be said twice.
    thread::sleep(Duration::from_secs(3));
    let log = std::fs::read_to_string(daemon.log_path()).expect("a log");
    let said = log
        .lines()
        .filter(|line| line.contains("key=\"harbor-closed\""));
    assert_eq!(said.count(), 1, "{log}");
    assert!(!log.contains("t0ps3cret") && !log.contains(&url), "{log}");
    assert!(got.try_recv().is_err(), "it is sent once");
    daemon.stop();
}
