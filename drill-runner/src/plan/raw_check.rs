//! A check as it stands in a plan's file, and what of that is right.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Spanned;

use super::{
    CheckKind, CheckPlan, FileSum, Pattern,
    raw::{Result, Wrong, ready, some_duration, wrong},
    short::{plugin_name, sha256},
};

/// The keys of all types; which of them a type has is looked at when it is known.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCheck {
    #[serde(rename = "type")]
    kind: Spanned<String>,
    name: Option<String>,
    deadline: Option<Spanned<String>>,
    interval: Option<Spanned<String>>,
    timeout: Option<Spanned<String>>,
    attempts: Option<Spanned<u32>>,
    port: Option<Spanned<i64>>,
    banner: Option<Spanned<String>>,
    path: Option<Spanned<String>>,
    tls: Option<Spanned<bool>>,
    host: Option<Spanned<String>>,
    status: Option<Spanned<u16>>,
    body: Option<Spanned<String>>,
    args: Option<Spanned<Vec<String>>>,
    exit_code: Option<Spanned<i32>>,
    output: Option<Spanned<String>>,
    command: Option<Spanned<String>>,
    disks: Option<Spanned<Vec<String>>>,
    files: Option<Spanned<BTreeMap<String, String>>>,
    plugin: Option<Spanned<String>>,
    settings: Option<Spanned<serde_json::Map<String, serde_json::Value>>>,
    ready: Option<Spanned<String>>,
}

/// The keys a type of check may have besides those that all have.
fn keys(kind: &str) -> Option<&'static [&'static str]> {
    Some(match kind {
        "agent" | "ping" => &[],
        "boot" => &["ready"],
        "tcp" => &["port", "banner"],
        "http" => &["port", "path", "tls", "host", "status", "body"],
        "script" => &["path", "args", "exit_code", "output"],
        "exec" => &["command", "exit_code", "output"],
        "fsck" => &["disks"],
        "files" => &["files"],
        "plugin" => &["plugin", "settings"],
        _ => return None,
    })
}

impl RawCheck {
    /// The keys that only some types have, and where they are.
    fn given(&self) -> Vec<(&'static str, usize)> {
        fn at<T>(key: &'static str, value: &Option<Spanned<T>>) -> Option<(&'static str, usize)> {
            value.as_ref().map(|value| (key, value.span().start))
        }
        [
            at("port", &self.port),
            at("banner", &self.banner),
            at("path", &self.path),
            at("tls", &self.tls),
            at("host", &self.host),
            at("status", &self.status),
            at("body", &self.body),
            at("args", &self.args),
            at("exit_code", &self.exit_code),
            at("output", &self.output),
            at("command", &self.command),
            at("disks", &self.disks),
            at("files", &self.files),
            at("plugin", &self.plugin),
            at("settings", &self.settings),
            at("ready", &self.ready),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

pub(super) fn check(spanned: Spanned<RawCheck>) -> Result<CheckPlan> {
    let start = spanned.span().start;
    let raw = spanned.into_inner();
    let kind_at = raw.kind.span().start;
    let Some(known) = keys(raw.kind.as_ref()) else {
        return wrong(
            kind_at,
            format!("there is no type of check `{}`", raw.kind.as_ref()),
            "give agent, boot, ping, tcp, http, script, exec, fsck, files or plugin",
        );
    };
    if let Some((key, at)) = raw
        .given()
        .into_iter()
        .find(|(key, _)| !known.contains(key))
    {
        let hint = match known {
            [] => "take it away".to_owned(),
            known => format!("known here are {}", known.join(", ")),
        };
        let what = format!("a check of type `{}` has no `{key}`", raw.kind.as_ref());
        return wrong(at, what, hint);
    }
    if let Some(attempts) = raw.attempts.as_ref().filter(|a| *a.as_ref() == 0) {
        return wrong(
            attempts.span().start,
            "no attempt proves nothing",
            "give 1 or more",
        );
    }
    let missing = |key: &str| Wrong {
        at: start,
        what: format!("the check of type `{}` has no `{key}`", raw.kind.as_ref()),
        hint: format!("add {key} = ..."),
    };
    let kind = match raw.kind.as_ref().as_str() {
        "agent" => CheckKind::Agent,
        "ping" => CheckKind::Ping,
        "boot" => CheckKind::Boot(
            raw.ready
                .as_ref()
                .map(ready)
                .transpose()?
                .unwrap_or_default(),
        ),
        "tcp" => CheckKind::Tcp {
            port: port(raw.port.as_ref().ok_or_else(|| missing("port"))?)?,
            banner: pattern(raw.banner.as_ref())?,
        },
        "http" => http(&raw)?,
        "script" => {
            let path = raw.path.as_ref().ok_or_else(|| missing("path"))?;
            if !path.as_ref().starts_with('/') {
                return wrong(
                    path.span().start,
                    format!("{:?} is no absolute path", path.as_ref().as_str()),
                    "start it with /",
                );
            }
            CheckKind::Script {
                path: path.as_ref().into(),
                args: raw.args.map(Spanned::into_inner).unwrap_or_default(),
                exit_code: raw.exit_code.map_or(0, Spanned::into_inner),
                output: pattern(raw.output.as_ref())?,
            }
        }
        "exec" => CheckKind::Exec {
            command: raw
                .command
                .as_ref()
                .ok_or_else(|| missing("command"))?
                .as_ref()
                .clone(),
            exit_code: raw.exit_code.map_or(0, Spanned::into_inner),
            output: pattern(raw.output.as_ref())?,
        },
        "fsck" => CheckKind::Fsck {
            disks: raw.disks.map(Spanned::into_inner).unwrap_or_default(),
        },
        "files" => {
            let files = raw.files.as_ref().ok_or_else(|| missing("files"))?;
            let at = files.span().start;
            if files.as_ref().is_empty() {
                return wrong(at, "there is no file in it", "give \"/path\" = \"SHA-256\"");
            }
            let sums = files.as_ref().iter().map(|(path, sum)| match sha256(sum) {
                Ok(sha256) => Ok(FileSum {
                    path: path.clone(),
                    sha256,
                }),
                Err(what) => wrong(at, what, "take it from sha256sum"),
            });
            CheckKind::Files(sums.collect::<Result<_>>()?)
        }
        _ => {
            let name = raw.plugin.as_ref().ok_or_else(|| missing("plugin"))?;
            let at = name.span().start;
            CheckKind::Plugin {
                name: plugin_name(name.as_ref()).or_else(|what| {
                    wrong(at, what, "name an executable in the folder of plugins")
                })?,
                settings: raw.settings.map(Spanned::into_inner).unwrap_or_default(),
            }
        }
    };
    let usual = CheckPlan::of(kind);
    Ok(CheckPlan {
        name: raw.name,
        deadline: some_duration(raw.deadline, usual.deadline)?,
        interval: some_duration(raw.interval, usual.interval)?,
        timeout: some_duration(raw.timeout, usual.timeout)?,
        attempts: raw.attempts.map(Spanned::into_inner),
        kind: usual.kind,
    })
}

fn http(raw: &RawCheck) -> Result<CheckKind> {
    let tls = raw.tls.as_ref().is_some_and(|tls| *tls.as_ref());
    let port = match &raw.port {
        Some(number) => port(number)?,
        None if tls => 443,
        None => 80,
    };
    let path = raw.path.as_ref();
    if let Some(path) = path.filter(|path| !path.as_ref().starts_with('/')) {
        return wrong(
            path.span().start,
            format!("{:?} is no path", path.as_ref().as_str()),
            "start it with /",
        );
    }
    Ok(CheckKind::Http {
        tls,
        port,
        path: path.map_or_else(|| "/".to_owned(), |path| path.as_ref().clone()),
        host: raw.host.as_ref().map(|host| host.as_ref().clone()),
        status: raw.status.as_ref().map(|status| *status.as_ref()),
        body: pattern(raw.body.as_ref())?,
    })
}

fn port(number: &Spanned<i64>) -> Result<u16> {
    match u16::try_from(*number.as_ref()) {
        Ok(0) | Err(_) => wrong(
            number.span().start,
            format!("{} is no port", number.as_ref()),
            "give 1 to 65535",
        ),
        Ok(port) => Ok(port),
    }
}

fn pattern(text: Option<&Spanned<String>>) -> Result<Option<Pattern>> {
    let Some(text) = text else { return Ok(None) };
    match Pattern::new(text.as_ref()) {
        Ok(pattern) => Ok(Some(pattern)),
        Err(what) => wrong(text.span().start, what, "correct the pattern"),
    }
}
