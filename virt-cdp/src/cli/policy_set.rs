//! `policy-set`: makes or changes a policy.

use clap::ArgGroup;

use super::{error::CliResult, json, policy::describe, session::Session};
use crate::{
    api::v1,
    daemon::policy::SPAN,
    units::{format_duration, parse_duration, parse_size},
};

/// Makes a policy, or changes one, for all machines it is assigned to
///
/// Each span says how far back from now that class of points is kept; the last point of an hour, day, ISO week or month
/// counts, by UTC. What is not given stays as it is, and `0s` ends a class. Points that are no longer wanted are removed
/// within a minute: see policy-preview. Locked points, points in use, and the newest one always stay.
///
/// What is set here is kept by the daemon and goes before what the configuration says of the same policy, until
/// --reset.
#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("what").required(true).multiple(true)
    .args(["all", "hourly", "daily", "weekly", "monthly", "size_limit", "reset"]))]
pub(super) struct Args {
    /// The policy; a machine that has none assigned is kept by `default`
    #[arg(value_name = "POLICY")]
    name: String,

    /// Every point, as `1d`
    #[arg(long, value_name = "SPAN", value_parser = span)]
    all: Option<Span>,

    /// One point an hour, as `7d`
    #[arg(long, value_name = "SPAN", value_parser = span)]
    hourly: Option<Span>,

    /// One point a day, as `30d`
    #[arg(long, value_name = "SPAN", value_parser = span)]
    daily: Option<Span>,

    /// One point a week, as `12w`
    #[arg(long, value_name = "SPAN", value_parser = span)]
    weekly: Option<Span>,

    /// One point a month, as `365d`
    #[arg(long, value_name = "SPAN", value_parser = span)]
    monthly: Option<Span>,

    /// The size of a harbor that is told as too large, as `500G`; 0: none. Nothing is removed because of it
    #[arg(long, value_name = "SIZE", value_parser = size)]
    size_limit: Option<u64>,

    /// Forgets what was set: the policy is as the configuration says, or gone if it says nothing
    #[arg(long, conflicts_with_all = ["all", "hourly", "daily", "weekly", "monthly", "size_limit"])]
    reset: bool,
}

/// Milliseconds.
#[derive(Debug, Clone, Copy)]
struct Span(u64);

fn span(text: &str) -> Result<Span, String> {
    let span = parse_duration(text).map_err(|error| error.to_string())?;
    if !SPAN.contains(span) {
        let (_, most) = SPAN.named(format_duration);
        return Err(format!("give at most {most}"));
    }
    u64::try_from(span.as_millis())
        .map(Span)
        .map_err(|error| error.to_string())
}

fn size(text: &str) -> Result<u64, String> {
    parse_size(text).map_err(|error| error.to_string())
}

pub(super) fn run(args: Args, session: &mut Session) -> CliResult {
    let ms = |span: Option<Span>| span.map(|span| span.0);
    let request = v1::SetPolicyRequest {
        name: args.name,
        all_ms: ms(args.all),
        hourly_ms: ms(args.hourly),
        daily_ms: ms(args.daily),
        weekly_ms: ms(args.weekly),
        monthly_ms: ms(args.monthly),
        size_limit_bytes: args.size_limit,
        reset: args.reset,
    };
    let policy = session
        .client
        .call(async |api| api.set_policy(request).await)?;
    session.answer(&json::Policy::from(&policy), || describe(&policy))
}
