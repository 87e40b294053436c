//! A plan as it stands in its file, and what of that is right.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use serde::Deserialize;
use toml::Spanned;

use super::{
    BOOT_DEADLINE, CardPlan, CheckKind, CheckPlan, DEADLINE, FileSum, MACHINES_MAX, MachinePlan,
    MomentCheck, NetworkPlan, Pattern, Plan, PlanError, PointChoice, Ready,
    short::{plugin_name, sha256},
};
use crate::units;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPlan {
    name: Option<Spanned<String>>,
    point: Option<Spanned<toml::Value>>,
    deadline: Option<Spanned<String>>,
    #[serde(default)]
    keep_on_failure: bool,
    #[serde(default, rename = "network")]
    networks: Vec<RawNetwork>,
    #[serde(default, rename = "machine")]
    machines: Vec<RawMachine>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNetwork {
    name: Spanned<String>,
    gateway: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMachine {
    name: Spanned<String>,
    #[serde(default)]
    after: Vec<Spanned<String>>,
    delay: Option<Spanned<String>>,
    ready: Option<Spanned<String>>,
    boot_deadline: Option<Spanned<String>>,
    vcpus: Option<Spanned<u32>>,
    memory: Option<Spanned<String>>,
    #[serde(default)]
    leave_out: Vec<String>,
    #[serde(default, rename = "card")]
    cards: Vec<RawCard>,
    #[serde(default, rename = "check")]
    checks: Vec<Spanned<RawCheck>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCard {
    card: Spanned<String>,
    address: Option<Spanned<String>>,
    network: Option<String>,
}

/// The keys of all types; which of them a type has is looked at when it is known.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCheck {
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

/// Something wrong, at a place in the text.
struct Wrong {
    at: usize,
    what: String,
    hint: String,
}

type Result<T> = std::result::Result<T, Wrong>;

fn wrong<T>(at: usize, what: impl Into<String>, hint: impl Into<String>) -> Result<T> {
    Err(Wrong {
        at,
        what: what.into(),
        hint: hint.into(),
    })
}

pub(super) fn parse(text: &str, moment: MomentCheck<'_>) -> std::result::Result<Plan, PlanError> {
    let line_at = |at: usize| {
        let before = text.get(..at.min(text.len())).unwrap_or(text);
        Some(before.matches('\n').count() + 1)
    };
    let raw: RawPlan = toml::from_str(text).map_err(|error| PlanError {
        line: line_at(error.span().map_or(0, |span| span.start)),
        ..explain(error.message())
    })?;
    plan(raw, moment).map_err(|wrong| PlanError {
        line: line_at(wrong.at),
        what: wrong.what,
        hint: wrong.hint,
    })
}

/// Turns what the TOML reader says into a sentence and its cure.
fn explain(message: &str) -> PlanError {
    let message = message.replace('\n', "; ");
    match message
        .strip_prefix("unknown field `")
        .and_then(|m| m.split_once("`, "))
    {
        Some((field, expected)) => PlanError::new(
            format!("there is no key `{field}` here"),
            expected.replace("expected", "known is"),
        ),
        None => PlanError::new(
            message,
            "correct that line; the README shows a plan with every key",
        ),
    }
}

fn plan(raw: RawPlan, moment: MomentCheck<'_>) -> Result<Plan> {
    if raw.machines.is_empty() {
        return wrong(
            0,
            "the plan has no machine",
            "add a [[machine]] with a name",
        );
    }
    if raw.machines.len() > MACHINES_MAX {
        let what = format!("the plan has more than {MACHINES_MAX} machines");
        return wrong(0, what, "make several plans of it");
    }
    names(&raw.machines)?;
    let point = raw.point.map(|point| choice(point, moment));
    let point = point.transpose()?.unwrap_or_default();
    let name = match raw.name {
        Some(name) => named(name, "plan")?,
        None => {
            let all: Vec<&str> = raw
                .machines
                .iter()
                .map(|m| m.name.as_ref().as_str())
                .collect();
            all.join("+")
        }
    };
    let networks = raw.networks.into_iter().map(network);
    let networks = networks.collect::<Result<Vec<_>>>()?;
    let machines = raw.machines.into_iter().map(machine);
    Ok(Plan {
        name,
        point,
        deadline: duration(raw.deadline, DEADLINE)?,
        keep_on_failure: raw.keep_on_failure,
        machines: machines.collect::<Result<_>>()?,
        networks,
    })
}

/// Checks that every machine is there once, and that what they wait for is there and comes to an end.
fn names(machines: &[RawMachine]) -> Result<()> {
    for (place, machine) in machines.iter().enumerate() {
        let name = machine.name.as_ref();
        let before = machines.iter().take(place);
        if before.map(|m| m.name.as_ref()).any(|other| other == name) {
            let what = format!("machine `{name}` is there twice");
            return wrong(machine.name.span().start, what, "name each machine once");
        }
        for after in &machine.after {
            if !machines.iter().any(|m| m.name.as_ref() == after.as_ref()) {
                let what = format!(
                    "`{name}` waits for `{}`, which is not in the plan",
                    after.as_ref()
                );
                return wrong(
                    after.span().start,
                    what,
                    "name a machine of this plan, or leave it away",
                );
            }
        }
    }
    let mut ready: Vec<&str> = Vec::new();
    loop {
        let mut waiting = machines
            .iter()
            .filter(|m| !ready.contains(&m.name.as_ref().as_str()));
        let Some(first) = waiting.clone().next() else {
            return Ok(());
        };
        let can = waiting.find(|m| m.after.iter().all(|a| ready.contains(&a.as_ref().as_str())));
        match can {
            Some(machine) => ready.push(machine.name.as_ref()),
            None => {
                let at = first.after.first().map_or(0, |after| after.span().start);
                let what = format!(
                    "`{}` waits for something that waits for it",
                    first.name.as_ref()
                );
                return wrong(at, what, "break the circle of `after`");
            }
        }
    }
}

/// From which point: a moment, a list of them, or two to choose between.
fn choice(value: Spanned<toml::Value>, moment: MomentCheck<'_>) -> Result<PointChoice> {
    let at = value.span().start;
    let checked = |value: &toml::Value| {
        let text = value.as_str().ok_or_else(|| no_point(at))?;
        match moment(text) {
            Ok(()) => Ok(text.to_owned()),
            Err(what) => wrong(
                at,
                what,
                "give it as `--at` takes it: `latest`, a point's number, an age, or a time",
            ),
        }
    };
    match value.as_ref() {
        one @ toml::Value::String(_) => Ok(PointChoice::At(vec![checked(one)?])),
        toml::Value::Array(all) if all.is_empty() => {
            wrong(at, "`point` is an empty list", "give at least one moment")
        }
        toml::Value::Array(all) => {
            let all = all.iter().map(checked);
            Ok(PointChoice::At(all.collect::<Result<_>>()?))
        }
        toml::Value::Table(table) => match (table.get("from"), table.get("to"), table.len()) {
            (Some(from), Some(to), 2) => Ok(PointChoice::Random {
                from: checked(from)?,
                to: checked(to)?,
            }),
            _ => Err(no_point(at)),
        },
        _ => Err(no_point(at)),
    }
}

fn no_point(at: usize) -> Wrong {
    Wrong {
        at,
        what: "`point` is no moment, no list of moments, and no { from, to }".into(),
        hint: "write it like \"latest\", [\"1h\", \"2h\"] or { from = \"7d\", to = \"1h\" }".into(),
    }
}

fn named(name: Spanned<String>, what: &str) -> Result<String> {
    let at = name.span().start;
    let name = name.into_inner();
    let is_odd = name.is_empty() || name.len() > 200 || name.chars().any(char::is_control);
    match is_odd {
        true => wrong(
            at,
            format!("{name:?} is no name for a {what}"),
            "give 1 to 200 characters without control characters",
        ),
        false => Ok(name),
    }
}

fn duration(text: Option<Spanned<String>>, usual: Duration) -> Result<Duration> {
    let Some(text) = text else { return Ok(usual) };
    let at = text.span().start;
    match units::parse_duration(text.as_ref()) {
        Ok(value) if value <= Duration::from_secs(7 * 86_400) => Ok(value),
        Ok(_) => wrong(
            at,
            format!("{} is more than a week", text.as_ref()),
            "give less",
        ),
        Err(error) => wrong(
            at,
            error.to_string(),
            "write it like \"500ms\", \"30s\" or \"5m\"",
        ),
    }
}

/// As [`duration`], and not nothing.
fn some_duration(text: Option<Spanned<String>>, usual: Duration) -> Result<Duration> {
    let at = text.as_ref().map_or(0, |text| text.span().start);
    match duration(text, usual)? {
        Duration::ZERO => wrong(at, "that is no time at all", "give at least \"1ms\""),
        value => Ok(value),
    }
}

fn address(text: &Spanned<String>) -> Result<(IpAddr, u8)> {
    let parsed = text.as_ref().split_once('/').and_then(|(ip, prefix)| {
        let ip: IpAddr = ip.parse().ok()?;
        let prefix: u8 = prefix.parse().ok()?;
        let most = if ip.is_ipv4() { 32 } else { 128 };
        (prefix <= most).then_some((ip, prefix))
    });
    match parsed {
        Some(address) => Ok(address),
        None => wrong(
            text.span().start,
            format!(
                "{:?} is no address with a prefix length",
                text.as_ref().as_str()
            ),
            "write it like \"192.168.1.10/24\"",
        ),
    }
}

fn network(raw: RawNetwork) -> Result<NetworkPlan> {
    Ok(NetworkPlan {
        gateway: address(&raw.gateway)?,
        name: named(raw.name, "network")?,
    })
}

fn machine(raw: RawMachine) -> Result<MachinePlan> {
    let memory = match raw.memory {
        None => None,
        Some(text) => {
            let at = text.span().start;
            match units::parse_size(text.as_ref()) {
                Ok(bytes) if bytes >= 1 << 20 => Some(bytes),
                Ok(_) => {
                    return wrong(
                        at,
                        format!("{} is too little memory for a machine", text.as_ref()),
                        "write it like \"512MiB\" or \"2GiB\"",
                    );
                }
                Err(error) => {
                    return wrong(
                        at,
                        error.to_string(),
                        "write it like \"512MiB\" or \"2GiB\"",
                    );
                }
            }
        }
    };
    if let Some(vcpus) = raw.vcpus.as_ref().filter(|vcpus| *vcpus.as_ref() == 0) {
        return wrong(
            vcpus.span().start,
            "a machine needs a vCPU",
            "give 1 or more",
        );
    }
    let cards = raw.cards.into_iter().map(|card| {
        Ok(CardPlan {
            address: card.address.as_ref().map(address).transpose()?,
            card: named(card.card, "network card")?,
            network: card.network,
        })
    });
    let cards = cards.collect::<Result<_>>()?;
    let checks = raw.checks.into_iter().map(check);
    Ok(MachinePlan {
        name: named(raw.name, "machine")?,
        after: raw.after.into_iter().map(Spanned::into_inner).collect(),
        delay: duration(raw.delay, Duration::ZERO)?,
        ready: raw
            .ready
            .as_ref()
            .map(ready)
            .transpose()?
            .unwrap_or_default(),
        boot_deadline: some_duration(raw.boot_deadline, BOOT_DEADLINE)?,
        vcpus: raw.vcpus.map(Spanned::into_inner),
        memory,
        leave_out: raw.leave_out,
        cards,
        checks: checks.collect::<Result<_>>()?,
    })
}

fn ready(text: &Spanned<String>) -> Result<Ready> {
    Ready::parse(text.as_ref()).or_else(|(what, hint)| wrong(text.span().start, what, hint))
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

fn check(spanned: Spanned<RawCheck>) -> Result<CheckPlan> {
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
