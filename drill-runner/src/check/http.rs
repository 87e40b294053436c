//! The check `http`: a web server answers with the right status and body.
//!
//! The client takes no proxy from the environment, looks up no names, does not check certificates (a drill is no place they
//! are made for) and follows redirects within the same host only. A redirect to elsewhere is an answer like any other.
//!
//! Invariant: of a body at most [`BODY_MAX`] bytes are read.

use std::{
    error::Error as _,
    io,
    net::{IpAddr, SocketAddr},
};

use reqwest::{Client, Response, Url, header, redirect::Policy};

use super::{
    Place,
    bound::Bound,
    seen::Seen,
    sockets::{at_each, cause},
    words,
};
use crate::plan::Pattern;

/// How much of a body is read.
const BODY_MAX: usize = 1 << 20;
/// How many redirects are followed.
const REDIRECTS_MAX: usize = 5;

/// What is asked for, and what must be answered.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub(super) tls: bool,
    pub(super) port: u16,
    pub(super) path: String,
    pub(super) host: Option<String>,
    pub(super) status: Option<u16>,
    pub(super) body: Option<Pattern>,
}

/// Asks once.
pub(super) fn attempt(wanted: &Wanted, place: &Place<'_>, bound: &Bound<'_>) -> Seen {
    at_each(place, bound, "no whole answer", |ip| {
        let wanted = wanted.clone();
        async move { ask(&wanted, ip).await }
    })
}

async fn ask(wanted: &Wanted, ip: IpAddr) -> Seen {
    let (client, url) = match client(wanted, ip) {
        Ok(made) => made,
        Err(why) => return Seen::broken(why),
    };
    let mut request = client.get(url);
    if let Some(host) = &wanted.host {
        request = request.header(header::HOST, host);
    }
    let mut response = match request.send().await {
        Ok(response) => response,
        Err(error) => return Seen::not_yet(trouble(&error)),
    };
    let status = response.status();
    let code = status.as_u16();
    let is_right = match wanted.status {
        Some(status) => code == status,
        None => (200..400).contains(&code),
    };
    let body = read(&mut response).await;
    let (bytes, broke) = match &body {
        Ok(bytes) => (bytes, None),
        Err((bytes, why)) => (bytes, Some(why)),
    };
    let text = String::from_utf8_lossy(bytes);
    let seen = if !is_right {
        let expected = match wanted.status {
            Some(status) => status.to_string(),
            None => "one from 200 to 399".into(),
        };
        Seen::not_yet(format!("status {status} where {expected} was expected"))
    } else if let Some(pattern) = wanted.body.as_ref().filter(|one| !one.0.is_match(&text)) {
        let after = match broke {
            Some(why) => format!(", and it ended early: {why}"),
            None if bytes.len() >= BODY_MAX => ", in its first 1 MiB".to_owned(),
            None => String::new(),
        };
        Seen::not_yet(format!(
            "status {status}, but nothing in the body is like {}{after}",
            words::pattern(pattern)
        ))
    } else if let (Some(why), None) = (broke, &wanted.body) {
        Seen::not_yet(format!("status {status}, but the body ended early: {why}"))
    } else {
        Seen::passed(format!("{ip} answered with status {status}"))
    };
    seen.with_output(&text)
}

/// A client, and the address of the page. A name is given to the client with the machine's address, so that it is in the
/// TLS handshake, too, and redirects to it stay with the machine.
fn client(wanted: &Wanted, ip: IpAddr) -> Result<(Client, Url), String> {
    // A second call finds that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let scheme = if wanted.tls { "https" } else { "http" };
    let at = SocketAddr::new(ip, wanted.port);
    let url = |host: &str| Url::parse(&format!("{scheme}://{host}:{}{}", wanted.port, wanted.path));
    let mut builder = Client::builder()
        .no_proxy()
        .tls_danger_accept_invalid_certs(true)
        .redirect(Policy::custom(|attempt| {
            let first = attempt.previous().first().and_then(Url::host);
            match first == attempt.url().host() && attempt.previous().len() <= REDIRECTS_MAX {
                true => attempt.follow(),
                false => attempt.stop(),
            }
        }))
        .user_agent(concat!("virt-cdp-drill/", env!("CARGO_PKG_VERSION")));
    let address = match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    };
    let mut page = url(&address);
    // A host with a port, or one that is an address, stands in the header only.
    if let Some(name) = &wanted.host
        && let Ok(named) = url(name)
        && named.domain() == Some(name.to_ascii_lowercase().as_str())
    {
        builder = builder.resolve(name, at);
        page = Ok(named);
    }
    let page = page.map_err(|error| format!("`{}` is no path: {error}", wanted.path))?;
    let client = builder
        .build()
        .map_err(|error| format!("there is no HTTP client: {}", trouble(&error)))?;
    Ok((client, page))
}

/// The body, or as much as is read of it and why no more came.
async fn read(response: &mut Response) -> Result<Vec<u8>, (Vec<u8>, String)> {
    let mut body = Vec::new();
    while body.len() < BODY_MAX {
        match response.chunk().await {
            Ok(Some(piece)) => {
                let room = (BODY_MAX - body.len()).min(piece.len());
                body.extend_from_slice(piece.get(..room).unwrap_or_default());
            }
            Ok(None) => break,
            Err(error) => return Err((body, trouble(&error))),
        }
    }
    Ok(body)
}

/// The innermost cause: the one that a sysadmin knows.
fn trouble(error: &reqwest::Error) -> String {
    let mut source = error.source();
    let mut said = error.to_string();
    while let Some(inner) = source {
        said = match inner.downcast_ref::<io::Error>() {
            Some(io) => cause(io),
            None => inner.to_string(),
        };
        source = inner.source();
    }
    said
}
