//! `protect`: puts a machine under protection and waits for its seed.

use std::path::PathBuf;

use clap::ValueEnum;

use super::{
    client::Pause,
    error::{CliError, CliResult},
    info, json,
    progress::{Meter, POLL_INTERVAL},
    session::{Reader, Session},
};
use crate::{
    api::v1,
    daemon::config::FLUSH_INTERVAL,
    units::{format_duration, format_size, parse_duration},
};

/// Protects a machine: from now on every write is kept
///
/// The guest goes on running. Its disks are read once (the seed) while its writes are already captured;
/// when the seed is complete the machine can be viewed at any second from then on. Of a machine that is
/// protected already, disks plugged in since are taken in by naming them with --disk, and --ack and
/// --flush-interval are changed at once, without a gap.
///
/// Ctrl-C while waiting leaves the protection running.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The libvirt domain (name or UUID); with --qmp the name to give the machine
    #[arg(value_name = "DOMAIN")]
    name: String,

    /// Only this disk (by its target, as `vda`); may be given several times [default: all that can be]
    #[arg(long, value_name = "TARGET", conflicts_with = "qmp")]
    disk: Vec<String>,

    /// A QEMU or qemu-storage-daemon without libvirt, by its QMP socket
    #[arg(long, value_name = "SOCKET")]
    qmp: Option<PathBuf>,

    /// Only this block node, with --qmp; may be given several times [default: all that can be]
    #[arg(long, value_name = "NODE", requires = "qmp")]
    node: Vec<String>,

    /// When this machine's writes are acknowledged: from memory, or after the journal's sync; `default`: as the daemon
    /// is configured
    #[arg(long, value_enum, value_name = "RULE")]
    ack: Option<Ack>,

    /// The longest time a buffered write of this machine waits for stable storage, as `50ms`; `default`: as the daemon
    /// is configured
    #[arg(long, value_name = "TIME", value_parser = flush_interval)]
    flush_interval: Option<FlushInterval>,

    /// Returns at once, without waiting for the seed
    #[arg(long)]
    no_wait: bool,
}

/// When writes are acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Ack {
    Buffered,
    Durable,
    Default,
}

/// Milliseconds, 0 for what is configured.
#[derive(Debug, Clone, Copy)]
struct FlushInterval(u64);

fn flush_interval(text: &str) -> Result<FlushInterval, String> {
    if text == "default" {
        return Ok(FlushInterval(0));
    }
    let asked = parse_duration(text).map_err(|error| error.to_string())?;
    if !FLUSH_INTERVAL.contains(asked) {
        let (least, most) = FLUSH_INTERVAL.named(format_duration);
        return Err(format!("give {least} to {most}, or default"));
    }
    u64::try_from(asked.as_millis())
        .map(FlushInterval)
        .map_err(|error| error.to_string())
}

pub(super) fn run(args: Args, session: &mut Session) -> CliResult {
    let qmp_socket = match &args.qmp {
        None => String::new(),
        Some(path) => absolute_text(path)?,
    };
    let request = v1::ProtectRequest {
        name: args.name,
        qmp_socket,
        disks: args.disk,
        nodes: args.node,
        ack: match args.ack {
            None => String::new(),
            Some(Ack::Buffered) => "buffered".into(),
            Some(Ack::Durable) => "durable".into(),
            Some(Ack::Default) => "default".into(),
        },
        flush_interval_ms: args.flush_interval.map(|interval| interval.0),
    };
    let changes_pace = !request.ack.is_empty() || request.flush_interval_ms.is_some();
    let mut machine = session
        .client
        .call(async |api| api.protect(request).await)?;
    if session.reader == Reader::People {
        let volume =
            |volume: &v1::Volume| format!("{} ({})", volume.target, format_size(volume.size_bytes));
        let volumes: Vec<_> = machine.volumes.iter().map(volume).collect();
        session.say(&format!(
            "{} is being protected: {}",
            machine.name,
            volumes.join(", ")
        ));
        for left_out in &machine.left_out {
            session.say(&format!("left out: {left_out}"));
        }
        if changes_pace {
            let (ack, flush) = (info::ack(&machine), info::flush_interval(&machine));
            session.say(&format!("ack: {ack}; flush interval: {flush}"));
        }
    }
    // A machine that was known before may be asked for nothing else, whatever state it is in.
    let settled = ["suspended", "off", "failed"].contains(&machine.state.as_str());
    let has_to_come = !(changes_pace && settled);
    if has_to_come && !args.no_wait {
        machine = wait_for_seed(session, machine)?;
    }
    session.answer(&json::Machine::from(&machine), || {
        match &machine.newest_point {
            Some(point) => format!(
                "{} is {}; its first point is {}",
                machine.name, machine.state, point.id
            ),
            None => format!("{} is {}", machine.name, machine.state),
        }
    })
}

/// Turns a path into an absolute one that can be sent.
pub(super) fn absolute_text(path: &std::path::Path) -> CliResult<String> {
    let absolute = std::path::absolute(path).map_err(|error| {
        CliError::usage(format!("cannot use the path `{}`: {error}", path.display()))
    })?;
    absolute
        .into_os_string()
        .into_string()
        .map_err(|path| CliError::usage(format!("the path `{}` is not UTF-8", path.display())))
}

fn wait_for_seed(session: &mut Session, mut machine: v1::Machine) -> CliResult<v1::Machine> {
    let mut meter = Meter::new(session.reader);
    loop {
        match machine.state.as_str() {
            "protected" => break,
            "seeding" | "resyncing" | "retrying" => {}
            state => {
                meter.end();
                let detail = match machine.state_detail.as_str() {
                    "" => String::new(),
                    detail => format!(": {detail}"),
                };
                return Err(CliError::failure(format!(
                    "{} is {state}, not protected{detail}",
                    machine.name
                ))
                .hint(format!(
                    "virt-cdp info {0}; it stays registered until `virt-cdp unprotect {0}`",
                    machine.name
                )));
            }
        }
        meter.show(machine.progress.as_ref());
        if session.client.pause(POLL_INTERVAL)? == Pause::Interrupted {
            meter.end();
            return Err(CliError::interrupted(format!(
                "interrupted; the protection of {} goes on",
                machine.name
            ))
            .hint(format!("see how far it is: virt-cdp info {}", machine.name)));
        }
        let request = v1::MachineRequest {
            name: machine.name.clone(),
        };
        machine = session
            .client
            .call(async |api| api.get_machine(request).await)?;
    }
    meter.end();
    Ok(machine)
}
