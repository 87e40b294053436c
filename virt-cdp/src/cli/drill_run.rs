//! `drill-run`: proves that a copy starts.

use std::path::PathBuf;

use drill_runner::{
    outcome::{MachineReport, Report, Verdict},
    plan::{CheckKind, CheckPlan, MachinePlan, Plan, PointChoice, Ready},
};

use super::{
    at,
    drills::{age, read_plan, took},
    error::{CliError, CliResult},
    job::{OnInterrupt, watch},
    json_drill,
    session::{Reader, Session},
    text::plain,
};
use crate::api::v1;

/// Starts a machine, or those of a plan, as they were, in isolation; checks them; reports; and removes them
///
/// They keep their addresses: the network they are in is a stand-in that leads nowhere, so they run beside the originals and
/// beside other drills. The exit code is 0 if everything that was checked holds, 3 if something does not, and another for
/// errors. Ctrl-C ends the drill and removes what was made.
///
/// Programs of `script:` run on the host of virtcdpd, as the user who calls this.
#[derive(Debug, clap::Args)]
#[command(after_long_help = super::AT_HELP)]
pub(super) struct Args {
    /// The machine, or the file of a plan (with a / in it, or ending in .toml)
    #[arg(value_name = "NAME|PLAN")]
    what: String,

    /// The moment: the newest point not later than T is taken [default: latest, or as in the plan]
    #[arg(long, value_name = "T")]
    at: Option<String>,

    /// What must hold: ping, agent, boot, tcp:PORT[:PATTERN], http:PORT[/PATH], https:PORT[/PATH], script:PATH, exec:COMMAND,
    /// fsck[:DISK], files:PATH=SHA256, plugin:NAME[:KEY=VALUE,...] [default: boot, or as in the plan]
    #[arg(long = "check", value_name = "CHECK")]
    checks: Vec<String>,

    /// When the boot counts as finished: auto, agent, ping, screen, running, or console:PATTERN
    #[arg(long, value_name = "SIGN")]
    ready: Option<String>,

    /// How many virtual CPUs it gets [default: as it was]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    vcpus: Option<u32>,

    /// How much memory it gets, as 2GiB or 512M [default: as it was]
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,

    /// Leaves what failed to be looked at, until drill-discard
    #[arg(long)]
    keep_on_failure: bool,

    /// Writes the report into this directory, too: ID.html, ID.json and ID.xml
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
}

pub(super) fn run(args: Args, session: &mut Session) -> CliResult {
    let (plan, moments) = plan(&args)?;
    let (mut failed, mut refused) = (None, None);
    let mut reports = Vec::new();
    for moment in moments {
        let held = request(&plan, &moment).and_then(|request| follow(session, request));
        let report = match held {
            Ok(report) => report,
            Err(error) => {
                refused = Some(error);
                break;
            }
        };
        if let Some(dir) = &args.report {
            refused = write_report(session, &report.id, dir).err();
        }
        if session.reader == Reader::People {
            super::session::put(summary(&report).trim_end());
        }
        let verdict = report.verdict;
        match verdict {
            Verdict::Proved => {}
            Verdict::Cancelled => {
                let what = format!("the drill of {} was broken off", report.name);
                failed = Some(CliError::interrupted(what));
            }
            Verdict::Failed => {
                failed = Some(CliError::unproved(format!(
                    "{} is not proved: {}",
                    report.name, report.why
                )))
            }
            _ => {
                failed = Some(failed.unwrap_or_else(|| {
                    CliError::failure(format!(
                        "the drill of {} could not be held: {}",
                        report.name, report.why
                    ))
                }))
            }
        }
        reports.push(json_drill::Held::from(&report));
        if verdict == Verdict::Cancelled || refused.is_some() {
            break;
        }
    }
    // What was held is told, also where a later one is refused.
    let has_answer = refused.is_none() || !reports.is_empty();
    if session.reader == Reader::Programs && has_answer {
        session.answer(&json_drill::HeldAll { drills: reports }, String::new)?;
    }
    if let Some(error) = refused {
        return Err(error);
    }
    match failed {
        None => Ok(()),
        Some(error) => {
            Err(error.hint("the report tells more: virt-cdp drill-report ID --html FILE"))
        }
    }
}

/// The plan, and the moments of which each is a drill of its own; two: one by chance between them.
fn plan(args: &Args) -> CliResult<(Plan, Vec<Vec<String>>)> {
    let is_file = args.what.contains('/') || args.what.ends_with(".toml");
    let mut plan = match is_file {
        true => read_plan(&args.what)?,
        false => Plan::of_one(MachinePlan::of(&args.what), PointChoice::default()),
    };
    let given = args.checks.iter().map(|text| {
        CheckPlan::parse_short(text).map_err(|(what, hint)| CliError::usage(what).hint(hint))
    });
    let given = given.collect::<CliResult<Vec<CheckPlan>>>()?;
    let shape =
        !given.is_empty() || args.ready.is_some() || args.vcpus.is_some() || args.memory.is_some();
    match plan.machines.as_mut_slice() {
        [one] => {
            one.checks.extend(given);
            if let Some(sign) = &args.ready {
                one.ready = ready(sign)?;
            }
            one.vcpus = args.vcpus.or(one.vcpus);
            if let Some(memory) = &args.memory {
                one.memory = Some(super::takeover::memory(memory)?);
            }
            if one.checks.is_empty() {
                one.checks
                    .push(CheckPlan::of(CheckKind::Boot(one.ready.clone())));
            }
        }
        _ if shape => {
            return Err(CliError::usage(
                "the plan has several machines: it is not known which of them is meant",
            )
            .hint("write checks and sizes into the plan"));
        }
        _ => {}
    }
    plan.keep_on_failure |= args.keep_on_failure;
    let moments = match (&args.at, &plan.point) {
        (Some(at), _) => vec![vec![at.clone()]],
        (None, PointChoice::At(all)) => all.iter().map(|one| vec![one.clone()]).collect(),
        (None, PointChoice::Random { from, to }) => vec![vec![from.clone(), to.clone()]],
    };
    Ok((plan, moments))
}

fn ready(text: &str) -> CliResult<Ready> {
    Ready::parse(text).map_err(|(what, hint)| CliError::usage(what).hint(hint))
}

fn request(plan: &Plan, moment: &[String]) -> CliResult<v1::DrillRequest> {
    let parsed = at::parse_all(moment)?;
    let (first, second) = match parsed.as_slice() {
        [from, to] => (Some(from.oldest()), Some(to.newest())),
        [at] => (Some(at.newest()), None),
        _ => (None, None),
    };
    // What is reported is what was asked for.
    let point = match moment {
        [from, to] => PointChoice::Random {
            from: from.clone(),
            to: to.clone(),
        },
        moment => PointChoice::At(moment.to_vec()),
    };
    let plan = Plan {
        point,
        ..plan.clone()
    };
    Ok(v1::DrillRequest {
        plan: plan.to_toml(),
        at: first,
        until: second,
        reason: String::new(),
    })
}

/// Follows a drill to its end, and tells what happens.
fn follow(session: &mut Session, request: v1::DrillRequest) -> CliResult<Report> {
    let job = session
        .client
        .call(async |api| api.run_drill(request).await)?;
    let (reader, mut told, mut report) = (session.reader, Vec::new(), None);
    watch(session, job, OnInterrupt::Cancel, &mut |job| {
        report = serde_json::from_str(&job.drill_report).ok();
        if let Some(report) = report.as_ref().filter(|_| reader == Reader::People) {
            tell(report, &mut told);
        }
    })?;
    report.ok_or_else(|| {
        CliError::failure("virtcdpd does not tell what the drill has come to")
            .hint("see drill-list; is virtcdpd of the same version?")
    })
}

/// Tells people what has happened since it was told last.
fn tell(report: &Report, told: &mut Vec<usize>) {
    told.resize(report.machines.len(), 0);
    for (machine, told) in report.machines.iter().zip(told) {
        for event in machine.events.iter().skip(*told) {
            let seconds = event.at_ms as f64 / 1000.0;
            eprintln!(
                "[{seconds:7.1} s] {}: {}",
                plain(&machine.name),
                plain(&event.what)
            );
        }
        *told = machine.events.len();
    }
}

fn write_report(session: &mut Session, id: &str, dir: &std::path::Path) -> CliResult {
    let failed = |path: &std::path::Path, error: std::io::Error| {
        CliError::failure(format!("cannot write {}: {error}", path.display()))
            .hint("give --report a directory that can be written")
    };
    std::fs::create_dir_all(dir).map_err(|error| failed(dir, error))?;
    for (form, ending) in [("html", "html"), ("json", "json"), ("junit", "xml")] {
        let request = v1::DrillDocumentRequest {
            id: id.to_owned(),
            form: form.into(),
        };
        let document = session
            .client
            .call(async |api| api.get_drill_document(request).await)?;
        let path = dir.join(format!("{id}.{ending}"));
        std::fs::write(&path, document.bytes).map_err(|error| failed(&path, error))?;
        session.say(&format!("{}", path.display()));
    }
    Ok(())
}

/// A report in short, for people.
pub(super) fn summary(report: &Report) -> String {
    let mut text = format!(
        "\ndrill {} of {}: {}",
        plain(&report.id),
        plain(&report.name),
        report.verdict.name()
    );
    match (report.rto_ms, report.rpo_ms) {
        (Some(rto), Some(rpo)) => {
            text += &format!(", recovered in {}, data {} old\n", took(rto), age(rpo))
        }
        (None, Some(rpo)) => text += &format!(", data {} old\n", age(rpo)),
        _ => text.push('\n'),
    }
    report
        .machines
        .iter()
        .for_each(|machine| text += &of_machine(machine));
    if report.recycling.kept {
        text += &format!(
            "kept: look at it with virt-cdp drill-shell {0}; remove it with virt-cdp drill-discard {0}\n",
            plain(&report.id)
        );
    }
    for left in &report.recycling.left {
        text += &format!("not removed yet: {}\n", plain(left));
    }
    text
}

fn of_machine(machine: &MachineReport) -> String {
    let mut text = format!("  {}", plain(&machine.name));
    if let Some(point) = &machine.point {
        text += &format!(", point {} of {}", point.id, plain(&point.time));
    }
    text += &format!(": {}\n", machine.verdict.name());
    for check in &machine.checks {
        let why = match check.verdict {
            Verdict::Proved => String::new(),
            _ => format!(": {}", plain(&check.why)),
        };
        text += &format!(
            "    {:<9} {}{why}\n",
            check.verdict.name(),
            plain(&check.name)
        );
    }
    text
}
