//! The webhook against servers that fail first, hang, refuse, or are not there.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::Instant,
};

use serde_json::Value;

use super::*;
use crate::engine::alerts::Severity;

const SOON: Duration = Duration::from_secs(20);
const QUICK: Tries = Tries {
    most: 4,
    first_pause: Duration::from_millis(20),
    deadline: Duration::from_millis(300),
};

/// A request as it came: its head in lower case, and its body.
#[derive(Debug)]
struct Got {
    head: String,
    body: Value,
}

/// Serves connections one after the other, each by what is said for it, the last for all that follow.
fn server(answers: &'static [&'static str]) -> (reqwest::Url, mpsc::Receiver<Got>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let (send, got) = mpsc::channel();
    thread::spawn(move || {
        let mut open = Vec::new();
        for (at, stream) in listener.incoming().enumerate() {
            let mut stream = stream.unwrap();
            let answer = answers[at.min(answers.len() - 1)];
            let _ = send.send(read(&stream));
            match answer {
                // It says nothing, and does not hang up either.
                "hang" => open.push(stream),
                "close" => drop(stream),
                status => {
                    let answer = format!(
                        "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                    );
                    let _ = stream.write_all(answer.as_bytes());
                }
            }
        }
    });
    (reqwest::Url::parse(&url).unwrap(), got)
}

fn read(stream: &TcpStream) -> Got {
    let mut reader = BufReader::new(stream);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let line = line.trim_end().to_owned();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length: ") {
            length = value.parse().unwrap();
        }
        head.push_str(&line);
        head.push('\n');
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    Got {
        head,
        body: serde_json::from_slice(&body).unwrap(),
    }
}

fn alert(key: &'static str) -> Alert {
    Alert {
        key,
        machine: "web".into(),
        severity: Severity::Critical,
        since: Timestamp(1_767_323_045_123_456_789),
        text: "a \"gap\"".into(),
    }
}

fn counts(delivered: u64, failed: u64, dropped: u64) -> WebhookCounts {
    WebhookCounts {
        delivered,
        failed,
        dropped,
    }
}

#[track_caller]
fn wait_for(webhook: &Webhook, expected: WebhookCounts) {
    let give_up = Instant::now() + SOON;
    while webhook.counts() != expected && Instant::now() < give_up {
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(webhook.counts(), expected);
}

#[test]
fn a_message_has_the_form_that_is_promised() {
    let (url, got) = server(&["204 No Content"]);
    let webhook = Webhook::start_with(url, Some("t0ps3cret".into()), QUICK).unwrap();
    let at = Timestamp(1_767_323_048_500_000_000);
    webhook.send(&Change::Raised(alert("gap")), at);
    webhook.send(&Change::Cleared(alert("gap")), at);
    let (first, second) = (
        got.recv_timeout(SOON).unwrap(),
        got.recv_timeout(SOON).unwrap(),
    );
    wait_for(&webhook, counts(2, 0, 0));
    assert!(first.head.starts_with("POST /hook HTTP/1.1\n"), "{first:?}");
    let head = first.head.to_lowercase();
    assert!(
        head.contains("\nauthorization: bearer t0ps3cret\n"),
        "{head}"
    );
    assert!(
        head.contains("\ncontent-type: application/json\n"),
        "{head}"
    );
    let id = |got: &Got| got.body["id"].as_str().unwrap().to_owned();
    let (run, number) = (id(&first), id(&second));
    assert!(
        run.ends_with("-0") && number.ends_with("-1"),
        "{run} {number}"
    );
    let host = host_name();
    assert!(!host.is_empty());
    assert_eq!(
        first.body,
        serde_json::json!({
            "version": 1, "id": run, "event": "raised", "key": "gap", "machine": "web", "severity": "critical",
            "text": "a \"gap\"", "since": "2026-01-02T03:04:05.123Z", "time": "2026-01-02T03:04:08.500Z", "host": host,
        })
    );
    assert_eq!(second.body["event"], "cleared");
    // Neither shows itself.
    assert_eq!(format!("{:?}", webhook.shared.token), "Some((secret))");
}

#[test]
fn a_server_that_fails_first_and_takes_later_gets_everything_once_and_in_order() {
    let (url, got) = server(&["503 Busy", "close", "hang", "200 OK"]);
    let webhook = Webhook::start_with(url, None, QUICK).unwrap();
    for key in ["one", "two", "three"] {
        webhook.send(&Change::Raised(alert(key)), Timestamp(0));
    }
    wait_for(&webhook, counts(3, 0, 0));
    let keys: Vec<String> = got
        .try_iter()
        .map(|got| got.body["key"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(keys, ["one", "one", "one", "one", "two", "three"]);
}

#[test]
fn what_is_refused_for_good_is_not_tried_again_and_a_redirect_is_not_followed() {
    let (url, got) = server(&[
        "401 No",
        "302 Found\r\nLocation: http://127.0.0.1:1/",
        "200 OK",
    ]);
    let webhook = Webhook::start_with(url, Some("token".into()), QUICK).unwrap();
    for key in ["one", "two", "three"] {
        webhook.send(&Change::Raised(alert(key)), Timestamp(0));
    }
    wait_for(&webhook, counts(1, 2, 0));
    assert_eq!(got.try_iter().count(), 3);
}

#[test]
fn a_server_that_hangs_or_is_not_there_is_given_up_and_holds_nobody_up() {
    let hanging = server(&["hang"]).0;
    let gone = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        reqwest::Url::parse(&format!("http://{}/", listener.local_addr().unwrap())).unwrap()
    };
    for (url, least) in [
        (hanging, QUICK.deadline * QUICK.most),
        (gone, Duration::ZERO),
    ] {
        let webhook = Webhook::start_with(url, None, QUICK).unwrap();
        let begun = Instant::now();
        webhook.send(&Change::Raised(alert("gap")), Timestamp(0));
        assert!(
            begun.elapsed() < Duration::from_millis(100),
            "it waits for nothing"
        );
        wait_for(&webhook, counts(0, 1, 0));
        // Pauses of 20, 40 and 80 ms.
        let took = begun.elapsed();
        assert!(took >= least + Duration::from_millis(140), "{took:?}");
        assert!(took < least + Duration::from_secs(2), "{took:?}");
    }
}

#[test]
fn when_too_many_wait_the_oldest_is_dropped() {
    let (url, got) = server(&["hang", "200 OK"]);
    let slow = Tries {
        deadline: Duration::from_secs(2),
        ..QUICK
    };
    let webhook = Webhook::start_with(url, None, slow).unwrap();
    webhook.send(&Change::Raised(alert("first")), Timestamp(0));
    // It is under way; everything else waits behind it.
    assert_eq!(got.recv_timeout(SOON).unwrap().body["key"], "first");
    for _ in 0..3 {
        webhook.send(&Change::Raised(alert("early")), Timestamp(0));
    }
    for _ in 0..QUEUE_MAX {
        webhook.send(&Change::Raised(alert("late")), Timestamp(0));
    }
    assert_eq!(webhook.counts(), counts(0, 0, 3));
    let kept = u64::try_from(QUEUE_MAX).unwrap();
    wait_for(&webhook, counts(1 + kept, 0, 3));
    let early = got.try_iter().filter(|got| got.body["key"] == "early");
    assert_eq!(early.count(), 0);
}

#[test]
fn nobody_is_waited_for_at_the_end() {
    let (url, got) = server(&["hang"]);
    let patient = Tries {
        deadline: Duration::from_secs(3600),
        ..QUICK
    };
    let webhook = Webhook::start_with(url, None, patient).unwrap();
    webhook.send(&Change::Raised(alert("gap")), Timestamp(0));
    got.recv_timeout(SOON).unwrap();
    let shared = Arc::downgrade(&webhook.shared);
    drop(webhook);
    let give_up = Instant::now() + SOON;
    while shared.upgrade().is_some() && Instant::now() < give_up {
        thread::sleep(Duration::from_millis(5));
    }
    assert!(shared.upgrade().is_none(), "its thread has ended");
}

#[test]
fn tls_is_spoken_where_the_url_says_so() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}/", listener.local_addr().unwrap());
    let once = Tries { most: 1, ..QUICK };
    let webhook = Webhook::start_with(reqwest::Url::parse(&url).unwrap(), None, once).unwrap();
    webhook.send(&Change::Raised(alert("gap")), Timestamp(0));
    let (mut stream, _) = listener.accept().unwrap();
    let mut record = [0; 3];
    stream.read_exact(&mut record).unwrap();
    // A handshake record of TLS, and no word of the message in clear.
    assert_eq!(record, [0x16, 3, 1]);
    drop(stream);
    wait_for(&webhook, counts(0, 1, 0));
}
