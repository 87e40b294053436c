//! `view-close`: lets a view go.

use super::{
    error::CliResult,
    session::{Done, Session},
};
use crate::api::v1;

/// Closes a view
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The view's id
    #[arg(value_name = "VIEW")]
    id: String,
}

pub(super) fn run(args: Args, session: &mut Session) -> CliResult {
    let request = v1::CloseViewRequest {
        id: args.id.clone(),
    };
    session
        .client
        .call(async |api| api.close_view(request).await)?;
    session.answer(
        &Done {
            name: &args.id,
            done: "closed",
        },
        || format!("view {} is closed", args.id),
    )
}
