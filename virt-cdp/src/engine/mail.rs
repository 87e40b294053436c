//! Mail: tells of every alert that is raised or cleared, by the host's `sendmail`.
//!
//! As the webhook: messages wait in a bounded queue, a thread hands one after the other to the program, and tries one again
//! a few times. What is given up is said in the log.
//!
//! Invariant: whoever has something to tell waits for nothing. A program that hangs is ended.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use cdp_core::Timestamp;

use super::{
    alerts::{Alert, Change},
    webhook::{WebhookCounts, host_name},
};
use crate::daemon::config;

/// Messages that may wait.
const QUEUE_MAX: usize = 256;
/// How often one is tried.
const TRIES: u32 = 3;
/// The pause between two tries.
const PAUSE: Duration = Duration::from_secs(20);
/// How long the program may take.
const DEADLINE: Duration = Duration::from_secs(30);

/// Sends mail for as long as it is held.
pub(crate) struct Mail {
    queue: SyncSender<String>,
    counts: Arc<Counts>,
    to: String,
    host: String,
}

#[derive(Default)]
struct Counts {
    delivered: AtomicU64,
    failed: AtomicU64,
    dropped: AtomicU64,
}

impl Mail {
    /// Starts to send to whom is configured; none if that is nobody.
    ///
    /// # Errors
    /// There is no thread for it.
    pub(crate) fn start(alerts: &config::Alerts) -> io::Result<Option<Self>> {
        if alerts.mail_to.is_empty() {
            return Ok(None);
        }
        let (queue, waiting) = sync_channel(QUEUE_MAX);
        let counts = Arc::new(Counts::default());
        let theirs = Arc::clone(&counts);
        let (program, to) = (alerts.sendmail.clone(), alerts.mail_to.clone());
        thread::Builder::new()
            .name("mail".into())
            .spawn(move || deliver(&waiting, &program, &to, &theirs))?;
        Ok(Some(Self {
            queue,
            counts,
            to: alerts.mail_to.clone(),
            host: host_name(),
        }))
    }

    /// Tells of an alert that has come or gone at `at`.
    pub(crate) fn send(&self, change: &Change, at: Timestamp) {
        let message = message(change, at, &self.to, &self.host);
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) =
            self.queue.try_send(message)
        {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
            tracing::warn!("too much mail waits; a message is dropped");
        }
    }

    /// Returns what became of the messages so far.
    pub(crate) fn counts(&self) -> WebhookCounts {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        WebhookCounts {
            delivered: get(&self.counts.delivered),
            failed: get(&self.counts.failed),
            dropped: get(&self.counts.dropped),
        }
    }
}

/// A message with its headers; nothing in it can begin another header.
fn message(change: &Change, at: Timestamp, to: &str, host: &str) -> String {
    let (event, alert) = match change {
        Change::Raised(alert) => ("raised", alert),
        Change::Cleared(alert) => ("cleared", alert),
    };
    let Alert {
        key,
        machine,
        severity,
        since,
        text,
    } = alert;
    let plain = |text: &str| text.replace(|c: char| c.is_control(), " ");
    let of = match machine.as_str() {
        "" => String::new(),
        machine => format!(" {}", plain(machine)),
    };
    let subject = format!(
        "[virt-cdp] {} {event}: {key}{of} on {host}",
        severity.name()
    );
    let date = at.to_jiff().strftime("%a, %d %b %Y %H:%M:%S +0000");
    format!(
        "To: {to}\nSubject: {subject}\nDate: {date}\nAuto-Submitted: auto-generated\nMIME-Version: 1.0\n\
         Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\n{}\n\nsince {:.3}\n",
        plain(text),
        since.to_jiff(),
    )
}

fn deliver(waiting: &Receiver<String>, program: &PathBuf, to: &str, counts: &Counts) {
    while let Ok(message) = waiting.recv() {
        let mut outcome = hand_over(program, to, &message);
        for _ in 1..TRIES {
            if outcome.is_ok() {
                break;
            }
            thread::sleep(PAUSE);
            outcome = hand_over(program, to, &message);
        }
        match outcome {
            Ok(()) => counts.delivered.fetch_add(1, Ordering::Relaxed),
            Err(why) => {
                tracing::warn!(%why, message, "mail could not be sent");
                counts.failed.fetch_add(1, Ordering::Relaxed)
            }
        };
    }
}

/// Hands a message to the program.
fn hand_over(program: &PathBuf, to: &str, message: &str) -> io::Result<()> {
    let mut child = Command::new(program)
        .args(["-i", "--", to])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    // It fits a pipe, so that a program that reads nothing keeps nobody.
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(message.as_bytes());
    }
    wait(&mut child)
}

fn wait(child: &mut Child) -> io::Result<()> {
    let give_up = Instant::now() + DEADLINE;
    loop {
        match child.try_wait()? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(io::Error::other(format!("it ended with {status}"))),
            None if Instant::now() > give_up => {
                child.kill()?;
                child.wait()?;
                return Err(io::Error::other("it hangs"));
            }
            None => thread::sleep(Duration::from_millis(50)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::alerts::Severity;

    #[test]
    fn mail_goes_through_the_program_and_no_header_can_be_made() {
        use std::os::unix::fs::PermissionsExt;
        let home = tempfile::tempdir().unwrap();
        let (program, got) = (home.path().join("sendmail"), home.path().join("got"));
        let script = format!(
            "#!/bin/sh\n{{ echo \"$@\"; cat; }} > {}.new\nmv {0}.new {0}\n",
            got.display()
        );
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let alerts = config::Alerts {
            mail_to: "ops@example.org".into(),
            sendmail: program,
            ..config::Alerts::default()
        };
        let mail = Mail::start(&alerts).unwrap().unwrap();
        let alert = Alert {
            key: "drill-failed",
            machine: "web\nBcc: all@example.org".into(),
            severity: Severity::Critical,
            since: Timestamp(1_767_323_045_000_000_000),
            text: "tcp:22: refused\nX: y".into(),
        };
        mail.send(&Change::Raised(alert), Timestamp(1_767_323_046_000_000_000));
        let give_up = Instant::now() + Duration::from_secs(10);
        while !got.exists() && Instant::now() < give_up {
            thread::sleep(Duration::from_millis(20));
        }
        let text = std::fs::read_to_string(&got).unwrap();
        assert!(text.starts_with("-i -- ops@example.org\nTo: ops@example.org\nSubject: [virt-cdp] critical raised: drill-failed web Bcc:"), "{text}");
        assert!(
            text.contains("\nDate: Fri, 02 Jan 2026 03:04:06 +0000\n"),
            "{text}"
        );
        assert!(
            !text.contains("\nBcc") && !text.contains("\nX: y"),
            "{text}"
        );
        assert!(
            text.contains("\n\ntcp:22: refused X: y\n\nsince 2026-01-02T03:04:05.000Z\n"),
            "{text}"
        );
        let nobody = config::Alerts::default();
        assert!(Mail::start(&nobody).unwrap().is_none());
    }
}
