//! `plan-check`: tells whether a plan of a drill is right.

use drill_runner::plan::Plan;
use serde::Serialize;

use super::{drills::read_plan, error::CliResult, session::Session, text::plain};
use crate::units::format_duration;

/// Checks a plan of a drill without holding it; what is wrong is told with its line
///
/// It asks no daemon: whether there are such machines is found when it is held.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The plan's file
    #[arg(value_name = "PLAN")]
    plan: String,
}

/// A plan that is right.
#[derive(Serialize)]
struct Checked<'a> {
    name: &'a str,
    machines: Vec<&'a str>,
    checks: usize,
}

pub(super) fn run(args: Args, session: &mut Session) -> CliResult {
    let plan = read_plan(&args.plan)?;
    let document = Checked {
        name: &plan.name,
        machines: plan
            .boot_order()
            .into_iter()
            .map(|one| one.name.as_str())
            .collect(),
        checks: plan.machines.iter().map(|one| one.checks.len()).sum(),
    };
    session.answer(&document, || text(&plan))
}

fn text(plan: &Plan) -> String {
    let mut text = format!(
        "the plan '{}' is right; within {}:\n",
        plain(&plan.name),
        format_duration(plan.deadline)
    );
    for machine in plan.boot_order() {
        text += &format!("  {}", plain(&machine.name));
        if !machine.after.is_empty() {
            text += &format!(", after {}", plain(&machine.after.join(", ")));
        }
        text.push('\n');
        for check in &machine.checks {
            text += &format!("    {}\n", plain(&check.title()));
        }
    }
    text
}
