//! The hashes beside a layer: a BLAKE3 of each cluster that it holds, in order, and one of the whole file.
//!
//! A file is written from front to back, its header last, and read back once for the hash at its end. Neither writing nor
//! reading takes more memory than a piece of it.
//!
//! Invariant: a file of hashes has its name before its layer has, and whatever hash is in it is that of what shows at the
//! layer: of all that the layer holds, and after a crash perhaps of more.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blake3::Hasher;

use crate::bounds::{CLUSTER, COPY_PIECE, VOLUME_SIZE_MAX};
use crate::error::{HarborError, Result};
use crate::format::{HASH_LEN, HASHES_ENTRY_LEN, HASHES_HEADER_LEN, HashesEntry, HashesHeader};
use crate::point::Seq;
use crate::storage::replace::{part_of, put_in_place, remove_if_there};
use crate::storage::{OpenMode, Storage, StorageFile};

/// A hash of a cluster.
pub type ClusterHash = [u8; HASH_LEN];

/// Bytes of the file that are read or written at a time.
const PIECE: usize = COPY_PIECE / HASHES_ENTRY_LEN * HASHES_ENTRY_LEN;

/// Returns the path of the hashes of a layer.
pub(crate) fn hashes_path(layer: &Path) -> PathBuf {
    layer.with_extension("hashes")
}

/// Returns the hash of a cluster of which only the first bytes are in the volume.
pub(crate) fn hash_cluster(bytes: &[u8]) -> ClusterHash {
    static ZEROS: [u8; CLUSTER] = [0; CLUSTER];
    let rest = ZEROS.get(bytes.len().min(CLUSTER)..).unwrap_or_default();
    if rest.is_empty() {
        return *blake3::hash(bytes).as_bytes();
    }
    *Hasher::new()
        .update(bytes)
        .update(rest)
        .finalize()
        .as_bytes()
}

/// Writes a file of hashes; dropped without [`finish`](Self::finish) it leaves nothing.
#[derive(Debug)]
pub(crate) struct HashesWriter {
    storage: Arc<dyn Storage>,
    path: PathBuf,
    file: Arc<dyn StorageFile>,
    header: HashesHeader,
    last: Option<u64>,
    bytes: Vec<u8>,
    place: u64,
    is_done: bool,
}

impl HashesWriter {
    /// Begins the file at `path`, under another name until it is complete.
    pub(crate) fn new(
        storage: Arc<dyn Storage>,
        path: PathBuf,
        size: u64,
        seq: Seq,
    ) -> io::Result<HashesWriter> {
        let part = part_of(&path);
        remove_if_there(&*storage, &part)?;
        let file = storage.open(&part, OpenMode::New)?;
        Ok(HashesWriter {
            storage,
            path,
            file,
            header: HashesHeader {
                size,
                seq,
                count: 0,
            },
            last: None,
            bytes: Vec::new(),
            place: HASHES_HEADER_LEN as u64,
            is_done: false,
        })
    }

    /// Adds the hash of a cluster, which must lie behind all before.
    pub(crate) fn push(&mut self, cluster: u64, hash: ClusterHash) -> io::Result<()> {
        if self.last.is_some_and(|last| cluster <= last) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.last = Some(cluster);
        self.header.count += 1;
        let entry = HashesEntry { cluster, hash };
        self.bytes.extend_from_slice(&entry.encode());
        if self.bytes.len() >= PIECE {
            self.write()?;
        }
        Ok(())
    }

    /// Completes the file and gives it its name, durable on return.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.write()?;
        let header = self.header.encode();
        self.file.write_at(&[IoSlice::new(&header)], 0)?;
        let hash = hash_file(&*self.file, self.place)?;
        self.file.write_at(&[IoSlice::new(&hash)], self.place)?;
        self.file.sync()?;
        put_in_place(&*self.storage, &part_of(&self.path), &self.path)?;
        self.is_done = true;
        Ok(())
    }

    fn write(&mut self) -> io::Result<()> {
        if !self.bytes.is_empty() {
            self.file
                .write_at(&[IoSlice::new(&self.bytes)], self.place)?;
            self.place += self.bytes.len() as u64;
            self.bytes.clear();
        }
        Ok(())
    }
}

impl Drop for HashesWriter {
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        let part = part_of(&self.path);
        if let Err(error) = remove_if_there(&*self.storage, &part) {
            tracing::warn!(path = %part.display(), %error, "unfinished hashes stay behind");
        }
    }
}

/// Returns the hash of the first `len` bytes of a file.
fn hash_file(file: &dyn StorageFile, len: u64) -> io::Result<[u8; HASH_LEN]> {
    let mut hasher = Hasher::new();
    let mut piece = vec![0; len.min(PIECE as u64) as usize];
    let mut at = 0;
    while at < len {
        let bytes = piece.get_mut(..(len - at).min(PIECE as u64) as usize);
        let bytes = bytes.unwrap_or_default();
        file.read_at(bytes, at)?;
        hasher.update(bytes);
        at += bytes.len() as u64;
    }
    Ok(*hasher.finalize().as_bytes())
}

/// A file of hashes, open for reading.
#[derive(Debug)]
pub(crate) struct HashesFile {
    path: PathBuf,
    file: Arc<dyn StorageFile>,
    header: HashesHeader,
}

impl HashesFile {
    /// Opens the file at `path`, once its header is found right; none if there is none.
    pub(crate) fn open(storage: &dyn Storage, path: &Path) -> Result<Option<HashesFile>> {
        let failed = |action| move |e| HarborError::storage(action, path, e);
        let file = match storage.open(path, OpenMode::Read) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(failed("open"))?,
        };
        let len = file.length().map_err(failed("read"))?;
        let damaged = |what: &str| HarborError::damaged(path, what);
        let least = (HASHES_HEADER_LEN + HASH_LEN) as u64;
        if len < least {
            return Err(damaged("it is too short"));
        }
        let mut header = [0; HASHES_HEADER_LEN];
        file.read_at(&mut header, 0).map_err(failed("read"))?;
        let header = HashesHeader::decode(&header).map_err(|e| damaged(&e.to_string()))?;
        let entries = header.count.checked_mul(HASHES_ENTRY_LEN as u64);
        if entries != Some(len - least) || header.size > VOLUME_SIZE_MAX {
            return Err(damaged("its length is not that of its entries"));
        }
        Ok(Some(HashesFile {
            path: path.to_path_buf(),
            file,
            header,
        }))
    }

    /// Compares the hash of the whole file with that at its end.
    pub(crate) fn check(&self) -> Result<()> {
        let failed = |e| HarborError::storage("read", &self.path, e);
        let end = HASHES_HEADER_LEN as u64 + self.header.count * HASHES_ENTRY_LEN as u64;
        let mut kept = [0; HASH_LEN];
        self.file.read_at(&mut kept, end).map_err(failed)?;
        match hash_file(&*self.file, end).map_err(failed)? == kept {
            true => Ok(()),
            false => Err(HarborError::damaged(&self.path, "its hash is wrong")),
        }
    }

    /// Returns the bytes of the volume.
    pub(crate) fn size(&self) -> u64 {
        self.header.size
    }

    /// Returns the number of entries.
    pub(crate) fn count(&self) -> u64 {
        self.header.count
    }

    /// Reads `count` entries from number `first` on.
    pub(crate) fn read(&self, first: u64, count: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; count as usize * HASHES_ENTRY_LEN];
        let place = HASHES_HEADER_LEN as u64 + first * HASHES_ENTRY_LEN as u64;
        self.file
            .read_at(&mut bytes, place)
            .map_err(|e| HarborError::storage("read", &self.path, e))?;
        Ok(bytes)
    }
}

/// The hashes beside a layer, read in order.
#[derive(Debug)]
pub struct Hashes {
    file: HashesFile,
    /// Entries that were read from the file.
    read: u64,
    bytes: Vec<u8>,
    /// Place of the next entry in `bytes`.
    at: usize,
    last: Option<u64>,
}

impl Hashes {
    /// Opens the hashes of the layer at `layer`, once the hash of the whole file is found right; none if there are none.
    ///
    /// # Errors
    /// The storage failed; they are damaged.
    pub fn open(storage: &dyn Storage, layer: &Path) -> Result<Option<Hashes>> {
        let Some(file) = HashesFile::open(storage, &hashes_path(layer))? else {
            return Ok(None);
        };
        file.check()?;
        Ok(Some(Hashes {
            file,
            read: 0,
            bytes: Vec::new(),
            at: 0,
            last: None,
        }))
    }

    /// Returns the bytes of the volume.
    pub fn size(&self) -> u64 {
        self.file.header.size
    }

    /// Returns the last record that the layer has.
    pub fn seq(&self) -> Seq {
        self.file.header.seq
    }

    /// Returns the number of hashes.
    pub fn count(&self) -> u64 {
        self.file.header.count
    }

    /// Returns the next cluster and its hash; none behind the last.
    ///
    /// # Errors
    /// The storage failed; an entry is impossible.
    pub fn next_hash(&mut self) -> Result<Option<(u64, ClusterHash)>> {
        if self.at >= self.bytes.len() && !self.read_more()? {
            return Ok(None);
        }
        let end = self.at + HASHES_ENTRY_LEN;
        let entry = HashesEntry::decode(self.bytes.get(self.at..end).unwrap_or_default());
        self.at = end;
        let is_behind = self.last.is_none_or(|last| entry.cluster > last);
        if !is_behind || entry.cluster >= self.file.header.size.div_ceil(CLUSTER as u64) {
            let what = format!("its entry of cluster {} is out of place", entry.cluster);
            return Err(HarborError::damaged(&self.file.path, what));
        }
        self.last = Some(entry.cluster);
        Ok(Some((entry.cluster, entry.hash)))
    }

    fn read_more(&mut self) -> Result<bool> {
        let left = (self.file.header.count - self.read) * HASHES_ENTRY_LEN as u64;
        let len = left.min(PIECE as u64) as usize;
        self.at = 0;
        self.bytes = self.file.read(self.read, (len / HASHES_ENTRY_LEN) as u64)?;
        self.read += (len / HASHES_ENTRY_LEN) as u64;
        Ok(len > 0)
    }
}

/// The hashes of a layer, to be asked for clusters in order.
#[derive(Debug)]
pub(crate) struct HashCursor {
    hashes: Option<Hashes>,
    ahead: Option<(u64, ClusterHash)>,
}

impl HashCursor {
    /// Opens the hashes of a layer, which may have none. It refuses those that are damaged: what is made of the layer would
    /// have none, or wrong ones.
    pub(crate) fn open(storage: &dyn Storage, layer: &Path) -> Result<HashCursor> {
        let mut cursor = HashCursor {
            hashes: Hashes::open(storage, layer)?,
            ahead: None,
        };
        cursor.advance()?;
        Ok(cursor)
    }

    /// Tells whether there are any.
    pub(crate) fn is_there(&self) -> bool {
        self.hashes.is_some()
    }

    /// Returns the next cluster that has a hash.
    pub(crate) fn next_cluster(&self) -> Option<u64> {
        self.ahead.map(|(cluster, _)| cluster)
    }

    /// Takes the next hash.
    pub(crate) fn take(&mut self) -> Result<Option<(u64, ClusterHash)>> {
        let taken = self.ahead;
        self.advance()?;
        Ok(taken)
    }

    /// Takes the hash of a cluster, and leaves out those before it.
    pub(crate) fn take_of(&mut self, cluster: u64) -> Result<Option<ClusterHash>> {
        while self.next_cluster().is_some_and(|next| next < cluster) {
            self.advance()?;
        }
        match self.next_cluster() {
            Some(next) if next == cluster => Ok(self.take()?.map(|(_, hash)| hash)),
            _ => Ok(None),
        }
    }

    fn advance(&mut self) -> Result<()> {
        self.ahead = match &mut self.hashes {
            Some(hashes) => hashes.next_hash()?,
            None => None,
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::SimulatedStorage;

    fn write(storage: &SimulatedStorage, clusters: &[u64]) -> PathBuf {
        let layer = PathBuf::from("/layer.qcow2");
        let path = hashes_path(&layer);
        let storage: Arc<dyn Storage> = Arc::new(storage.clone());
        let mut writer = HashesWriter::new(storage, path, 1 << 40, Seq(4)).unwrap();
        for cluster in clusters {
            writer.push(*cluster, [*cluster as u8; HASH_LEN]).unwrap();
        }
        writer.finish().unwrap();
        layer
    }

    #[test]
    fn what_is_written_is_read_in_order_also_over_many_pieces() {
        let storage = SimulatedStorage::new(1);
        let clusters: Vec<u64> = (0..70_000).map(|n| n * 3).collect();
        let layer = write(&storage, &clusters);
        let mut hashes = Hashes::open(&storage, &layer).unwrap().unwrap();
        assert_eq!(
            (hashes.size(), hashes.seq(), hashes.count()),
            (1 << 40, Seq(4), 70_000)
        );
        for cluster in clusters {
            let hash = [cluster as u8; HASH_LEN];
            assert_eq!(hashes.next_hash().unwrap(), Some((cluster, hash)));
        }
        assert_eq!(hashes.next_hash().unwrap(), None);
        let mut cursor = HashCursor::open(&storage, &layer).unwrap();
        assert_eq!(cursor.take_of(1).unwrap(), None);
        assert_eq!(cursor.take_of(300).unwrap(), Some([44; HASH_LEN]));
        assert_eq!(cursor.next_cluster(), Some(303));
    }

    #[test]
    fn any_bit_that_is_flipped_is_noticed() {
        let storage = SimulatedStorage::new(1);
        let layer = write(&storage, &[1, 2, 9]);
        let path = hashes_path(&layer);
        let bits = storage.content(&path).unwrap().len() as u64 * 8;
        for bit in 0..bits {
            storage.rot(&path, bit);
            assert!(Hashes::open(&storage, &layer).is_err(), "bit {bit}");
            storage.rot(&path, bit);
        }
        assert!(Hashes::open(&storage, &layer).unwrap().is_some());
        let elsewhere = Hashes::open(&storage, Path::new("/other.qcow2"));
        assert!(elsewhere.unwrap().is_none());
    }

    #[test]
    fn a_cluster_that_is_not_whole_is_hashed_as_if_zeros_followed() {
        let mut cluster = vec![0; CLUSTER];
        cluster[..700].fill(5);
        assert_eq!(hash_cluster(&cluster[..1024]), hash_cluster(&cluster));
        assert_eq!(hash_cluster(&cluster), *blake3::hash(&cluster).as_bytes());
    }
}
