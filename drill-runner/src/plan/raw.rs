//! A plan as it stands in its file, and what of that is right.

use std::{net::IpAddr, time::Duration};

use serde::Deserialize;
use toml::Spanned;

use super::{
    BOOT_DEADLINE, CardPlan, DEADLINE, MACHINES_MAX, MachinePlan, MomentCheck, NetworkPlan, Plan,
    PlanError, PointChoice, Ready,
    raw_check::{RawCheck, check},
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

/// The longest name, bytes.
const NAME_MAX: usize = 200;
/// The shortest time that is one.
const TIME_LEAST: Duration = Duration::from_millis(1);

/// Something wrong, at a place in the text.
pub(super) struct Wrong {
    pub(super) at: usize,
    pub(super) what: String,
    pub(super) hint: String,
}

pub(super) type Result<T> = std::result::Result<T, Wrong>;

pub(super) fn wrong<T>(at: usize, what: impl Into<String>, hint: impl Into<String>) -> Result<T> {
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
            units::cut(&all.join("+"), NAME_MAX).to_owned()
        }
    };
    once(raw.networks.iter().map(|one| &one.name), "network")?;
    let networks = raw.networks.into_iter().map(network);
    let networks = networks.collect::<Result<Vec<_>>>()?;
    let machines = raw.machines.into_iter().map(machine);
    Ok(Plan {
        name,
        point,
        deadline: some_duration(raw.deadline, DEADLINE)?,
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
    let is_odd = name.is_empty() || name.len() > NAME_MAX || name.chars().any(char::is_control);
    match is_odd {
        true => wrong(
            at,
            format!("{name:?} is no name for a {what}"),
            "give 1 to 200 characters without control characters",
        ),
        false => Ok(name),
    }
}

/// Checks that nothing is named twice.
fn once<'a>(names: impl Iterator<Item = &'a Spanned<String>>, what: &str) -> Result<()> {
    let mut known: Vec<String> = Vec::new();
    for name in names {
        let plain = name.as_ref().to_ascii_lowercase();
        if known.contains(&plain) {
            let twice = format!("{what} `{}` is there twice", name.as_ref());
            return wrong(name.span().start, twice, "name each once");
        }
        known.push(plain);
    }
    Ok(())
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
pub(super) fn some_duration(text: Option<Spanned<String>>, usual: Duration) -> Result<Duration> {
    let at = text.as_ref().map_or(0, |text| text.span().start);
    match duration(text, usual)? {
        value if value < TIME_LEAST => wrong(at, "that is no time at all", "give at least \"1ms\""),
        value => Ok(value),
    }
}

fn address(text: &Spanned<String>) -> Result<(IpAddr, u8)> {
    let parsed = text.as_ref().split_once('/').and_then(|(ip, prefix)| {
        let ip: IpAddr = ip.parse().ok()?;
        let prefix: u8 = prefix.parse().ok()?;
        let most = if ip.is_ipv4() { 32 } else { 128 };
        (1..=most).contains(&prefix).then_some((ip, prefix))
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
    once(raw.cards.iter().map(|one| &one.card), "network card")?;
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

pub(super) fn ready(text: &Spanned<String>) -> Result<Ready> {
    Ready::parse(text.as_ref()).or_else(|(what, hint)| wrong(text.span().start, what, hint))
}
