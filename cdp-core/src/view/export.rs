//! Writes an image out as a standalone qcow2 file.
//!
//! Written under a `.part` name beside the target, synced, renamed. A crash leaves the `.part`.

use std::io;
use std::ops::ControlFlow;
use std::path::Path;

use super::parts::Parts;
use crate::bounds::COPY_PIECE;
use crate::error::{HarborError, Result};
use crate::qcow2::Qcow2Writer;
use crate::storage::replace::{part_of, put_in_place, remove_if_there};
use crate::storage::{OpenMode, Storage};

/// Writes `image` to `path`, which must not exist.
pub(crate) fn export(
    storage: &dyn Storage,
    image: &Parts,
    path: &Path,
    progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<()> {
    match storage.open(path, OpenMode::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        _ => {
            return Err(HarborError::AlreadyExists {
                path: path.to_path_buf(),
            });
        }
    }
    let part = part_of(path);
    let done = write_part(storage, image, &part, progress).and_then(|()| {
        put_in_place(storage, &part, path).map_err(|e| HarborError::storage("rename", path, e))
    });
    if done.is_err()
        && let Err(error) = remove_if_there(storage, &part)
    {
        tracing::warn!(path = %part.display(), %error, "an unfinished export stays behind");
    }
    done
}

fn write_part(
    storage: &dyn Storage,
    image: &Parts,
    part: &Path,
    progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<()> {
    let failed = |action| move |e| HarborError::storage(action, part, e);
    remove_if_there(storage, part).map_err(failed("remove"))?;
    let file = storage
        .open(part, OpenMode::New)
        .map_err(failed("create"))?;
    let mut writer = Qcow2Writer::new(file, image.size());
    let mut piece = vec![0; COPY_PIECE];
    let mut at = 0;
    while at < image.size() {
        let len = (image.size() - at).min(COPY_PIECE as u64);
        // Two extents differ, so one of the first two is no zeros if any is.
        if image.extents(at, len, 2)?.iter().any(|extent| !extent.zero) {
            let bytes = piece.get_mut(..len as usize).unwrap_or_default();
            image.read_at(bytes, at)?;
            writer.write(at, bytes).map_err(failed("write"))?;
        }
        at += len;
        if progress(at).is_break() {
            return Err(HarborError::Cancelled);
        }
    }
    writer.finish().map_err(failed("write"))
}
