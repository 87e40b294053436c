//! The check `tcp`: a port takes a connection, and says by itself what it should.

use std::net::{IpAddr, SocketAddr};

use tokio::{io::AsyncReadExt, net::TcpStream, time::Instant};

use super::{
    Place,
    bound::Bound,
    seen::{Seen, quote},
    sockets::{at_each, cause},
    words,
};
use crate::plan::Pattern;

/// How much of what a server says is read.
const BANNER_MAX: usize = 64 * 1024;

/// Connects, and reads until the pattern is seen.
pub(super) fn attempt(
    port: u16,
    banner: Option<&Pattern>,
    place: &Place<'_>,
    bound: &Bound<'_>,
) -> Seen {
    // What was read is to be told, so the reading ends a little before the attempt does.
    let until = Instant::now() + bound.left().mul_f64(0.98);
    at_each(place, bound, "no connection", |ip| {
        let (banner, whole) = (banner.cloned(), bound.whole());
        async move {
            match tokio::time::timeout_at(until, TcpStream::connect(SocketAddr::new(ip, port)))
                .await
            {
                Ok(Ok(stream)) => match banner {
                    None => Seen::passed(format!("{ip} took a connection")),
                    Some(banner) => listen(stream, ip, &banner, until, &whole).await,
                },
                Ok(Err(error)) => Seen::not_yet(cause(&error)),
                Err(_) => Seen::not_yet(format!("no connection within {whole}")),
            }
        }
    })
}

async fn listen(
    mut stream: TcpStream,
    ip: IpAddr,
    banner: &Pattern,
    until: Instant,
    whole: &str,
) -> Seen {
    let mut said = Vec::new();
    let mut piece = [0_u8; 4096];
    let ended = loop {
        match tokio::time::timeout_at(until, stream.read(&mut piece)).await {
            Err(_) => break format!("within {whole}"),
            Ok(Err(error)) => break format!("before the connection broke ({})", cause(&error)),
            Ok(Ok(0)) => break "before it closed the connection".to_owned(),
            Ok(Ok(read)) => said.extend_from_slice(piece.get(..read).unwrap_or_default()),
        }
        let text = String::from_utf8_lossy(&said);
        if banner.0.is_match(&text) {
            return Seen::passed(format!("{ip} said {}", quote(&text))).with_output(&text);
        }
        if said.len() >= BANNER_MAX {
            break format!("in the first {} KiB", BANNER_MAX / 1024);
        }
    };
    let text = String::from_utf8_lossy(&said);
    let heard = match said.is_empty() {
        true => "it said nothing".to_owned(),
        false => format!("it said {}", quote(&text)),
    };
    let wanted = words::pattern(banner);
    Seen::not_yet(format!("no banner with {wanted} {ended}; {heard}")).with_output(&text)
}
