//! `report-verify`: tells whether a report is as it was signed.

use std::path::PathBuf;

use drill_runner::report::{PublicKey, verify};
use serde::Serialize;

use super::{
    error::{CliError, CliResult},
    session::Session,
    text::plain,
};

/// Checks that a report is as it was signed, and by whom; it asks no daemon
///
/// FILE is any form of a report: HTML, JSON or JUnit XML. Without --key it is told whose key signed it, which has to be compared
/// with the host's own: 'virt-cdp status' tells that.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The report
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// The public key it must be signed with, 64 hexadecimal digits
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
}

/// A report that is as it was signed.
#[derive(Serialize)]
struct Right<'a> {
    file: String,
    form: &'a str,
    id: Option<&'a str>,
    public_key: String,
    fingerprint: String,
    sha256: &'a str,
    previous: Option<&'a str>,
}

pub(super) fn run(args: Args, session: &mut Session) -> CliResult {
    let file = args.file.display().to_string();
    let key = args.key.as_deref().map(|text| {
        PublicKey::parse(text).ok_or_else(|| {
            CliError::usage(format!("`{text}` is no public key"))
                .hint("give the 64 digits that 'virt-cdp status' tells")
        })
    });
    let key = key.transpose()?;
    let bytes = std::fs::read(&args.file).map_err(|error| {
        CliError::failure(format!("cannot read {file}: {error}")).hint("give the file of a report")
    })?;
    let found = verify(&bytes, key.as_ref()).map_err(|error| {
        let what = crate::engine::sentence_of(&error);
        CliError::failure(format!("{file}: {what}"))
            .hint("do not trust it; have the report again from the host: drill-report")
    })?;
    let document = Right {
        form: found.form.name(),
        id: found.id.as_deref(),
        public_key: found.public_key.to_string(),
        fingerprint: found.public_key.fingerprint(),
        sha256: &found.sha256,
        previous: found.previous.as_ref().map(|link| link.id.as_str()),
        file: file.clone(),
    };
    session.answer(&document, || {
        let mut text = format!(
            "{} is as it was signed\nkey: {}\n",
            plain(&file),
            document.public_key
        );
        if let Some(id) = document.id {
            text += &format!("drill: {}\n", plain(id));
        }
        if let Some(previous) = document.previous {
            text += &format!("previous: {}\n", plain(previous));
        }
        if key.is_none() {
            text += "compare the key with that of the host: virt-cdp status\n";
        }
        text
    })
}
