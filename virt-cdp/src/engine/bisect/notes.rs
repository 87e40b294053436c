//! What a search is known by, and what was found in it so far, on stable storage.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read, Write},
    path::Path,
};

use cdp_core::Point;
use rustix::fs::OFlags;

use super::progress::Found;
use crate::{
    api::{ApiError, ApiErrorKind, ApiResult, v1},
    units::format_size,
};

/// The largest script, bytes.
const SCRIPT_MAX: u64 = 16 << 20;

/// What a search is known by: the machine, and what is looked for.
pub(super) fn key(machine_id: &str, request: &v1::BisectRequest) -> ApiResult<String> {
    let mut hash = blake3::Hasher::new();
    let mut add = |bytes: &[u8]| {
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    add(machine_id.as_bytes());
    request
        .checks
        .iter()
        .for_each(|check| add(check.as_bytes()));
    if !request.script.is_empty() {
        add(request.script.as_bytes());
        add(digest(Path::new(&request.script))?.as_bytes());
    }
    Ok(hash
        .finalize()
        .to_hex()
        .get(..32)
        .unwrap_or_default()
        .to_owned())
}

/// The hash of a script's content.
///
/// Whoever may use the socket names the file, and it is read as root: a pipe or a device is not waited for, and nothing that is
/// too large is read.
fn digest(path: &Path) -> ApiResult<blake3::Hash> {
    let invalid = |what: String| {
        ApiError::new(ApiErrorKind::InvalidArgument, what).hint("give the path of a program")
    };
    let unread = |error: io::Error| {
        invalid(format!(
            "the script {} cannot be read: {error}",
            path.display()
        ))
    };
    let file = rustix::fs::open(
        path,
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    );
    let file = fs::File::from(file.map_err(|error| unread(error.into()))?);
    let about = file.metadata().map_err(unread)?;
    if !about.is_file() {
        return Err(invalid(format!(
            "the script {} is no regular file",
            path.display()
        )));
    }
    let mut hash = blake3::Hasher::new();
    // It may grow while it is read.
    hash.update_reader(file.take(SCRIPT_MAX + 1))
        .map_err(unread)?;
    match hash.count() > SCRIPT_MAX {
        true => Err(invalid(format!(
            "the script {} has more than {}",
            path.display(),
            format_size(SCRIPT_MAX)
        ))),
        false => Ok(hash.finalize()),
    }
}

/// What an earlier run found, by point; a line that is torn is left out.
pub(super) fn read(path: &Path) -> BTreeMap<u64, Found> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = |line: &str| {
        let (point, passed, drill, why): (u64, bool, String, String) =
            serde_json::from_str(line).ok()?;
        Some((point, Found { passed, why, drill }))
    };
    text.lines().filter_map(line).collect()
}

pub(super) fn add(path: &Path, point: &Point, found: &Found) -> io::Result<()> {
    let line = serde_json::to_string(&(point.id.0, found.passed, &found.drill, &found.why))?;
    let mut file = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)?;
    file.write_all(format!("{line}\n").as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_a_regular_file_of_bounded_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("one"), "#!/bin/sh\n").unwrap();
        fs::write(path("other"), "#!/bin/sh\nfalse\n").unwrap();
        let digest_of = |name: &str| digest(&path(name)).map_err(|error| error.what);
        assert_eq!(digest_of("one"), digest_of("one"));
        assert_ne!(digest_of("one"), digest_of("other"));
        let fifo = path("fifo");
        let made = rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RWXU,
            0,
        );
        made.unwrap();
        let large = fs::File::create(path("large")).unwrap();
        large.set_len(SCRIPT_MAX + 1).unwrap();
        for (name, why) in [
            ("fifo", "is no regular file"),
            (".", "is no regular file"),
            ("large", "more than 16 MiB"),
            ("missing", "cannot be read"),
        ] {
            let what = digest_of(name).unwrap_err();
            assert!(what.contains(why), "{name}: {what}");
        }
    }
}
