//! `view-open`: a machine's volumes as they were, readable over NBD.

use super::{
    at,
    error::CliResult,
    json,
    session::Session,
    text::{Table, plain},
};
use crate::{api::v1, units::format_size};

/// Opens a view of a machine: its volumes as they were, read-only, each at an NBD URI
#[derive(Debug, clap::Args)]
#[command(after_long_help = super::AT_HELP)]
pub(super) struct Args {
    /// The machine
    #[arg(value_name = "NAME")]
    name: String,

    /// The moment: the newest point not later than T is taken
    #[arg(long, value_name = "T")]
    at: String,

    /// Also if the point is damaged: what is damaged of it cannot be read, all else can
    #[arg(long)]
    damaged: bool,
}

pub(super) fn run(args: Args, session: &mut Session) -> CliResult {
    let at = at::parse_here(&args.at)?;
    let request = v1::OpenViewRequest {
        name: args.name,
        at: Some(at.newest()),
        damaged: args.damaged,
    };
    let view = session
        .client
        .call(async |api| api.open_view(request).await)?;
    session.answer(&json::View::from(&view), || {
        let point = view
            .point
            .as_ref()
            .map(|point| at.picked(point))
            .unwrap_or_default();
        let mut table = Table::new(["Volume", "Size", "URI"]);
        for volume in &view.volumes {
            table.row([
                volume.target.clone(),
                format_size(volume.size_bytes),
                volume.uri.clone(),
            ]);
        }
        format!(
            "view {} of {}: {}\n\n{}",
            plain(&view.id),
            plain(&view.machine),
            plain(&point),
            table.render()
        )
    })
}
