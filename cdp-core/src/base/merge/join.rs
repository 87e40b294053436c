//! Two neighbouring layers become one, in a new file that gets the name of the upper one.
//!
//! It has what the upper one holds, and what else the lower one holds, and stands on what that stands on. Where the lower
//! one ended, and what is further below does not, it has zeros.
//!
//! A crash before the file has its name leaves a `.part`; after that, the lower layer, on which nothing stands any
//! more: it does no harm, and the next merging removes it.

use std::path::PathBuf;
use std::sync::Arc;

use super::{hash_held, remove_files};
use crate::base::BasePoint;
use crate::base::hashes::{HashCursor, HashesWriter, hash_cluster, hashes_path};
use crate::base::progress::{Control, Teller};
use crate::bounds::{CLUSTER, COPY_PIECE};
use crate::error::{HarborError, Result};
use crate::harbor::shared::Shared;
use crate::qcow2::layer::{Clusters, LayerWriter};
use crate::qcow2::reader::{Held, Qcow2Reader};
use crate::storage::replace::{part_of, put_in_place, remove_if_there};
use crate::storage::{OpenMode, Storage};

const CLUSTER_LEN: u64 = CLUSTER as u64;

/// Joins two layers of which the upper one stands on the lower one, and nothing else does.
pub(super) fn join(
    shared: &Shared,
    lower: &BasePoint,
    upper: &BasePoint,
    clusters: Clusters,
    control: &mut Control<'_>,
) -> Result<()> {
    let storage = &shared.options.storage;
    let part = part_of(&upper.path);
    let done = Join::open(storage, lower, upper, clusters, part.clone())
        .and_then(|join| join.write(upper, control))
        .and_then(|()| put(shared, lower, upper, &part));
    if done.is_err()
        && let Err(error) = remove_if_there(&**storage, &part)
    {
        tracing::warn!(path = %part.display(), %error, "an unfinished layer stays behind");
    }
    done
}

/// Gives the outcome its name, and removes what went into it.
fn put(
    shared: &Shared,
    lower: &BasePoint,
    upper: &BasePoint,
    part: &std::path::Path,
) -> Result<()> {
    let _names = shared.change_names();
    let storage = &*shared.options.storage;
    put_in_place(storage, part, &upper.path)
        .map_err(|e| HarborError::storage("rename", &upper.path, e))?;
    shared.bases().retain(|kept| kept != lower);
    remove_files(shared, lower)
}

struct Join {
    lower: Source,
    upper: Source,
    /// Clusters in which zeros are to be where neither holds anything.
    hidden: std::ops::Range<u64>,
    layer: LayerWriter,
    hashes: HashesWriter,
    is_full: bool,
    part: PathBuf,
    piece: Vec<u8>,
}

struct Source {
    image: Qcow2Reader,
    hashes: HashCursor,
}

impl Source {
    fn open(storage: &dyn Storage, layer: &BasePoint) -> Result<Source> {
        Ok(Source {
            image: Qcow2Reader::open(storage, &layer.path)?,
            hashes: HashCursor::open(storage, &layer.path)?,
        })
    }
}

impl Join {
    fn open(
        storage: &Arc<dyn Storage>,
        lower: &BasePoint,
        upper: &BasePoint,
        clusters: Clusters,
        part: PathBuf,
    ) -> Result<Join> {
        let seq = upper.seq;
        let further = Qcow2Reader::open(&**storage, &lower.path)?;
        let further = further
            .backing()
            .map(|name| lower.path.with_file_name(name));
        let further_size = match further {
            Some(path) => Qcow2Reader::open(&**storage, &path)?.size(),
            None => 0,
        };
        let (lower, upper_source) = (
            Source::open(&**storage, lower)?,
            Source::open(&**storage, upper)?,
        );
        let size = upper_source.image.size();
        let end = further_size.min(size).div_ceil(CLUSTER_LEN);
        let failed = |action, path: &std::path::Path| {
            let path = path.to_path_buf();
            move |e| HarborError::storage(action, &path, e)
        };
        remove_if_there(&**storage, &part).map_err(failed("remove", &part))?;
        let file = storage
            .open(&part, OpenMode::New)
            .map_err(failed("create", &part))?;
        let below = lower.image.backing().map(String::from);
        // A full is changed in place, so its clusters are as they are.
        let clusters = if below.is_some() {
            clusters
        } else {
            Clusters::Plain
        };
        let path = hashes_path(&upper.path);
        let hashes = HashesWriter::new(Arc::clone(storage), path.clone(), size, seq);
        Ok(Join {
            hidden: lower.image.size().div_ceil(CLUSTER_LEN).min(end)..end,
            is_full: below.is_none(),
            layer: LayerWriter::new(file, size, below, clusters)
                .map_err(failed("create", &part))?,
            hashes: hashes.map_err(failed("create", &path))?,
            lower,
            upper: upper_source,
            piece: vec![0; COPY_PIECE],
            part,
        })
    }

    fn write(mut self, upper: &BasePoint, control: &mut Control<'_>) -> Result<()> {
        let size = self.upper.image.size();
        let mut teller = Teller::new(control, upper.volume, size);
        let mut at = 0;
        while at < size {
            let stretch = self.upper.image.stretch(at, size - at)?;
            match stretch.held {
                Held::Nothing => self.write_lower(at, at + stretch.len, &mut teller)?,
                held => self.copy(From::Upper, at, stretch.len, held, &mut teller)?,
            }
            at += stretch.len;
        }
        let Join {
            layer,
            hashes,
            part,
            ..
        } = self;
        layer
            .finish()
            .map_err(|e| HarborError::storage("write", &part, e))?;
        let path = hashes_path(&upper.path);
        hashes
            .finish()
            .map_err(|e| HarborError::storage("write", &path, e))
    }

    /// Writes what the lower layer holds of a range of which the upper one holds nothing.
    fn write_lower(&mut self, from: u64, end: u64, teller: &mut Teller<'_, '_>) -> Result<()> {
        let lower_size = self.lower.image.size().next_multiple_of(CLUSTER_LEN);
        let lower_end = end.min(lower_size).max(from);
        let mut at = from;
        while at < lower_end {
            let left = (lower_end - at).min(self.lower.image.size() - at);
            let stretch = self.lower.image.stretch(at, left)?;
            if stretch.held != Held::Nothing {
                self.copy(From::Lower, at, stretch.len, stretch.held, teller)?;
            }
            at = if stretch.len == left {
                lower_end
            } else {
                at + stretch.len
            };
        }
        let first = self.hidden.start.max(from / CLUSTER_LEN);
        let behind = self.hidden.end.min(end.div_ceil(CLUSTER_LEN));
        for cluster in first..behind {
            self.layer.zero(cluster, 1).map_err(self.failed())?;
            let pushed = self.hashes.push(cluster, hash_cluster(&[]));
            pushed.map_err(self.failed())?;
        }
        teller.tell(end, 0, 0)
    }

    /// Copies what one of the layers holds.
    fn copy(
        &mut self,
        from: From,
        at: u64,
        len: u64,
        held: Held,
        teller: &mut Teller<'_, '_>,
    ) -> Result<()> {
        let first = at / CLUSTER_LEN;
        let clusters = len.div_ceil(CLUSTER_LEN);
        let mut done = 0;
        while done < clusters {
            let some = (clusters - done).min((COPY_PIECE / CLUSTER) as u64);
            let cluster = first + done;
            let written = self.copy_piece(from, cluster, some, held, done)?;
            if held != Held::Zeros || !self.is_full {
                self.copy_hashes(from, cluster, some)?;
            }
            done += some;
            teller.tell((cluster + some) * CLUSTER_LEN, written, written)?;
        }
        Ok(())
    }

    fn copy_piece(
        &mut self,
        from: From,
        first: u64,
        clusters: u64,
        held: Held,
        skip: u64,
    ) -> Result<u64> {
        let image = match from {
            From::Upper => &self.upper.image,
            From::Lower => &self.lower.image,
        };
        let failed = |e| HarborError::storage("write", &self.part, e);
        match held {
            Held::Nothing => Ok(0),
            Held::Zeros => {
                self.layer.zero(first, clusters).map_err(failed)?;
                Ok(0)
            }
            Held::Bytes(place) => {
                let len = clusters * CLUSTER_LEN;
                let bytes = self.piece.get_mut(..len as usize).unwrap_or_default();
                image.read_file(bytes, place + skip * CLUSTER_LEN)?;
                self.layer.put(first, bytes).map_err(failed)?;
                Ok(len)
            }
            Held::Packed(packed) if self.is_full => {
                let cluster = image.unpack(packed)?;
                self.layer.put(first, &cluster).map_err(failed)?;
                Ok(CLUSTER_LEN)
            }
            Held::Packed(packed) => {
                let frame = image.read_frame(packed)?;
                self.layer.put_packed(first, &frame).map_err(failed)?;
                Ok(frame.len() as u64)
            }
        }
    }

    /// Takes over the hashes of some clusters as they are: what is damaged is found to be so afterwards, too. A layer that
    /// has none gets them.
    fn copy_hashes(&mut self, from: From, first: u64, clusters: u64) -> Result<()> {
        for cluster in first..first + clusters {
            let source = match from {
                From::Upper => &mut self.upper,
                From::Lower => &mut self.lower,
            };
            let hash = match source.hashes.is_there() {
                true => source.hashes.take_of(cluster)?,
                false => Some(hash_held(&source.image, cluster)?.1),
            };
            if let Some(hash) = hash {
                self.hashes.push(cluster, hash).map_err(self.failed())?;
            }
        }
        Ok(())
    }

    fn failed(&self) -> impl Fn(std::io::Error) -> HarborError + use<> {
        let part = self.part.clone();
        move |error| HarborError::storage("write", &part, error)
    }
}

/// Which of the two layers.
#[derive(Debug, Clone, Copy)]
enum From {
    Upper,
    Lower,
}
