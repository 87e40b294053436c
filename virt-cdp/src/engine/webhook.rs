//! The webhook: tells somebody's HTTP server of every alert that is raised or cleared.
//!
//! Messages wait in a bounded queue; a thread sends one after the other, in order, and tries one again with growing
//! pauses while the server is away or refuses it for now. What has been tried often enough, or is refused for good, is
//! given up with a word in the log; so is the oldest message when too many wait.
//!
//! Invariant: whoever has something to tell waits for nothing. Neither the token nor the URL, which may have secrets in
//! it, gets into a log. A crash loses what waits; what stands then is raised again by the next daemon.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use cdp_core::Timestamp;
use serde::Serialize;
use tokio::sync::Notify;

use super::{
    alerts::{Alert, Change},
    guard,
};
use crate::daemon::config::{self, Secret};

/// Messages that may wait.
const QUEUE_MAX: usize = 256;
/// The version of the message's form.
const VERSION: u32 = 1;

/// How a message is tried.
#[derive(Debug, Clone, Copy)]
struct Tries {
    /// How often at most.
    most: u32,
    /// The pause after the first failure; each one is twice as long as the one before.
    first_pause: Duration,
    /// How long one may take.
    deadline: Duration,
}

/// Six times within two minutes: a server that is restarted is waited for, one that is gone is not.
const TRIES: Tries = Tries {
    most: 6,
    first_pause: Duration::from_secs(2),
    deadline: Duration::from_secs(10),
};

/// What became of the messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct WebhookCounts {
    /// Taken by the server.
    pub(crate) delivered: u64,
    /// Given up: refused for good, or tried often enough.
    pub(crate) failed: u64,
    /// Dropped, because too many waited.
    pub(crate) dropped: u64,
}

/// Sends messages for as long as it is held.
pub(crate) struct Webhook {
    shared: Arc<Shared>,
    host: String,
    /// Of this daemon's run, in front of every message's number.
    run: u64,
    sent: AtomicU64,
}

struct Shared {
    url: reqwest::Url,
    token: Option<Secret>,
    tries: Tries,
    waiting: Mutex<VecDeque<String>>,
    news: Notify,
    is_over: AtomicBool,
    delivered: AtomicU64,
    failed: AtomicU64,
    dropped: AtomicU64,
}

/// A message, as the README has it.
#[derive(Debug, Serialize)]
struct Message<'a> {
    version: u32,
    id: String,
    event: &'static str,
    key: &'a str,
    machine: &'a str,
    severity: &'static str,
    text: &'a str,
    since: String,
    time: String,
    host: &'a str,
}

impl Webhook {
    /// Starts to send to the webhook that is configured; none if there is none.
    ///
    /// # Errors
    /// There is no thread for it, or TLS cannot be set up.
    pub(crate) fn start(alerts: &config::Alerts) -> io::Result<Option<Self>> {
        let Some(url) = &alerts.webhook else {
            return Ok(None);
        };
        let token = alerts.webhook_token.clone();
        Self::start_with(url.clone(), token, TRIES).map(Some)
    }

    fn start_with(url: reqwest::Url, token: Option<Secret>, tries: Tries) -> io::Result<Self> {
        // A second call finds that there is one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .timeout(tries.deadline)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("virtcdpd/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| io::Error::other(error.without_url()))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let shared = Arc::new(Shared {
            url,
            token,
            tries,
            waiting: Mutex::default(),
            news: Notify::new(),
            is_over: AtomicBool::new(false),
            delivered: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        });
        let theirs = Arc::clone(&shared);
        thread::Builder::new()
            .name("webhook".into())
            .spawn(move || {
                runtime.block_on(theirs.deliver(&client));
                // A name that is still being looked up is not waited for.
                runtime.shutdown_background();
            })?;
        let run = super::machine::now().as_nanos();
        Ok(Self {
            shared,
            host: host_name(),
            run,
            sent: AtomicU64::new(0),
        })
    }

    /// Tells of an alert that has come or gone at `at`.
    pub(crate) fn send(&self, change: &Change, at: Timestamp) {
        let (event, alert) = match change {
            Change::Raised(alert) => ("raised", alert),
            Change::Cleared(alert) => ("cleared", alert),
        };
        let number = self.sent.fetch_add(1, Ordering::Relaxed);
        match self.message(event, alert, at, number) {
            Ok(message) => self.shared.queue(message),
            Err(error) => tracing::error!(%error, "an alert cannot be written as JSON"),
        }
    }

    fn message(
        &self,
        event: &'static str,
        alert: &Alert,
        at: Timestamp,
        number: u64,
    ) -> serde_json::Result<String> {
        serde_json::to_string(&Message {
            version: VERSION,
            id: format!("{:x}-{number}", self.run),
            event,
            key: alert.key,
            machine: &alert.machine,
            severity: alert.severity.name(),
            text: &alert.text,
            since: format!("{:.3}", alert.since.to_jiff()),
            time: format!("{:.3}", at.to_jiff()),
            host: &self.host,
        })
    }

    /// Returns what became of the messages so far.
    pub(crate) fn counts(&self) -> WebhookCounts {
        let shared = &self.shared;
        let [delivered, failed, dropped] = [&shared.delivered, &shared.failed, &shared.dropped]
            .map(|count| count.load(Ordering::Relaxed));
        WebhookCounts {
            delivered,
            failed,
            dropped,
        }
    }
}

impl Drop for Webhook {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        self.shared.news.notify_one();
    }
}

/// How a message fared.
enum Outcome {
    Taken,
    /// It may be taken later; why it was not.
    Later(String),
    /// It will not be taken; why.
    Never(String),
}

impl Shared {
    fn queue(&self, message: String) {
        let mut waiting = guard(&self.waiting);
        let is_full = waiting.len() >= QUEUE_MAX;
        if is_full {
            waiting.pop_front();
        }
        waiting.push_back(message);
        drop(waiting);
        if is_full {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            tracing::warn!("too many messages wait for the webhook; the oldest is dropped");
        }
        self.news.notify_one();
    }

    /// Sends what waits, until it is over.
    async fn deliver(&self, client: &reqwest::Client) {
        loop {
            if self.is_over.load(Ordering::Relaxed) {
                return;
            }
            let next = guard(&self.waiting).pop_front();
            let Some(message) = next else {
                self.news.notified().await;
                continue;
            };
            let count = match self.send(client, &message).await {
                Some(true) => &self.delivered,
                Some(false) => &self.failed,
                None => return,
            };
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Sends one message, again and again; true when it was taken, none when it is over meanwhile.
    async fn send(&self, client: &reqwest::Client, message: &str) -> Option<bool> {
        let mut pause = self.tries.first_pause;
        for left in (0..self.tries.most).rev() {
            let outcome = tokio::select! {
                outcome = self.post(client, message) => outcome,
                () = self.over() => return None,
            };
            let why = match outcome {
                Outcome::Taken => return Some(true),
                Outcome::Later(why) if left > 0 => {
                    tracing::debug!(why, left, "the webhook is tried again");
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = self.over() => return None,
                    }
                    pause *= 2;
                    continue;
                }
                Outcome::Later(why) | Outcome::Never(why) => why,
            };
            tracing::warn!(why, message, "the webhook did not take a message");
            return Some(false);
        }
        Some(false)
    }

    /// Waits until nobody holds the webhook any more.
    async fn over(&self) {
        while !self.is_over.load(Ordering::Relaxed) {
            self.news.notified().await;
        }
    }

    async fn post(&self, client: &reqwest::Client, message: &str) -> Outcome {
        let mut request = client
            .post(self.url.clone())
            .header(reqwest::header::CONTENT_TYPE, "application/json")
            .body(message.to_owned());
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.reveal());
        }
        let status = match request.send().await {
            Ok(answer) => answer.status(),
            Err(error) => return Outcome::Later(cause(&error.without_url())),
        };
        let told = || format!("it answered {status}");
        match status.as_u16() {
            200..=299 => Outcome::Taken,
            // Asked to come again: too slow, too many, or not able to.
            408 | 425 | 429 | 500..=599 => Outcome::Later(told()),
            _ => Outcome::Never(told()),
        }
    }
}

/// An error with what is underneath it.
fn cause(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut under = error.source();
    while let Some(error) = under {
        text = format!("{text}: {error}");
        under = error.source();
    }
    text
}

/// The host's name.
pub(super) fn host_name() -> String {
    let names = rustix::system::uname();
    names.nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
#[path = "webhook_tests.rs"]
mod tests;
