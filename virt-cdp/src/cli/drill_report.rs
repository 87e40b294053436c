//! `drill-report`: the report of a drill.

use std::{io::Write as _, path::PathBuf};

use serde_json::Value;

use super::{
    error::{CliError, CliResult},
    session::{Reader, Session},
    text::plain,
};
use crate::api::v1;

/// Shows the report of a drill, or writes it to files
///
/// The HTML file holds everything, needs no network, and can be printed; each form is signed: see report-verify.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The drill's number, or `latest`; with --html also `index`, the page over all of them
    #[arg(value_name = "ID")]
    id: String,

    /// Writes it as HTML
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,

    /// Writes it as JUnit XML
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
}

pub(super) fn run(args: Args, session: &mut Session) -> CliResult {
    let id = match args.id.as_str() {
        "latest" => latest(session)?,
        id => id.to_owned(),
    };
    let mut get = |form: &str| {
        let form = if id == "index" { "index" } else { form };
        let request = v1::DrillDocumentRequest {
            id: id.clone(),
            form: form.into(),
        };
        let document = session
            .client
            .call(async |api| api.get_drill_document(request).await);
        document.map(|document| document.bytes)
    };
    let mut files = Vec::new();
    for (form, path) in [("html", &args.html), ("junit", &args.junit)] {
        if let Some(path) = path {
            files.push((path, get(form)?));
        }
    }
    let shown = match files.is_empty() || session.reader == Reader::Programs {
        true => Some(get("json")?),
        false => None,
    };
    for (path, bytes) in files {
        std::fs::write(path, bytes).map_err(|error| {
            CliError::failure(format!("cannot write {}: {error}", path.display()))
                .hint("give a file that can be written")
        })?;
    }
    match (shown, session.reader) {
        (None, _) => Ok(()),
        // As it was signed, to the byte.
        (Some(bytes), Reader::Programs) => {
            let mut stdout = std::io::stdout().lock();
            let written = stdout.write_all(&bytes).and_then(|()| stdout.flush());
            written.map_err(|error| CliError::failure(format!("cannot print the report: {error}")))
        }
        (Some(bytes), Reader::People) => {
            let document: Value = serde_json::from_slice(&bytes).unwrap_or_default();
            let report =
                serde_json::from_value(document.get("report").cloned().unwrap_or_default());
            let report = report.map_err(|error| {
                CliError::failure(format!("the report cannot be read: {error}"))
                    .hint("is virt-cdp of the same version as virtcdpd?")
            })?;
            super::session::put(plain_lines(&super::drill_run::summary(&report)).trim());
            Ok(())
        }
    }
}

fn plain_lines(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(plain).collect();
    lines.join("\n")
}

/// The number of the newest drill that has ended.
fn latest(session: &mut Session) -> CliResult<String> {
    let request = v1::ListDrillsRequest {
        name: String::new(),
        limit: 0,
    };
    let list = session
        .client
        .call(async |api| api.list_drills(request).await)?;
    let ended = list
        .drills
        .into_iter()
        .rfind(|drill| drill.state != "running");
    ended.map(|drill| drill.id).ok_or_else(|| {
        CliError::failure("no drill was held yet").hint("hold one with virt-cdp drill-run NAME")
    })
}
