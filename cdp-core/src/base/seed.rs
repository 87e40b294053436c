//! Writes a new full base point from the live disk, while the journal takes the guest's writes.
//!
//! What is read from the disk goes into a `.part` image in order of arrival. At the end the
//! records of the volume since the seed began are laid over it: the stream wins. A write that came
//! before the seed began was on the disk before it was recorded, so every read has seen it.
//! The hashes of its clusters are gathered meanwhile; what was not written at once is hashed at the end.
//!
//! A crash leaves the `.part`, which the next opening of the harbor removes.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::hashes::{HashesWriter, hash_cluster, hashes_path};
use super::slots::Slots;
use super::{BasePoint, full_path, volume_dir};
use crate::bounds::{CLUSTER, COPY_PIECE};
use crate::error::{HarborError, Result};
use crate::harbor::shared::Shared;
use crate::machine::VolumeId;
use crate::point::Seq;
use crate::qcow2::Qcow2Writer;
use crate::storage::OpenMode;
use crate::storage::replace::{part_of, put_in_place, remove_if_there};
use crate::view::image::Plan;
use crate::view::part::Part;
use crate::view::parts::Parts;

/// Writes a new full base point; dropped without [`finish`](Self::finish) it leaves nothing.
#[derive(Debug)]
pub struct SeedWriter {
    shared: Arc<Shared>,
    volume: VolumeId,
    size: u64,
    /// The last record before the seed began.
    after: Seq,
    part: PathBuf,
    output: Option<Output>,
}

/// What is written: the image, and the hashes of its clusters.
#[derive(Debug)]
struct Output {
    writer: Qcow2Writer,
    slots: Slots,
}

impl SeedWriter {
    pub(crate) fn start(shared: Arc<Shared>, volume: VolumeId) -> Result<SeedWriter> {
        let description = shared.description();
        let size = description
            .volume(volume)
            .ok_or(HarborError::NoSuchVolume(volume))?
            .size;
        if !shared.seeding().insert(volume) {
            return Err(HarborError::Busy("a seed of the volume"));
        }
        // From here on dropping `seed` ends the claim.
        let base_dir = shared.base_dir();
        let part = part_of(&volume_dir(&base_dir, volume).join("full"));
        let after = shared.head();
        let mut seed = SeedWriter {
            shared,
            volume,
            size,
            after,
            part,
            output: None,
        };
        seed.output = Some(seed.create()?);
        Ok(seed)
    }

    fn create(&self) -> Result<Output> {
        let storage = &*self.shared.options.storage;
        let base_dir = self.shared.base_dir();
        let dir = volume_dir(&base_dir, self.volume);
        match storage.create_dir(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(HarborError::storage("create", &dir, error));
            }
            _ => {}
        }
        storage
            .sync_dir(&base_dir)
            .map_err(|e| HarborError::storage("sync", &base_dir, e))?;
        remove_if_there(storage, &self.part).map_err(self.failed("remove"))?;
        let file = storage
            .open(&self.part, OpenMode::New)
            .map_err(self.failed("create"))?;
        let slots = part_of(&dir.join("full.slots"));
        Ok(Output {
            writer: Qcow2Writer::new(file, self.size),
            slots: Slots::new(Arc::clone(&self.shared.options.storage), slots, self.size)
                .map_err(self.failed("create"))?,
        })
    }

    /// Takes bytes read from the live disk after [`Harbor::seed`](crate::Harbor::seed) was called,
    /// in any order. What is never given reads as zeros.
    ///
    /// # Errors
    /// Not within the volume; the storage failed.
    pub fn data(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        let len = data.len() as u64;
        if offset.checked_add(len).is_none_or(|end| end > self.size) {
            let (volume, size) = (self.volume, self.size);
            return Err(HarborError::OutOfBounds {
                volume,
                offset,
                len,
                size,
            });
        }
        let failed = self.failed("write");
        let output = self.output.as_mut().ok_or(HarborError::Cancelled)?;
        output.write(offset, data).map_err(failed)
    }

    /// Lays every record of the volume from the call of [`Harbor::seed`](crate::Harbor::seed) up
    /// to `up_to` over the data (the stream wins) and puts the base point in place, durable.
    ///
    /// # Errors
    /// A record is damaged; the storage failed; the recording failed before `up_to` was written.
    pub fn finish(mut self, up_to: Seq) -> Result<BasePoint> {
        self.shared.sync()?;
        let up_to = up_to.max(self.after);
        let plan = Plan {
            volume: self.volume,
            size: self.size,
            base: None,
            after: self.after,
        };
        let stream = Parts::open(&self.shared, plan, up_to)?;
        let mut output = self.output.take().ok_or(HarborError::Cancelled)?;
        let mut at = 0;
        while at < self.size {
            let part = stream.part(at)?;
            self.lay_over(&mut output, &stream, &part)?;
            at = part.range.end;
        }
        let path = full_path(&self.shared.base_dir(), self.volume, up_to);
        let hashes = self.hash(&mut output, &path, up_to)?;
        output.writer.finish().map_err(self.failed("write"))?;
        hashes
            .finish()
            .map_err(|e| HarborError::storage("write", &hashes_path(&path), e))?;
        put_in_place(&*self.shared.options.storage, &self.part, &path)
            .map_err(self.failed("rename"))?;
        let base = BasePoint {
            volume: self.volume,
            seq: up_to,
            path,
        };
        self.shared.add_base(base.clone());
        Ok(base)
    }

    /// Gathers the hashes of all clusters, and reads those that were not written at once.
    fn hash(&self, output: &mut Output, path: &Path, seq: Seq) -> Result<HashesWriter> {
        let storage = Arc::clone(&self.shared.options.storage);
        let path = hashes_path(path);
        let failed = |e| HarborError::storage("write", &path, e);
        let mut hashes =
            HashesWriter::new(storage, path.clone(), self.size, seq).map_err(failed)?;
        output.writer.settle().map_err(self.failed("write"))?;
        let mut bytes = vec![0; CLUSTER];
        for (cluster, place) in output.writer.placed() {
            let hash = match output.slots.get(cluster).map_err(self.failed("read"))? {
                Some(hash) => hash,
                None => {
                    let read = output.writer.file().read_at(&mut bytes, place);
                    read.map_err(self.failed("read"))?;
                    hash_cluster(&bytes)
                }
            };
            hashes.push(cluster, hash).map_err(failed)?;
        }
        Ok(hashes)
    }

    fn lay_over(&self, output: &mut Output, stream: &Parts, part: &Part) -> Result<()> {
        let mut piece = vec![0; COPY_PIECE];
        for (start, end, zero) in part.covered() {
            if zero {
                let zeroed = output.writer.zero(start, end - start);
                zeroed.map_err(self.failed("write"))?;
                output.slots.forget(start, end - start);
                continue;
            }
            let mut at = start;
            while at < end {
                let len = (end - at).min(COPY_PIECE as u64);
                let bytes = piece.get_mut(..len as usize).unwrap_or_default();
                stream.read_at(bytes, at)?;
                output.write(at, bytes).map_err(self.failed("write"))?;
                at += len;
            }
        }
        Ok(())
    }

    fn failed(&self, action: &'static str) -> impl Fn(io::Error) -> HarborError + use<> {
        let part = self.part.clone();
        move |error| HarborError::storage(action, &part, error)
    }
}

impl Output {
    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.writer.write(offset, data)?;
        self.slots.note(offset, data)
    }
}

impl Drop for SeedWriter {
    fn drop(&mut self) {
        self.output = None;
        if let Err(error) = remove_if_there(&*self.shared.options.storage, &self.part) {
            tracing::warn!(path = %self.part.display(), %error, "an unfinished seed stays behind");
        }
        self.shared.seeding().remove(&self.volume);
    }
}
