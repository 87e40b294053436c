//! `takeover`: starts a new virtual machine from a machine as it was.

use clap::ValueEnum;

use super::{
    at,
    error::{CliError, CliResult},
    job::{OnInterrupt, watch},
    json,
    session::{Reader, Session},
    text::{plain, quoted},
};
use crate::{api::v1, units};

/// Below this, a size was surely meant with a unit.
const MEMORY_LEAST: u64 = 1 << 20;

/// Starts a new virtual machine from a machine as it was, or those of a plan at one moment
///
/// It runs within seconds whatever the size of the disks, as they are read from what is kept while it runs;
/// `takeover-commit` copies the rest, `takeover-discard` removes all of it. The machine itself is not touched. Ctrl-C while those of
/// a plan are started ends that, and removes what was started.
#[derive(Debug, clap::Args)]
#[command(after_long_help = super::AT_HELP)]
pub(super) struct Args {
    /// The machine, or the file of a plan (with a / in it, or ending in .toml), of which the order, sizes and disks count
    #[arg(value_name = "NAME|PLAN")]
    name: String,

    /// The moment: the newest point not later than T is taken
    #[arg(long, value_name = "T")]
    at: String,

    /// The new machine's name; of a plan what the names begin with [default: NAME-takeover-POINT]
    #[arg(long = "name", value_name = "N")]
    new_name: Option<String>,

    /// How many virtual CPUs it gets [default: as it was]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    vcpus: Option<u32>,

    /// How much memory it gets, as 2GiB or 512M [default: as it was]
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,

    /// The libvirt network its interfaces are put on; `none` for no link [default: as it was]
    #[arg(long, value_name = "NET|none")]
    network: Option<String>,

    /// Whether its interfaces keep their MAC addresses
    #[arg(
        long,
        value_name = "keep|new",
        default_value = "new",
        hide_possible_values = true
    )]
    mac: Mac,

    /// The bus its disks are put on, as virtio, scsi or sata [default: as it was]
    #[arg(long, value_name = "BUS")]
    disk_bus: Option<String>,

    /// Leaves it paused instead of letting it run
    #[arg(long)]
    paused: bool,

    /// Also if the point is damaged: what is damaged of it cannot be read, all else can
    #[arg(long)]
    damaged: bool,
}

/// Whether interfaces keep their MAC addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mac {
    Keep,
    New,
}

pub(super) fn run(args: Args, session: &mut Session) -> CliResult {
    if args.name.contains('/') || args.name.ends_with(".toml") {
        return run_plan(args, session);
    }
    let at = at::parse_here(&args.at)?;
    let request = v1::TakeoverRequest {
        name: args.name,
        at: Some(at.newest()),
        new_name: args.new_name.unwrap_or_default(),
        vcpus: args.vcpus.unwrap_or(0),
        memory_bytes: args.memory.as_deref().map(memory).transpose()?.unwrap_or(0),
        network: args.network.unwrap_or_default(),
        mac: match args.mac {
            Mac::Keep => "keep".into(),
            Mac::New => "new".into(),
        },
        disk_bus: args.disk_bus.unwrap_or_default(),
        paused: args.paused,
        damaged: args.damaged,
    };
    let reply = session
        .client
        .call(async |api| api.takeover(request).await)?;
    session.answer(&json::TakenOver::from(&reply), || summary(&reply, at))
}

/// Takes the machines of a plan over.
fn run_plan(args: Args, session: &mut Session) -> CliResult {
    if args.vcpus.is_some() || args.memory.is_some() || args.disk_bus.is_some() || args.damaged {
        return Err(CliError::usage("the plan says how large its machines are")
            .hint("write sizes into the plan"));
    }
    let plan = super::drills::read_plan(&args.name)?;
    let at = at::parse_here(&args.at)?;
    let request = v1::TakeoverGroupRequest {
        plan: plan.to_toml(),
        at: Some(at.newest()),
        network: args.network.unwrap_or_default(),
        mac: match args.mac {
            Mac::Keep => "keep".into(),
            Mac::New => "new".into(),
        },
        paused: args.paused,
        prefix: args.new_name.unwrap_or_default(),
    };
    let job = session
        .client
        .call(async |api| api.takeover_group(request).await)?;
    let (reader, mut told) = (session.reader, 0);
    let job = watch(session, job, OnInterrupt::Cancel, &mut |job| {
        if reader == Reader::People {
            tell(&job.takeovers, &mut told);
        }
    })?;
    let document = json::TakenOverGroup::from(&job);
    session.answer(&document, || {
        let parts = job.takeovers.iter().map(|one| summary(one, at));
        parts.collect::<Vec<_>>().join("\n")
    })
}

/// Tells people of the machines that were started since it was told last.
fn tell(takeovers: &[v1::TakeoverReply], told: &mut usize) {
    for reply in takeovers.iter().skip(*told) {
        let takeover = reply.takeover.clone().unwrap_or_default();
        eprintln!("{} is {}", plain(&takeover.name), plain(&takeover.state));
    }
    // Those of a group that is given up are gone from the job.
    *told = takeovers.len().max(*told);
}

/// Parses a size of memory.
pub(super) fn memory(text: &str) -> CliResult<u64> {
    match units::parse_size(text)? {
        bytes if bytes < MEMORY_LEAST => Err(CliError::usage(format!(
            "--memory {text} is {bytes} bytes, too little for a machine"
        ))
        .hint("give it with a unit, as 512MiB or 2GiB")),
        bytes => Ok(bytes),
    }
}

fn summary(reply: &v1::TakeoverReply, at: at::At) -> String {
    let takeover = reply.takeover.clone().unwrap_or_default();
    let (name, state) = (plain(&takeover.name), plain(&takeover.state));
    let mut text = format!(
        "{name} is {state}, {}.{:03} s after the request\n",
        reply.ready_ms / 1000,
        reply.ready_ms % 1000
    );
    if let Some(point) = &takeover.point {
        text.push_str(&format!(
            "from {}: {}\n",
            plain(&takeover.machine),
            plain(&at.picked(point))
        ));
    }
    for dropped in &reply.dropped {
        text.push_str(&format!("left behind: {}\n", plain(dropped)));
    }
    text.push_str(&format!(
        "keep it: virt-cdp takeover-commit {0}; remove it: virt-cdp takeover-discard {0}\n",
        quoted(&takeover.name)
    ));
    text
}
