//! `unprotect`: ends a machine's protection.

use serde::Serialize;

use super::{error::CliResult, session::Session};
use crate::api::v1;

/// Ends a machine's protection; what was kept stays, unless --delete is given
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The machine
    #[arg(value_name = "NAME")]
    name: String,

    /// Deletes everything that was kept of it, too; this cannot be undone
    #[arg(long)]
    delete: bool,
}

/// What `unprotect` answers.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    name: &'a str,
    deleted: bool,
}

pub(super) fn run(args: Args, session: &mut Session) -> CliResult {
    let request = v1::UnprotectRequest {
        name: args.name.clone(),
        delete: args.delete,
    };
    session
        .client
        .call(async |api| api.unprotect(request).await)?;
    session.answer(
        &Answer {
            name: &args.name,
            deleted: args.delete,
        },
        || match args.delete {
            true => format!(
                "{} is no longer protected; everything that was kept of it is deleted",
                args.name
            ),
            false => format!(
                "{} is no longer protected; what was kept of it stays",
                args.name
            ),
        },
    )
}
