//! The check `ping`: one echo request to every address, and an answer from any of them.
//!
//! The sockets are raw ones: a new network namespace lets nobody have the other kind.

use std::{
    net::IpAddr,
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use surge_ping::{Client, Config, ICMP, PingIdentifier, PingSequence, SurgeError};

use super::{
    Place,
    bound::Bound,
    seen::Seen,
    sockets::{at_each, cause},
};

/// Tells the answers of pings apart that are under way at the same time.
static IDENTIFIER: AtomicU16 = AtomicU16::new(0x5c00);
/// What is sent.
const PAYLOAD: [u8; 32] = *b"virt-cdp drill: are you there???";

/// Sends a request and waits for the answer.
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
            .is_ok_and(|seen| seen.come == super::seen::Come::Passed)
    })
}

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
    let identifier = PingIdentifier(IDENTIFIER.fetch_add(1, Ordering::Relaxed));
    let mut pinger = client.pinger(ip, identifier).await;
    pinger.timeout(time);
    match pinger.ping(PingSequence(1), &PAYLOAD).await {
        Ok((_, took)) => Seen::passed(format!(
            "{ip} answered after {:.1} ms",
            took.as_secs_f64() * 1000.0
        )),
        Err(SurgeError::Timeout { .. }) => Seen::not_yet(format!("no answer from {ip}")),
        Err(SurgeError::IOError(error)) => Seen::not_yet(format!("{ip}: {}", cause(&error))),
        Err(error) => Seen::not_yet(format!("{ip}: {error}")),
    }
}
