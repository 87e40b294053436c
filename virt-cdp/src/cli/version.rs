//! `version`: of this program, and of the daemon where one answers.

use serde::Serialize;

use super::{error::CliResult, session::Session};
use crate::api::v1;

/// Shows the versions of virt-cdp and of the daemon
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

/// What `version` answers; no daemon is null.
#[derive(Debug, Serialize)]
struct Answer {
    client: Client,
    daemon: Option<Daemon>,
}

/// This program.
#[derive(Debug, Serialize)]
struct Client {
    version: &'static str,
}

/// The daemon.
#[derive(Debug, Serialize)]
struct Daemon {
    version: String,
    format_version: u32,
}

pub(super) fn run(_: Args, session: &mut Session) -> CliResult {
    let client = Client {
        version: env!("CARGO_PKG_VERSION"),
    };
    let reply = session
        .client
        .call(async |api| api.version(v1::VersionRequest {}).await);
    let (daemon, error) = match reply {
        Ok(reply) => (
            Some(Daemon {
                version: reply.version,
                format_version: reply.format_version,
            }),
            None,
        ),
        Err(error) => (None, Some(error)),
    };
    let answer = Answer { client, daemon };
    session.answer(&answer, || {
        let daemon = answer.daemon.as_ref().map(|daemon| {
            format!(
                "virtcdpd {}, harbor format {}",
                daemon.version, daemon.format_version
            )
        });
        format!(
            "virt-cdp {}\n{}",
            answer.client.version,
            daemon.unwrap_or_default()
        )
    })?;
    // The client's version is shown whatever the daemon does; that it does not answer is still an error.
    error.map_or(Ok(()), Err)
}
