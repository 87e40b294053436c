//! `report-verify`: tells whether a report is as it was signed, and whether all of a directory are there.

use std::path::{Path, PathBuf};

use drill_runner::{
    outcome::Link,
    report::{Chain, PublicKey, verify, verify_directory},
};
use serde::Serialize;

use super::{
    error::{CliError, CliResult},
    session::Session,
    text::plain,
};

/// Checks that reports are as they were signed, by whom, and that none is missing between them; it asks no daemon
///
/// A file is any form of a report: HTML, JSON or JUnit XML. Of a directory all JSON reports are checked, and that each follows the
/// one it names: one that is missing or was exchanged is told. That the newest ones are missing cannot be seen from the
/// others; compare the newest with 'virt-cdp drill-list'.
///
/// Without --key it is told whose key signed them, which has to be compared with the host's own: 'virt-cdp status' tells that.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The report, or a directory with reports
    #[arg(value_name = "FILE|DIR")]
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
    previous_sha256: Option<&'a str>,
}

/// A directory whose reports are as they were signed, and follow each other.
#[derive(Serialize)]
struct AllRight<'a> {
    dir: String,
    reports: usize,
    public_key: String,
    fingerprint: String,
    /// What the oldest follows, which is not there.
    begins_after: Option<&'a Link>,
    newest: Option<&'a Link>,
}

const COMPARE: &str = "compare the key with that of the host: virt-cdp status\n";

pub(super) fn run(args: Args, session: &mut Session) -> CliResult {
    let key = args.key.as_deref().map(|text| {
        PublicKey::parse(text).ok_or_else(|| {
            CliError::usage(format!("`{text}` is no public key"))
                .hint("give the 64 digits that 'virt-cdp status' tells")
        })
    });
    let key = key.transpose()?;
    match args.file.is_dir() {
        true => directory(&args.file, key.as_ref(), session),
        false => one(&args.file, key.as_ref(), session),
    }
}

/// Checks one report.
fn one(path: &Path, key: Option<&PublicKey>, session: &mut Session) -> CliResult {
    let file = path.display().to_string();
    let bytes = std::fs::read(path).map_err(|error| {
        CliError::failure(format!("cannot read {file}: {error}"))
            .hint("give the file of a report, or a directory")
    })?;
    let found = verify(&bytes, key).map_err(|error| {
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
        previous_sha256: found.previous.as_ref().map(|link| link.sha256.as_str()),
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
        text += &format!("hash: {}\n", document.sha256);
        if let Some(previous) = &found.previous {
            text += &format!("previous: {}\n", link(previous));
        }
        if key.is_none() {
            text += COMPARE;
        }
        text
    })
}

/// Checks all reports of a directory, and their chain.
fn directory(path: &Path, key: Option<&PublicKey>, session: &mut Session) -> CliResult {
    let dir = path.display().to_string();
    let found = verify_directory(path, key)
        .map_err(|error| CliError::failure(crate::engine::sentence_of(&error)))?;
    let chain: &Chain = &found.chain;
    if let Some(broken) = &chain.broken {
        return Err(CliError::failure(format!("{dir}: {broken}")).hint(
            "do not trust what comes before it; have the reports again from the host: drill-report",
        ));
    }
    let Some(public_key) = found.public_key.filter(|_| chain.reports > 0) else {
        return Err(CliError::failure(format!("there is no report in {dir}"))
            .hint("give a directory with the JSON of reports, as ID.json"));
    };
    let document = AllRight {
        reports: chain.reports,
        public_key: public_key.to_string(),
        fingerprint: public_key.fingerprint(),
        begins_after: chain.begins_after.as_ref(),
        newest: chain.head.as_ref(),
        dir: dir.clone(),
    };
    session.answer(&document, || {
        let mut text = format!(
            "{} reports in {} are as they were signed, and none is missing between them\nkey: {}\n",
            chain.reports,
            plain(&dir),
            document.public_key
        );
        if let Some(before) = document.begins_after {
            text += &format!("the oldest follows {}, which is not here\n", link(before));
        }
        if let Some(newest) = document.newest {
            text += &format!("the newest: {}\n", link(newest));
        }
        if key.is_none() {
            text += COMPARE;
        }
        text
    })
}

/// A report and its hash.
fn link(link: &Link) -> String {
    format!("{}, hash {}", plain(&link.id), plain(&link.sha256))
}
