//! Builds the next increment of every volume, as of one recovery point.
//!
//! Of a volume those clusters are looked at that a record touched since its newest layer, and those that lie behind that
//! layer's end, found part by part of the volume. What shows of them at the point is compared with what shows at the
//! layer: only what differs is written, zeros as zeros. So a volume that did not change gets a layer, too, and it
//! is almost empty.
//!
//! A crash leaves `.part` files, which the next opening of the harbor removes, and layers of some volumes, which do no
//! harm; building again as of the same point makes the others.

use std::path::PathBuf;
use std::sync::Arc;

use bitvec::slice::BitSlice;
use bitvec::vec::BitVec;

use super::hashes::{HashesWriter, hash_cluster, hashes_path};
use super::progress::{Control, Teller};
use super::{BasePoint, increment_path};
use crate::bounds::{BUILD_SPAN, CHAIN_MAX, CLUSTER, COPY_PIECE};
use crate::error::{HarborError, Result};
use crate::harbor::shared::Shared;
use crate::journal::segment::Segment;
use crate::machine::VolumeId;
use crate::point::{Point, Seq};
use crate::qcow2::layer::{Clusters, LayerWriter};
use crate::qcow2::{Chain, is_zero};
use crate::storage::replace::{part_of, put_in_place, remove_if_there};
use crate::storage::{OpenMode, StorageFile};
use crate::view::parts::Parts;

const CLUSTER_LEN: u64 = CLUSTER as u64;
/// Clusters that are looked at together.
const PIECE_CLUSTERS: usize = COPY_PIECE / CLUSTER;

/// A volume that is to get a layer.
#[derive(Debug)]
struct Wanted {
    volume: VolumeId,
    /// Bytes of it at the point.
    size: u64,
    below: BasePoint,
}

/// Builds the layers of all volumes that the machine had at a point; those that have one of that record keep it.
pub(crate) fn build(
    shared: &Shared,
    point: &Point,
    mut control: Control<'_>,
) -> Result<Vec<BasePoint>> {
    let _turn = shared.claim_layers()?;
    let mut built = Vec::new();
    for wanted in wanted(shared, point)? {
        let base = Builder::new(shared, &wanted, point.seq)?.build(&mut control)?;
        shared.add_base(base.clone());
        built.push(base);
    }
    Ok(built)
}

/// Returns the volumes that are to get a layer; refuses before anything is done.
fn wanted(shared: &Shared, point: &Point) -> Result<Vec<Wanted>> {
    let mut wanted = Vec::new();
    for volume in shared.description().volumes {
        let Some(size) = volume.size_at(point.seq) else {
            continue;
        };
        let volume = volume.id;
        let layers = shared.layers_of(volume);
        let newest = layers.last().ok_or(HarborError::NotSeeded(volume))?;
        if newest.seq > point.seq {
            return Err(HarborError::BehindBase {
                point: point.id,
                volume,
                newest: newest.seq,
            });
        }
        if layers.len() >= CHAIN_MAX {
            return Err(HarborError::TooManyLayers {
                volume,
                layers: layers.len(),
            });
        }
        if newest.seq < point.seq {
            wanted.push(Wanted {
                volume,
                size,
                below: newest.clone(),
            });
        }
    }
    Ok(wanted)
}

/// Builds the layer of one volume; dropped before its end it leaves nothing.
struct Builder<'a> {
    shared: &'a Shared,
    base: BasePoint,
    size: u64,
    part: PathBuf,
    /// What shows at the point.
    above: Parts,
    /// What shows at the newest layer.
    below: Chain,
    below_path: PathBuf,
    after: Seq,
    new: Vec<u8>,
    old: Vec<u8>,
}

/// What is written.
struct Output {
    layer: LayerWriter,
    hashes: HashesWriter,
}

impl<'a> Builder<'a> {
    fn new(shared: &'a Shared, wanted: &Wanted, seq: Seq) -> Result<Builder<'a>> {
        let storage = &*shared.options.storage;
        let plan = shared.plan(wanted.volume, wanted.size, seq)?;
        let above = Parts::open(shared, plan, seq)?;
        let path = increment_path(&shared.base_dir(), wanted.volume, seq);
        Ok(Builder {
            shared,
            part: part_of(&path),
            base: BasePoint {
                volume: wanted.volume,
                seq,
                path,
            },
            size: wanted.size,
            above,
            below: Chain::open(storage, &wanted.below.path)?,
            below_path: wanted.below.path.clone(),
            after: wanted.below.seq,
            new: vec![0; COPY_PIECE],
            old: vec![0; COPY_PIECE],
        })
    }

    fn build(mut self, control: &mut Control<'_>) -> Result<BasePoint> {
        let mut output = self.create()?;
        let mut teller = Teller::new(control, self.base.volume, self.size);
        let mut from = 0;
        while from < self.size {
            let touched = self.touched(from)?;
            self.build_span(from, &touched, &mut output, &mut teller)?;
            from += BUILD_SPAN;
        }
        output.layer.finish().map_err(self.failed("write"))?;
        let hashed = output.hashes.finish();
        hashed.map_err(|e| HarborError::storage("write", &hashes_path(&self.base.path), e))?;
        put_in_place(&*self.shared.options.storage, &self.part, &self.base.path)
            .map_err(self.failed("rename"))?;
        Ok(self.base.clone())
    }

    fn create(&self) -> Result<Output> {
        let storage = &self.shared.options.storage;
        let name = self.below_path.file_name().unwrap_or_default();
        let name = name.to_string_lossy().into_owned();
        remove_if_there(&**storage, &self.part).map_err(self.failed("remove"))?;
        let file: Arc<dyn StorageFile> = storage
            .open(&self.part, OpenMode::New)
            .map_err(self.failed("create"))?;
        let layer = LayerWriter::new(file, self.size, Some(name), Clusters::Plain)
            .map_err(self.failed("create"))?;
        let path = hashes_path(&self.base.path);
        let hashes = HashesWriter::new(Arc::clone(storage), path.clone(), self.size, self.base.seq)
            .map_err(|e| HarborError::storage("create", &path, e))?;
        Ok(Output { layer, hashes })
    }

    /// Returns the clusters from byte `from` on, as far as they are gathered at a time, that may differ from the layer
    /// below.
    fn touched(&self, from: u64) -> Result<BitVec<u64>> {
        let end = self.size.min(from + BUILD_SPAN);
        let mut touched = BitVec::repeat(false, (end - from).div_ceil(CLUSTER_LEN) as usize);
        let mut touch = |start: u64, stop: u64| {
            let (start, stop) = (start.max(from), stop.min(end));
            if start < stop {
                let first = ((start - from) / CLUSTER_LEN) as usize;
                let behind = (stop - from).div_ceil(CLUSTER_LEN) as usize;
                if let Some(bits) = touched.get_mut(first..behind) {
                    bits.fill(true);
                }
            }
        };
        if self.below.size() != self.size {
            // What lies behind the end of either, with the cluster that is cut by it.
            let first = self.below.size().min(self.size) / CLUSTER_LEN;
            touch(first * CLUSTER_LEN, self.size);
        }
        let _kept = self.shared.keep_segments();
        for segment in self.segments() {
            let file = segment.open(&*self.shared.options.storage)?;
            let (lookups, volume) = (&self.shared.lookups, self.base.volume);
            segment.for_each_reaching(&*file, lookups, volume, &(from..end), |record| {
                if record.seq > self.after && record.seq <= self.base.seq {
                    touch(record.offset, record.offset.saturating_add(record.length));
                }
            })?;
        }
        Ok(touched)
    }

    /// Returns the segments that have records between the layer below and the point.
    fn segments(&self) -> Vec<Arc<Segment>> {
        let catalog = self.shared.catalog();
        let is_needed = |segment: &&Arc<Segment>| {
            segment.first_seq <= self.base.seq && segment.last_seq() > self.after
        };
        catalog.segments.iter().filter(is_needed).cloned().collect()
    }

    fn build_span(
        &mut self,
        from: u64,
        touched: &BitSlice<u64>,
        output: &mut Output,
        teller: &mut Teller<'_, '_>,
    ) -> Result<()> {
        let base = from / CLUSTER_LEN;
        let mut at = 0;
        while let Some(skip) = touched.get(at..).and_then(|rest| rest.first_one()) {
            let first = at + skip;
            let run = touched.get(first..).unwrap_or_default();
            let run = run.get(..PIECE_CLUSTERS).unwrap_or(run);
            let count = run.first_zero().unwrap_or(run.len());
            let (read, written) = self.build_piece(base + first as u64, count, output)?;
            at = first + count;
            teller.tell((base + at as u64) * CLUSTER_LEN, read, written)?;
        }
        let end = self.size.min(from + BUILD_SPAN);
        teller.tell(end, 0, 0)
    }

    /// Writes what differs of some clusters; returns the bytes that were read and written.
    fn build_piece(&mut self, first: u64, count: usize, output: &mut Output) -> Result<(u64, u64)> {
        let offset = first * CLUSTER_LEN;
        let len = count * CLUSTER;
        let within = (self.size - offset).min(len as u64) as usize;
        let extents = self.above.extents(offset, within as u64, usize::MAX)?;
        let is_new_zero = extents.iter().all(|extent| extent.zero);
        let is_old_zero = reads_zero(&self.below, offset, len as u64)?;
        if is_new_zero && is_old_zero {
            return Ok((0, 0));
        }
        let new = self.new.get_mut(..len).unwrap_or_default();
        let old = self.old.get_mut(..len).unwrap_or_default();
        let (inside, outside) = new.split_at_mut(within);
        outside.fill(0);
        if is_new_zero {
            inside.fill(0);
        } else {
            self.above.read_at(inside, offset)?;
        }
        if is_old_zero {
            old.fill(0);
        } else {
            self.below.read_at(old, offset)?;
        }
        let is_read = [!is_new_zero, !is_old_zero].map(u64::from);
        let read = is_read.iter().sum::<u64>() * len as u64;
        let written = write_changed(first, new, old, output);
        written
            .map(|written| (read, written))
            .map_err(self.failed("write"))
    }

    fn failed(&self, action: &'static str) -> impl Fn(std::io::Error) -> HarborError + use<> {
        let part = self.part.clone();
        move |error| HarborError::storage(action, &part, error)
    }
}

impl Drop for Builder<'_> {
    fn drop(&mut self) {
        // Under its own name it stays.
        if let Err(error) = remove_if_there(&*self.shared.options.storage, &self.part) {
            tracing::warn!(path = %self.part.display(), %error, "an unfinished layer stays behind");
        }
    }
}

/// Tells whether a range is known to be zeros without reading it.
fn reads_zero(chain: &Chain, offset: u64, len: u64) -> Result<bool> {
    let mut at = 0;
    while at < len {
        let run = chain.run(offset + at, len - at)?;
        if run.place.is_some() {
            return Ok(false);
        }
        at += run.len;
    }
    Ok(true)
}

/// Writes the clusters that differ, those in a row together; returns the bytes.
fn write_changed(first: u64, new: &[u8], old: &[u8], output: &mut Output) -> std::io::Result<u64> {
    let mut written = 0;
    // The clusters in a row that are to be written, by their place in `new`.
    let mut row = 0..0;
    let pairs = new.chunks(CLUSTER).zip(old.chunks(CLUSTER)).enumerate();
    for (number, (new_cluster, old_cluster)) in pairs {
        let cluster = first + number as u64;
        let place = number * CLUSTER;
        let is_same = new_cluster == old_cluster;
        let is_zero = !is_same && is_zero(new_cluster);
        if is_same || is_zero {
            written += put_row(first, new, &row, output)?;
            row = place + CLUSTER..place + CLUSTER;
        } else {
            row.end = place + CLUSTER;
        }
        if is_zero {
            output.layer.zero(cluster, 1)?;
        }
        if !is_same {
            output.hashes.push(cluster, hash_cluster(new_cluster))?;
        }
    }
    written += put_row(first, new, &row, output)?;
    Ok(written)
}

fn put_row(
    first: u64,
    new: &[u8],
    row: &std::ops::Range<usize>,
    output: &mut Output,
) -> std::io::Result<u64> {
    let bytes = new.get(row.clone()).unwrap_or_default();
    if !bytes.is_empty() {
        output
            .layer
            .put(first + (row.start / CLUSTER) as u64, bytes)?;
    }
    Ok(bytes.len() as u64)
}
