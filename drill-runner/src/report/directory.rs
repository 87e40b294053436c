//! Going over the reports of a directory: a store's own, or one that was copied from its host.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
    path::Path,
};

use super::{
    chain::Chain,
    form::Form,
    id::is_id,
    sign::PublicKey,
    store::{StoreError, failed},
    verify::{BYTES_MAX, verify},
};

/// What a directory's reports have come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    /// Their chain.
    pub chain: Chain,
    /// The key they were checked with: the one that was given, else that of the oldest one that is whole; none where there is
    /// none.
    pub public_key: Option<PublicKey>,
}

/// Checks all JSON reports of a directory: that each is what one key signed, and follows the one it names.
///
/// # Errors
/// The directory or a file cannot be read. What is wrong with the reports themselves is in [`Chain::broken`].
pub fn verify_directory(
    dir: &Path,
    expected_key: Option<&PublicKey>,
) -> Result<Directory, StoreError> {
    let mut public_key = expected_key.copied();
    let mut reports = BTreeMap::new();
    for id in ids(dir)? {
        let path = dir.join(format!("{id}.{}", Form::Json.extension()));
        let bytes = read(&path).map_err(failed(&path, "read"))?;
        let verified = verify(&bytes, public_key.as_ref());
        if let Ok(verified) = &verified {
            public_key = Some(verified.public_key);
        }
        reports.insert(id, verified);
    }
    Ok(Directory {
        chain: Chain::of(&reports),
        public_key,
    })
}

/// The numbers of all reports of a directory, the newest last.
pub(super) fn ids(dir: &Path) -> Result<Vec<String>, StoreError> {
    let names = names(dir)?;
    let ids = names.iter().filter_map(|name| name.strip_suffix(".json"));
    let mut ids: Vec<String> = ids.filter(|id| is_id(id)).map(str::to_owned).collect();
    ids.sort();
    Ok(ids)
}

/// The names of all files of a directory.
pub(super) fn names(dir: &Path) -> Result<Vec<String>, StoreError> {
    let read = || -> io::Result<Vec<String>> {
        let entries = fs::read_dir(dir)?;
        let names = entries.map(|entry| Ok(entry?.file_name().into_string().ok()));
        names.filter_map(Result::transpose).collect()
    };
    read().map_err(failed(dir, "read"))
}

/// Reads a report's file, of one that is too large no more than shows that.
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = BYTES_MAX as u64 + 1;
    File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}
