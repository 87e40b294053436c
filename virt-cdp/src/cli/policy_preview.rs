//! `policy-preview`: what a policy would remove.

use super::{
    error::CliResult,
    json,
    session::Session,
    text::{Table, local},
};
use crate::{api::v1, units::format_size};

/// How many points people are shown; programs get all.
const POINTS_SHOWN: usize = 20;

/// Says which points of a machine a policy would remove now; removes nothing
///
/// The room that would make is what is certain: the journal's segments that no other point needs.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The machine
    #[arg(value_name = "NAME")]
    name: String,

    /// The policy [default: the machine's own]
    #[arg(value_name = "POLICY")]
    policy: Option<String>,
}

pub(super) fn run(args: Args, session: &mut Session) -> CliResult {
    let name = args.name.clone();
    let request = v1::PreviewPolicyRequest {
        name: args.name,
        policy: args.policy.unwrap_or_default(),
    };
    let preview = session
        .client
        .call(async |api| api.preview_policy(request).await)?;
    session.answer(&json::PolicyPreview::from(&preview), || {
        describe(&name, &preview)
    })
}

fn describe(machine: &str, preview: &v1::PolicyPreview) -> String {
    let policy = preview.policy.clone().unwrap_or_default();
    let going = preview.points.len();
    let mut text = format!(
        "by policy {}, {going} of {} points of {machine} would go, which frees about {}\n",
        policy.name,
        preview.kept.saturating_add(going as u64),
        format_size(preview.freed_bytes)
    );
    if preview.points.is_empty() {
        return text;
    }
    let mut table = Table::new(["Id", "Time", "Label"]);
    for point in preview.points.iter().take(POINTS_SHOWN) {
        table.row([
            point.id.to_string(),
            local(point.time_ns),
            point.label.clone(),
        ]);
    }
    text.push('\n');
    text.push_str(&table.render());
    if let Some(more) = going.checked_sub(POINTS_SHOWN).filter(|more| *more > 0) {
        text.push_str(&format!("(and {more} more; --json lists them all)\n"));
    }
    text
}
