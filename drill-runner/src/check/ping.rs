//! The check `ping`: echo requests to every address, and an answer from any of them.
//!
//! Requests follow each other while answers are waited for: one that is sent before the guest has its address is lost, and it
//! is the first answer that is to be seen, not the end of the attempt. The sockets are raw ones: a new network namespace lets nobody have the other kind.

use std::{
    net::IpAddr,
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use surge_ping::{Client, Config, ICMP, PingIdentifier, PingSequence, SurgeError};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until, timeout_at},
};

use super::{
    Place,
    bound::Bound,
    seen::{Come, Seen},
    sockets::{at_each, cause},
};

/// Tells the answers of pings apart that are under way at the same time.
static IDENTIFIER: AtomicU16 = AtomicU16::new(0x5c00);
/// The time from one request to the next.
const INTERVAL: Duration = Duration::from_millis(200);
/// What is sent.
const PAYLOAD: [u8; 32] = *b"virt-cdp drill: are you there???";

/// Sends requests and waits for an answer.
pub(super) fn attempt(place: &Place<'_>, bound: &Bound<'_>) -> Seen {
    // One that is slow to answer is waited for until the bound ends it.
    let time = bound.left() + Duration::from_secs(1);
    at_each(place, bound, "no answer to a ping", |ip| once(ip, time))
}

/// Tells whether an address answers a ping within `time`, seen from the network of the calling thread.
#[must_use]
pub fn answers(ip: IpAddr, time: Duration) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let waited = async { tokio::time::timeout(time, once(ip, time)).await };
    runtime.is_ok_and(|runtime| {
        runtime
            .block_on(waited)
            .is_ok_and(|seen| seen.come == Come::Passed)
    })
}

/// Sends requests until one is answered, or none of them can be any more.
async fn once(ip: IpAddr, time: Duration) -> Seen {
    let kind = match ip {
        IpAddr::V4(_) => ICMP::V4,
        IpAddr::V6(_) => ICMP::V6,
    };
    let config = Config::builder()
        .kind(kind)
        .sock_type_hint(socket2::Type::RAW)
        .build();
    let client = match Client::new(&config) {
        Ok(client) => client,
        Err(error) => return Seen::broken(format!("a ping cannot be sent: {}", cause(&error))),
    };
    let until = Instant::now() + time;
    let mut requests = JoinSet::new();
    let mut last = Seen::not_yet(format!("no answer from {ip}"));
    for number in 0_u16.. {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        let client = client.clone();
        requests.spawn(async move { request(&client, ip, number, left).await });
        // Until the next one is due, or an answer is there.
        let due = Instant::now() + INTERVAL.min(left);
        while let Ok(answer) = timeout_at(due, requests.join_next()).await {
            match answer {
                Some(Ok(seen)) if seen.come == Come::Passed => return seen,
                Some(Ok(seen)) => last = seen,
                Some(Err(_)) => {}
                None => sleep_until(due).await,
            }
        }
    }
    last
}

async fn request(client: &Client, ip: IpAddr, number: u16, time: Duration) -> Seen {
    let identifier = PingIdentifier(IDENTIFIER.fetch_add(1, Ordering::Relaxed));
    let mut pinger = client.pinger(ip, identifier).await;
    pinger.timeout(time);
    match pinger.ping(PingSequence(number), &PAYLOAD).await {
        Ok((_, took)) => Seen::passed(format!(
            "{ip} answered after {:.1} ms",
            took.as_secs_f64() * 1000.0
        )),
        Err(SurgeError::Timeout { .. }) => Seen::not_yet(format!("no answer from {ip}")),
        Err(SurgeError::IOError(error)) => Seen::not_yet(format!("{ip}: {}", cause(&error))),
        Err(error) => Seen::not_yet(format!("{ip}: {error}")),
    }
}
