//! The keys of what watches over the daemon: metrics, alerts and the webhook.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::{Bounds, HINT_MARK, absolute, duration, put_duration};

const GAP_LIMIT: Bounds<Duration> = Bounds {
    least: Duration::from_secs(1),
    most: Duration::from_secs(86_400),
};

/// Where figures are served.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// Address of the HTTP endpoint; none: there is none.
    #[serde(deserialize_with = "address", serialize_with = "put_address")]
    pub listen: Option<SocketAddr>,
}

/// What is told of alerts, and to whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Alerts {
    /// How long a gap that is not meant may last before it is an alert.
    #[serde(serialize_with = "put_duration", deserialize_with = "gap_limit")]
    pub gap_limit: Duration,
    /// Whom alerts are sent to; none: nobody.
    #[serde(deserialize_with = "url", serialize_with = "put_url")]
    pub webhook: Option<reqwest::Url>,
    /// Sent along, so that the receiver knows whom it is from.
    #[serde(deserialize_with = "token", serialize_with = "put_token")]
    pub webhook_token: Option<Secret>,
    /// The address that mail of alerts goes to; empty: none is sent.
    #[serde(deserialize_with = "mail_address")]
    pub mail_to: String,
    /// The program that takes mail.
    #[serde(deserialize_with = "absolute")]
    pub sendmail: PathBuf,
}

impl Default for Alerts {
    fn default() -> Self {
        Self {
            gap_limit: Duration::from_secs(60),
            webhook: None,
            webhook_token: None,
            mail_to: String::new(),
            sendmail: "/usr/sbin/sendmail".into(),
        }
    }
}

/// A text that is not to be read by everybody: it shows itself only when asked to.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Returns the text.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

fn gap_limit<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    duration(from, &GAP_LIMIT)
}

fn mail_address<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let text = String::deserialize(from)?;
    let is_plain = |c: char| c.is_ascii_graphic() && !matches!(c, '<' | '>' | ',' | ';');
    let is_address = text.contains('@') && !text.starts_with('-') && text.chars().all(is_plain);
    match text.is_empty() || is_address {
        true => Ok(text),
        false => Err(D::Error::custom(format!(
            "`{text}` is no mail address{HINT_MARK}write it like \"ops@example.org\""
        ))),
    }
}

fn address<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SocketAddr>, D::Error> {
    let text = String::deserialize(from)?;
    if text.is_empty() {
        return Ok(None);
    }
    let port = text
        .parse()
        .map(|port: u16| (Ipv4Addr::LOCALHOST, port).into());
    match port.or_else(|_| text.parse()) {
        Ok(address) => Ok(Some(address)),
        Err(_) => Err(D::Error::custom(format!(
            "`{text}` is no address with a port{HINT_MARK}write it like \"127.0.0.1:9123\" or \"[::1]:9123\""
        ))),
    }
}

fn put_address<S: Serializer>(address: &Option<SocketAddr>, to: S) -> Result<S::Ok, S::Error> {
    let text = address.map(|address| address.to_string());
    to.serialize_str(&text.unwrap_or_default())
}

fn url<'de, D: Deserializer<'de>>(from: D) -> Result<Option<reqwest::Url>, D::Error> {
    let text = String::deserialize(from)?;
    if text.is_empty() {
        return Ok(None);
    }
    // What is wrong with it is told without the text, which may have a secret in it.
    let hint = "write it like \"https://example.org/hook\"";
    match reqwest::Url::parse(&text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(Some(url)),
        Ok(url) => Err(D::Error::custom(format!(
            "`{}:` is not spoken{HINT_MARK}{hint}",
            url.scheme()
        ))),
        Err(error) => Err(D::Error::custom(format!(
            "it is no URL: {error}{HINT_MARK}{hint}"
        ))),
    }
}

fn put_url<S: Serializer>(url: &Option<reqwest::Url>, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(url.as_ref().map_or("", reqwest::Url::as_str))
}

fn token<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Secret>, D::Error> {
    let text = String::deserialize(from)?;
    if !text.chars().all(|c| c.is_ascii_graphic()) {
        return Err(D::Error::custom(format!(
            "it has characters that no header may have{HINT_MARK}use letters, digits and ASCII punctuation"
        )));
    }
    Ok((!text.is_empty()).then_some(Secret(text)))
}

fn put_token<S: Serializer>(token: &Option<Secret>, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(token.as_ref().map_or("", Secret::reveal))
}
