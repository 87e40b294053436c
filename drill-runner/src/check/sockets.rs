//! Looking at all addresses of a machine at once: the first one at which what is expected is seen will do.
//!
//! Invariant: the cause that is told is that of the best address.

use std::{io, net::IpAddr};

use tokio::task::JoinSet;

use super::{
    Place,
    bound::Bound,
    seen::{Come, Seen},
};

/// How many addresses of a machine are looked at.
const ADDRESSES_MAX: usize = 8;

/// Looks at every address, as soon as one is known; `doing` says what did not happen if the time is over.
pub(super) fn at_each<F>(
    place: &Place<'_>,
    bound: &Bound<'_>,
    doing: &str,
    look: impl Fn(IpAddr) -> F,
) -> Seen
where
    F: Future<Output = Seen> + Send + 'static,
{
    let mut addresses = place.addresses_within(bound, bound.left());
    addresses.truncate(ADDRESSES_MAX);
    let Some(best) = addresses.first().copied() else {
        return match place.facts.has_network {
            true => Seen::not_yet("its address is not known yet"),
            false => Seen::never("no network card of it is in a network of the drill"),
        };
    };
    let mut of_best = None;
    let all = async {
        let mut set = JoinSet::new();
        for ip in &addresses {
            let (ip, looking) = (*ip, look(*ip));
            set.spawn(async move { (ip, looking.await) });
        }
        let mut other = None;
        while let Some(done) = set.join_next().await {
            match done {
                Ok((_, seen)) if seen.come == Come::Passed => return Some(seen),
                Ok((ip, seen)) if ip == best => of_best = Some(seen),
                Ok((_, seen)) => other = Some(seen),
                Err(_) => {}
            }
        }
        other
    };
    match bound.within(all) {
        Ok(Some(Some(seen))) if seen.come == Come::Passed => seen,
        Ok(Some(other)) => of_best
            .or(other)
            .unwrap_or_else(|| Seen::broken("nothing came of it")),
        Ok(None) => of_best.unwrap_or_else(|| Seen::stopped(bound, doing)),
        Err(error) => Seen::broken(format!("there can be no sockets: {}", cause(&error))),
    }
}

/// An error of the system, as it stands in a sentence: `connection refused`.
pub(super) fn cause(error: &io::Error) -> String {
    let said = error.to_string();
    let said = said.split(" (os error").next().unwrap_or_default();
    let mut letters = said.chars();
    match letters.next() {
        Some(first) => first.to_lowercase().chain(letters).collect(),
        None => error.kind().to_string(),
    }
}
