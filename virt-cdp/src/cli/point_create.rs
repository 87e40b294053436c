//! `point-create`: a recovery point now.

use super::{
    at::At,
    error::CliResult,
    json,
    session::{Reader, Session},
    text::plain,
};
use crate::api::v1;

/// Makes a recovery point now
///
/// With --quiesce the guest agent freezes the guest's file systems for a moment, so that they need no repair in what
/// is started from the point. Where that cannot be had (no agent, or it does not answer in time), the point is made
/// all the same, in grade `crash`, and the reason is said.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The machine
    #[arg(value_name = "NAME")]
    name: String,

    /// A text to find the point by
    #[arg(long, value_name = "L", default_value = "", hide_default_value = true)]
    label: String,

    /// Has the guest's file systems frozen for it
    #[arg(long)]
    quiesce: bool,
}

pub(super) fn run(args: Args, session: &mut Session) -> CliResult {
    let request = v1::CreatePointRequest {
        name: args.name,
        label: args.label,
        quiesce: args.quiesce,
    };
    let made = session
        .client
        .call(async |api| api.create_point(request).await)?;
    let point = made.point.clone().unwrap_or_default();
    let quiesced = point.grade == "quiesced";
    if session.reader == Reader::People && !made.note.is_empty() {
        let note = plain(&made.note);
        match quiesced {
            true => eprintln!("note: {note}"),
            false => eprintln!(
                "note: the point is of grade {}, not quiesced: {note}",
                plain(&point.grade)
            ),
        }
    }
    session.answer(&json::NewPoint::from(&made), || {
        let mut text = At::Latest.picked(&point);
        if quiesced {
            let ms = made.frozen_ms;
            text.push_str(&format!(", quiesced: file systems frozen for {ms} ms"));
        }
        text
    })
}
