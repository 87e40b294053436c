//! The daemon's configuration: `/etc/virt-cdp/virtcdpd.toml`.
//!
//! What: [`Config`] is the file, key for key; `plugins/host/virtcdpd.toml` shows every key with its
//! default. How: the file is read once at the start; each value is checked where it is parsed, so that an
//! error names its key and line; flags of the command line then replace paths. There is no reload.
//! Invariant: a `Config` that exists is within all bounds below.

use std::{
    collections::BTreeMap,
    fmt, io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::policy::{self, Policy};
use crate::units;

mod drills;
mod tidy;
mod watching;

pub use drills::{Drills, Window};
pub use tidy::Tidy;
pub use watching::{Alerts, Metrics, Secret};

/// Where the configuration is looked for unless `--config` says otherwise.
pub const DEFAULT_PATH: &str = "/etc/virt-cdp/virtcdpd.toml";
/// Where the daemon listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/virt-cdp/virtcdpd.sock";

const MIB: u64 = 1 << 20;
const POINT_INTERVAL: Bounds<Duration> = Bounds {
    least: Duration::from_secs(1),
    most: Duration::from_secs(86_400),
};
/// Bounds of the flush interval, also of a machine's own.
pub(crate) const FLUSH_INTERVAL: Bounds<Duration> = Bounds {
    least: Duration::from_millis(1),
    most: Duration::from_secs(10),
};
const BITMAP_INTERVAL: Bounds<Duration> = Bounds {
    least: Duration::from_secs(1),
    most: Duration::from_secs(3600),
};
const FREEZE_LIMIT: Bounds<Duration> = Bounds {
    least: Duration::from_secs(1),
    most: Duration::from_secs(60),
};
const BYPASS_DEADLINE: Bounds<Duration> = Bounds {
    least: Duration::from_millis(200),
    most: Duration::from_secs(10),
};
const IO_BUFFER: Bounds<u64> = Bounds {
    least: 48 * MIB,
    most: 256 * MIB,
};
const RESERVE: Bounds<u64> = Bounds {
    least: 0,
    most: 1024 * 1024 * MIB,
};
const SEGMENT_SIZE: Bounds<u64> = Bounds {
    least: MIB,
    most: 1024 * MIB,
};

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Directory in which the harbors lie; one daemon at a time.
    #[serde(deserialize_with = "absolute")]
    pub state_dir: PathBuf,
    /// Path of the API's unix socket.
    #[serde(deserialize_with = "absolute")]
    pub socket: PathBuf,
    /// Directory of the views' sockets; none: the directory of `socket`. Read it with [`Config::run_dir`].
    #[serde(
        deserialize_with = "absolute_or_none",
        serialize_with = "empty_for_none"
    )]
    pub run_dir: Option<PathBuf>,
    /// Group whose members may use the API; none: `virt-cdp` where there is one, else the daemon's own.
    #[serde(
        deserialize_with = "text_or_none",
        serialize_with = "empty_for_no_text"
    )]
    pub socket_group: Option<String>,
    /// What is logged: a level or a tracing filter (`info,virt_cdp=debug`).
    pub log_level: String,
    /// How writes are captured and kept.
    pub capture: Capture,
    /// How points are kept, by name; `default` is always there.
    #[serde(deserialize_with = "policy::configured")]
    pub policy: BTreeMap<String, Policy>,
    /// What is done with what is kept.
    pub tidy: Tidy,
    /// Where takeovers live.
    pub takeover: Takeover,
    /// How drills are held.
    pub drills: Drills,
    /// Which libvirt is asked.
    pub libvirt: Libvirt,
    /// Where figures are served.
    pub metrics: Metrics,
    /// What is told of alerts, and to whom.
    pub alerts: Alerts,
}

/// How writes are captured and kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Capture {
    /// Time between recovery points, 1 s and up.
    #[serde(serialize_with = "put_duration", deserialize_with = "point_interval")]
    pub point_interval: Duration,
    /// Bytes of memory between a machine's taps and its journal, 48 MiB to 256 MiB.
    #[serde(serialize_with = "put_size", deserialize_with = "io_buffer")]
    pub io_buffer: u64,
    /// The longest a buffered write waits for stable storage.
    #[serde(serialize_with = "put_duration", deserialize_with = "flush_interval")]
    pub flush_interval: Duration,
    /// Bytes after which a journal segment is sealed.
    #[serde(serialize_with = "put_size", deserialize_with = "segment_size")]
    pub segment_size: u64,
    /// Bytes of the harbors' file system that stay free, a tenth of it at most; 0: none.
    #[serde(serialize_with = "put_size", deserialize_with = "reserve")]
    pub reserve: u64,
    /// Time between two rounds of dirty bitmap upkeep.
    #[serde(serialize_with = "put_duration", deserialize_with = "bitmap_interval")]
    pub bitmap_interval: Duration,
    /// The longest time from the freezing of a guest's file systems to the sending of the thaw.
    #[serde(serialize_with = "put_duration", deserialize_with = "freeze_limit")]
    pub freeze_limit: Duration,
    /// The longest time a guest's write waits for us before the capture lets it go.
    #[serde(serialize_with = "put_duration", deserialize_with = "bypass_deadline")]
    pub bypass_deadline: Duration,
    /// When a guest's write is acknowledged.
    pub ack: Ack,
}

/// When a guest's write is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ack {
    /// From the IO buffer; on stable storage within the flush interval.
    Buffered,
    /// After the journal's sync.
    Durable,
}

/// Where takeovers live.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Takeover {
    /// Directory of the overlays; QEMU's user must reach it.
    #[serde(deserialize_with = "absolute")]
    pub overlay_dir: PathBuf,
}

/// Which libvirt is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Libvirt {
    /// Its connection URI.
    pub uri: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: "/var/lib/virt-cdp".into(),
            socket: DEFAULT_SOCKET.into(),
            run_dir: None,
            socket_group: None,
            log_level: "info".into(),
            capture: Capture::default(),
            policy: policy::built_in(),
            tidy: Tidy::default(),
            takeover: Takeover::default(),
            drills: Drills::default(),
            libvirt: Libvirt::default(),
            metrics: Metrics::default(),
            alerts: Alerts::default(),
        }
    }
}

impl Default for Capture {
    fn default() -> Self {
        Self {
            point_interval: Duration::from_secs(1),
            io_buffer: 64 * MIB,
            flush_interval: Duration::from_millis(200),
            segment_size: 64 * MIB,
            reserve: 1024 * MIB,
            bitmap_interval: Duration::from_secs(2),
            freeze_limit: Duration::from_secs(5),
            bypass_deadline: Duration::from_secs(1),
            ack: Ack::Buffered,
        }
    }
}

impl Default for Takeover {
    fn default() -> Self {
        Self {
            overlay_dir: "/var/lib/libvirt/images/virt-cdp".into(),
        }
    }
}

impl Default for Libvirt {
    fn default() -> Self {
        Self {
            uri: "qemu:///system".into(),
        }
    }
}

/// Says what is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file says something it may not say.
    #[error("{}, line {line}: {}{what}", path.display(), key.as_ref().map(|k| format!("{k}: ")).unwrap_or_default())]
    Content {
        /// The file.
        path: PathBuf,
        /// Where in it, from 1.
        line: usize,
        /// Which key, with its table.
        key: Option<String>,
        /// What is wrong.
        what: String,
        /// What would be right.
        hint: String,
    },
}

impl ConfigError {
    /// Returns the cure.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Read { .. } => {
                "give --config a file that exists and can be read, or leave it away".into()
            }
            Self::Content { hint, .. } => hint.clone(),
        }
    }
}

impl Config {
    /// Reads the configuration from `path`, or from [`DEFAULT_PATH`] where that exists, else the defaults.
    ///
    /// # Errors
    /// A given file that cannot be read, and any content that is not right.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let file = path.unwrap_or(Path::new(DEFAULT_PATH));
        match std::fs::read_to_string(file) {
            Ok(text) => Self::parse(&text, file),
            Err(error) if error.kind() == io::ErrorKind::NotFound && path.is_none() => {
                Ok(Self::default())
            }
            Err(source) => Err(ConfigError::Read {
                path: file.into(),
                source,
            }),
        }
    }

    /// Parses the text of a configuration file; `path` is for its errors.
    ///
    /// # Errors
    /// Broken TOML, an unknown key, or a value out of its bounds.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error| explain(&error, text, path))
    }

    /// Returns the directory of the views' sockets.
    #[must_use]
    pub fn run_dir(&self) -> &Path {
        match &self.run_dir {
            Some(dir) => dir,
            None => self.socket.parent().unwrap_or(Path::new("/")),
        }
    }
}

/// Turns a TOML error into one that names the key and the line.
fn explain(error: &toml::de::Error, text: &str, path: &Path) -> ConfigError {
    let start = error.span().map_or(0, |span| span.start.min(text.len()));
    let before = text.get(..start).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let message = error.message().replace('\n', "; ");
    let (what, hint) = match message
        .strip_prefix("unknown field `")
        .and_then(|m| m.split_once("`, "))
    {
        Some((field, expected)) => (
            format!("there is no key `{field}`"),
            format!(
                "{} here; plugins/host/virtcdpd.toml shows them all",
                expected.replace("expected", "known is")
            ),
        ),
        None => match message.split_once(HINT_MARK) {
            Some((what, hint)) => (what.into(), hint.into()),
            None => (
                message,
                "correct that line; plugins/host/virtcdpd.toml shows every key with its default"
                    .into(),
            ),
        },
    };
    ConfigError::Content {
        path: path.into(),
        line,
        key: key_on(text, line),
        what,
        hint,
    }
}

/// Returns the key on a line with the table it is in, as `capture.ack`; the table itself on the line of its name.
fn key_on(text: &str, line: usize) -> Option<String> {
    let mut table = "";
    for above in text.lines().take(line) {
        if let Some(name) = above
            .trim()
            .strip_prefix('[')
            .and_then(|l| l.split_once(']'))
        {
            table = name.0;
        }
    }
    let on_line = text.lines().nth(line - 1)?;
    if on_line.trim().starts_with('[') {
        return Some(table.into());
    }
    let key = on_line.split_once('=')?.0.trim();
    Some(if table.is_empty() {
        key.into()
    } else {
        format!("{table}.{key}")
    })
}

/// Stands between what is wrong and its cure in the messages that go through serde.
pub(super) const HINT_MARK: &str = "\u{1}";

/// The least and the most of a value.
pub(crate) struct Bounds<T> {
    pub(super) least: T,
    pub(super) most: T,
}

impl<T: PartialOrd + Copy> Bounds<T> {
    /// Tells whether a value is within.
    pub(crate) fn contains(&self, value: T) -> bool {
        (self.least..=self.most).contains(&value)
    }

    /// Returns the least and the most in words.
    pub(crate) fn named(&self, print: impl Fn(T) -> String) -> (String, String) {
        (print(self.least), print(self.most))
    }

    fn check<E: serde::de::Error>(
        &self,
        value: T,
        given: &str,
        print: impl Fn(T) -> String,
    ) -> Result<T, E> {
        let (least, most) = (print(self.least), print(self.most));
        if value < self.least {
            return Err(E::custom(format!(
                "{given} is below the least, {least}{HINT_MARK}give {least} to {most}"
            )));
        }
        if value > self.most {
            return Err(E::custom(format!(
                "{given} is above the most, {most}{HINT_MARK}give {least} to {most}"
            )));
        }
        Ok(value)
    }
}

pub(super) fn duration<'de, D: Deserializer<'de>>(
    from: D,
    bounds: &Bounds<Duration>,
) -> Result<Duration, D::Error> {
    let text = String::deserialize(from)?;
    let value = units::parse_duration(&text).map_err(|error| {
        D::Error::custom(format!(
            "{error}{HINT_MARK}write it like \"200ms\", \"1s\" or \"5m\""
        ))
    })?;
    bounds.check(value, &text, units::format_duration)
}

pub(super) fn size<'de, D: Deserializer<'de>>(
    from: D,
    bounds: &Bounds<u64>,
) -> Result<u64, D::Error> {
    let text = String::deserialize(from)?;
    let value = units::parse_size(&text).map_err(|error| {
        D::Error::custom(format!(
            "{error}{HINT_MARK}write it like \"64MiB\" or \"1GiB\""
        ))
    })?;
    bounds.check(value, &text, units::exact_size)
}

fn point_interval<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    duration(from, &POINT_INTERVAL)
}

fn flush_interval<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    duration(from, &FLUSH_INTERVAL)
}

fn bitmap_interval<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    duration(from, &BITMAP_INTERVAL)
}

fn freeze_limit<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    duration(from, &FREEZE_LIMIT)
}

fn bypass_deadline<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    duration(from, &BYPASS_DEADLINE)
}

fn io_buffer<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    size(from, &IO_BUFFER)
}

fn segment_size<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    size(from, &SEGMENT_SIZE)
}

fn reserve<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    size(from, &RESERVE)
}

fn absolute<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
    let path = PathBuf::deserialize(from)?;
    if path.is_absolute() {
        return Ok(path);
    }
    Err(D::Error::custom(format!(
        "`{}` is no absolute path{HINT_MARK}start it with /",
        path.display()
    )))
}

fn absolute_or_none<'de, D: Deserializer<'de>>(from: D) -> Result<Option<PathBuf>, D::Error> {
    let path = PathBuf::deserialize(from)?;
    if path.is_absolute() || path.as_os_str().is_empty() {
        return Ok(Some(path).filter(|path| path.is_absolute()));
    }
    Err(D::Error::custom(format!(
        "`{}` is no absolute path{HINT_MARK}start it with /",
        path.display()
    )))
}

fn text_or_none<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    Ok(Some(String::deserialize(from)?).filter(|text| !text.is_empty()))
}

fn empty_for_none<S: Serializer>(path: &Option<PathBuf>, to: S) -> Result<S::Ok, S::Error> {
    path.as_deref().unwrap_or(Path::new("")).serialize(to)
}

fn empty_for_no_text<S: Serializer>(text: &Option<String>, to: S) -> Result<S::Ok, S::Error> {
    text.as_deref().unwrap_or("").serialize(to)
}

pub(super) fn put_duration<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&units::format_duration(*value))
}

fn put_size<S: Serializer>(value: &u64, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&units::exact_size(*value))
}

impl fmt::Display for Ack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Buffered => "buffered",
            Self::Durable => "durable",
        })
    }
}
