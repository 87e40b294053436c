//! A plan as TOML.

use std::time::Duration;

use toml::{Table, Value};

use super::{CheckKind, CheckPlan, MachinePlan, Plan, PointChoice, Ready};
use crate::units::{exact_size, format_duration};

pub(super) fn plan(plan: &Plan) -> String {
    let mut table = Table::new();
    put(&mut table, "name", plan.name.as_str());
    match &plan.point {
        PointChoice::At(moments) => match moments.as_slice() {
            [one] => put(&mut table, "point", one.as_str()),
            all => put(&mut table, "point", all.to_vec()),
        },
        PointChoice::Random { from, to } => {
            let mut random = Table::new();
            put(&mut random, "from", from.as_str());
            put(&mut random, "to", to.as_str());
            put(&mut table, "point", random);
        }
    }
    put(&mut table, "deadline", duration(plan.deadline));
    if plan.keep_on_failure {
        put(&mut table, "keep_on_failure", true);
    }
    let networks = plan.networks.iter().map(|network| {
        let mut table = Table::new();
        put(&mut table, "name", network.name.as_str());
        let (address, prefix) = network.gateway;
        put(&mut table, "gateway", format!("{address}/{prefix}"));
        Value::Table(table)
    });
    let networks: Vec<Value> = networks.collect();
    if !networks.is_empty() {
        put(&mut table, "network", networks);
    }
    let machines: Vec<Value> = plan.machines.iter().map(machine).collect();
    put(&mut table, "machine", machines);
    toml::to_string_pretty(&table).unwrap_or_default()
}

fn put(table: &mut Table, key: &str, value: impl Into<Value>) {
    table.insert(key.to_owned(), value.into());
}

fn duration(value: Duration) -> String {
    format_duration(value)
}

fn machine(machine: &MachinePlan) -> Value {
    let mut table = Table::new();
    put(&mut table, "name", machine.name.as_str());
    if !machine.after.is_empty() {
        put(&mut table, "after", machine.after.clone());
    }
    if !machine.delay.is_zero() {
        put(&mut table, "delay", duration(machine.delay));
    }
    put(&mut table, "ready", ready(&machine.ready));
    put(&mut table, "boot_deadline", duration(machine.boot_deadline));
    if let Some(vcpus) = machine.vcpus {
        put(&mut table, "vcpus", i64::from(vcpus));
    }
    if let Some(memory) = machine.memory {
        put(&mut table, "memory", exact_size(memory));
    }
    if !machine.leave_out.is_empty() {
        put(&mut table, "leave_out", machine.leave_out.clone());
    }
    let cards: Vec<Value> = machine
        .cards
        .iter()
        .map(|card| {
            let mut table = Table::new();
            put(&mut table, "card", card.card.as_str());
            if let Some((address, prefix)) = card.address {
                put(&mut table, "address", format!("{address}/{prefix}"));
            }
            if let Some(network) = &card.network {
                put(&mut table, "network", network.as_str());
            }
            Value::Table(table)
        })
        .collect();
    if !cards.is_empty() {
        put(&mut table, "card", cards);
    }
    let checks: Vec<Value> = machine.checks.iter().map(check).collect();
    if !checks.is_empty() {
        put(&mut table, "check", checks);
    }
    Value::Table(table)
}

fn ready(ready: &Ready) -> String {
    match ready {
        Ready::Auto => "auto".into(),
        Ready::Agent => "agent".into(),
        Ready::Ping => "ping".into(),
        Ready::Screen => "screen".into(),
        Ready::Running => "running".into(),
        Ready::Console(pattern) => format!("console:{}", pattern.text()),
    }
}

fn check(check: &CheckPlan) -> Value {
    let mut table = Table::new();
    let is_plugin = matches!(check.kind, CheckKind::Plugin { .. });
    let kind = if is_plugin {
        "plugin"
    } else {
        check.kind.name()
    };
    put(&mut table, "type", kind);
    if let Some(name) = &check.name {
        put(&mut table, "name", name.as_str());
    }
    match &check.kind {
        CheckKind::Agent | CheckKind::Ping => {}
        CheckKind::Boot(sign) => put(&mut table, "ready", ready(sign)),
        CheckKind::Tcp { port, banner } => {
            put(&mut table, "port", i64::from(*port));
            if let Some(banner) = banner {
                put(&mut table, "banner", banner.text());
            }
        }
        CheckKind::Http {
            tls,
            port,
            path,
            host,
            status,
            body,
        } => {
            put(&mut table, "port", i64::from(*port));
            put(&mut table, "path", path.as_str());
            if *tls {
                put(&mut table, "tls", true);
            }
            if let Some(host) = host {
                put(&mut table, "host", host.as_str());
            }
            if let Some(status) = status {
                put(&mut table, "status", i64::from(*status));
            }
            if let Some(body) = body {
                put(&mut table, "body", body.text());
            }
        }
        CheckKind::Script {
            path,
            args,
            exit_code,
            output,
        } => {
            put(&mut table, "path", path.display().to_string());
            if !args.is_empty() {
                put(&mut table, "args", args.clone());
            }
            outcome(&mut table, *exit_code, output.as_ref());
        }
        CheckKind::Exec {
            command,
            exit_code,
            output,
        } => {
            put(&mut table, "command", command.as_str());
            outcome(&mut table, *exit_code, output.as_ref());
        }
        CheckKind::Fsck { disks } => {
            if !disks.is_empty() {
                put(&mut table, "disks", disks.clone());
            }
        }
        CheckKind::Files(files) => {
            let mut sums = Table::new();
            for file in files {
                put(&mut sums, &file.path, file.sha256.as_str());
            }
            put(&mut table, "files", sums);
        }
        CheckKind::Plugin { name, settings } => {
            put(&mut table, "plugin", name.as_str());
            if let Ok(settings) = Table::try_from(settings)
                && !settings.is_empty()
            {
                put(&mut table, "settings", settings);
            }
        }
    }
    put(&mut table, "deadline", duration(check.deadline));
    put(&mut table, "interval", duration(check.interval));
    put(&mut table, "timeout", duration(check.timeout));
    if let Some(attempts) = check.attempts {
        put(&mut table, "attempts", i64::from(attempts));
    }
    Value::Table(table)
}

fn outcome(table: &mut Table, exit_code: i32, output: Option<&super::Pattern>) {
    if exit_code != 0 {
        put(table, "exit_code", i64::from(exit_code));
    }
    if let Some(output) = output {
        put(table, "output", output.text());
    }
}
