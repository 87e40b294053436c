//! Verifies one layer of a volume: the structure of its image, the hashes beside it, and every cluster it holds by its hash.
//!
//! Threads go over the volume and read what the layer holds, piece by piece in turn; another one compares the hashes. What has
//! no hash is counted: it cannot be told whether that is right, but for what the structure shows.

use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

use super::{Found, Lost, Teller};
use crate::base::hashes::{ClusterHash, Hashes, hash_cluster, hashes_path};
use crate::base::{BasePoint, layer_seq};
use crate::bounds::{CLUSTER, PIECES_AHEAD};
use crate::error::{HarborError, Result};
use crate::format::HASH_LEN;
use crate::qcow2::Chain;
use crate::qcow2::check::{Costs, Structure};
use crate::qcow2::reader::{Held, Qcow2Reader};
use crate::storage::Storage;

const CLUSTER_LEN: u64 = CLUSTER as u64;
/// Threads that read a layer.
const READERS: usize = 2;
/// The longest stretch that is asked for.
const STRETCH_MAX: u64 = 16 << 20;
/// Bytes that are read at a time: few, so that they are still in a cache when they are hashed.
const PIECE: u64 = 256 << 10;

/// What is found of a layer and of its hashes.
#[derive(Debug)]
pub(super) struct Both<'a> {
    pub(super) image: &'a mut Found,
    pub(super) hashes: &'a mut Found,
    /// Clusters the layer holds that have no hash.
    pub(super) unchecked: u64,
}

/// Reads all of a layer. `below` are the layers of its volume that are older, by the names of their files,
/// where that is known.
pub(super) fn check(
    storage: &dyn Storage,
    layer: &BasePoint,
    below: Option<&[String]>,
    both: &mut Both<'_>,
    teller: &mut Teller<'_, '_>,
) -> Result<()> {
    let structure = crate::qcow2::check::check(storage, &layer.path, &mut |n| teller.read(n))?;
    let all = Lost::Layer {
        volume: layer.volume,
        layer: layer.seq,
    };
    for fault in &structure.faults {
        let lost = match &fault.costs {
            Costs::Nothing => Lost::Nothing,
            Costs::Range(range) => area(layer, range.clone()),
            Costs::All => all.clone(),
        };
        both.image.add(fault.bytes.clone(), &fault.what, lost);
    }
    let Some((size, backing)) = structure.header.clone() else {
        return Ok(());
    };
    if let (Some(name), Some(below)) = (&backing, below)
        && (!below.contains(name) || layer_seq(name).is_none_or(|seq| seq >= layer.seq))
    {
        let what = format!("it stands on {name}, which is no layer below it");
        both.image.add(0..CLUSTER_LEN, &what, all.clone());
    }
    let hashes = open_hashes(storage, layer, size, both, &all, teller)?;
    let image = match Qcow2Reader::open(storage, &layer.path) {
        Ok(image) => image,
        Err(HarborError::Damaged { what, .. }) => {
            both.image.add(0..CLUSTER_LEN, &what, all);
            return Ok(());
        }
        Err(other) => return Err(other),
    };
    let mut content = Content {
        layer,
        structure: &structure,
        is_full: backing.is_none(),
        hashes,
        ahead: None,
        zeros: hash_cluster(&[]),
        size,
        chain: None,
        storage,
        both,
    };
    content.advance()?;
    thread::scope(|scope| {
        let (ours, mut ways) = Ways::new();
        let image = &image;
        for (turn, way) in ours.into_iter().enumerate() {
            // The first piece has number 1.
            scope.spawn(move || read(image, (turn + 1) % READERS, &way));
        }
        content.take(&mut ways, teller)
    })
}

fn area(layer: &BasePoint, range: Range<u64>) -> Lost {
    Lost::Area {
        volume: layer.volume,
        layer: layer.seq,
        offset: range.start,
        length: range.end - range.start,
    }
}

/// Opens the hashes of a layer, of which all bytes are checked then; none if there are none, or none that are right.
fn open_hashes(
    storage: &dyn Storage,
    layer: &BasePoint,
    size: u64,
    both: &mut Both<'_>,
    all: &Lost,
    teller: &mut Teller<'_, '_>,
) -> Result<Option<Hashes>> {
    let path = hashes_path(&layer.path);
    let len = storage
        .open(&path, crate::storage::OpenMode::Read)
        .and_then(|file| file.length());
    teller.read(len.unwrap_or_default())?;
    let hashes = match Hashes::open(storage, &layer.path) {
        Ok(Some(hashes)) => hashes,
        Ok(None) => return Ok(None),
        Err(HarborError::Damaged { what, .. }) => {
            both.hashes.add(0..0, &what, Lost::Nothing);
            return Ok(None);
        }
        Err(HarborError::Storage { source, .. }) => {
            both.hashes.add(0..0, &source.to_string(), Lost::Nothing);
            return Ok(None);
        }
        Err(other) => return Err(other),
    };
    if hashes.size() != size || hashes.seq() != layer.seq {
        let what = "it is not as large as its hashes say, or of another record";
        both.image.add(0..CLUSTER_LEN, what, all.clone());
    }
    Ok(Some(hashes))
}

/// What a layer holds of a run of clusters.
#[derive(Debug)]
enum Piece {
    Zeros(Range<u64>),
    /// As they read, with zeros behind the end of the volume; and where they are in the file, if that is one place.
    Bytes(u64, Vec<u8>, Option<u64>),
    /// They cannot be read.
    Broken(Range<u64>, String),
}

/// Where a thread's pieces go, and where their memory comes back from.
struct Way {
    pieces: SyncSender<Piece>,
    spent: Receiver<Vec<u8>>,
}

/// Where pieces come from, each of its thread in turn, and where their memory goes back to.
struct Ways {
    pieces: Vec<Receiver<Piece>>,
    spent: Vec<Sender<Vec<u8>>>,
    next: usize,
}

impl Ways {
    /// Makes as many as there are threads.
    fn new() -> (Vec<Way>, Ways) {
        let mut ours = Vec::new();
        let mut ways = Ways {
            pieces: Vec::new(),
            spent: Vec::new(),
            next: 0,
        };
        for _ in 0..READERS {
            let (pieces, received) = sync_channel(PIECES_AHEAD);
            let (back, spent) = channel();
            ours.push(Way { pieces, spent });
            ways.pieces.push(received);
            ways.spent.push(back);
        }
        (ours, ways)
    }

    /// Returns the next piece; none behind the last.
    fn next(&mut self) -> Option<Piece> {
        let piece = self.pieces.get(self.next)?.recv().ok();
        self.next = (self.next + 1) % READERS;
        piece
    }

    /// Gives back the memory of the piece that was returned last.
    fn give_back(&self, bytes: Vec<u8>) {
        let last = (self.next + READERS - 1) % READERS;
        if let Some(spent) = self.spent.get(last) {
            // Nobody may want it any more.
            let _ = spent.send(bytes);
        }
    }
}

/// Reads every so manyth piece of what a layer holds, in order, until nobody wants the next one.
fn read(image: &Qcow2Reader, turn: usize, way: &Way) {
    let (mut at, mut count) = (0, 0);
    while at < image.size() {
        let first = at / CLUSTER_LEN;
        // What is read of a stretch is not more than a piece: it need not be known how far it goes on from there.
        let most = (image.size() - at).min(STRETCH_MAX);
        let (len, is_piece, held) = match image.stretch(at, most) {
            Ok(stretch) => match stretch.held {
                Held::Nothing => (stretch.len, false, Ok(stretch.held)),
                Held::Zeros => (stretch.len, true, Ok(stretch.held)),
                Held::Bytes(_) => (stretch.len.min(PIECE), true, Ok(stretch.held)),
                Held::Packed(_) => (stretch.len.min(CLUSTER_LEN), true, Ok(stretch.held)),
            },
            Err(error) => (CLUSTER_LEN.min(image.size() - at), true, Err(error)),
        };
        if is_piece {
            count += 1;
            if count % READERS == turn
                && way
                    .pieces
                    .send(piece(image, first, len, held, &way.spent))
                    .is_err()
            {
                return;
            }
        }
        at += len;
    }
}

/// Reads `len` bytes from a cluster on, of which it is known how they are held.
fn piece(
    image: &Qcow2Reader,
    first: u64,
    len: u64,
    held: Result<Held>,
    spent: &Receiver<Vec<u8>>,
) -> Piece {
    let clusters = first..first + len.div_ceil(CLUSTER_LEN);
    match held {
        Ok(Held::Nothing | Held::Zeros) => Piece::Zeros(clusters),
        Ok(Held::Bytes(place)) => {
            let mut bytes = spent.try_recv().unwrap_or_default();
            bytes.resize(len as usize, 0);
            match image.read_file(&mut bytes, place) {
                Ok(()) => Piece::Bytes(first, bytes, Some(place)),
                Err(error) => Piece::Broken(clusters, error.to_string()),
            }
        }
        Ok(Held::Packed(packed)) => match image.unpack(packed) {
            Ok(mut bytes) => {
                bytes.truncate(len as usize);
                Piece::Bytes(first, bytes, None)
            }
            Err(error) => Piece::Broken(clusters, error.to_string()),
        },
        Err(error) => Piece::Broken(clusters, error.to_string()),
    }
}

/// The comparing of what a layer holds.
struct Content<'a, 'b> {
    layer: &'a BasePoint,
    structure: &'a Structure,
    is_full: bool,
    hashes: Option<Hashes>,
    /// The next hash.
    ahead: Option<(u64, ClusterHash)>,
    zeros: ClusterHash,
    /// Bytes of the volume.
    size: u64,
    /// The layer with all it stands on, once that is needed.
    chain: Option<Result<Chain>>,
    storage: &'a dyn Storage,
    both: &'a mut Both<'b>,
}

impl Content<'_, '_> {
    fn advance(&mut self) -> Result<()> {
        self.ahead = match &mut self.hashes {
            Some(hashes) => hashes.next_hash()?,
            None => None,
        };
        Ok(())
    }

    fn take(&mut self, ways: &mut Ways, teller: &mut Teller<'_, '_>) -> Result<()> {
        while let Some(piece) = ways.next() {
            match piece {
                Piece::Zeros(clusters) => {
                    for cluster in clusters {
                        let zeros = self.zeros;
                        self.compare(cluster, &zeros, 0..0, true)?;
                    }
                }
                Piece::Bytes(first, bytes, place) => {
                    teller.read(bytes.len() as u64)?;
                    for (cluster, bytes) in (first..).zip(bytes.chunks(CLUSTER)) {
                        let at = place.map(|place| place + (cluster - first) * CLUSTER_LEN);
                        let at = at.map_or(0..0, |at| at..at + CLUSTER_LEN);
                        self.compare(cluster, &hash_cluster(bytes), at, false)?;
                    }
                    ways.give_back(bytes);
                }
                Piece::Broken(clusters, why) => {
                    for cluster in clusters {
                        self.hash_of(cluster)?;
                        self.lost(cluster, 0..0, &why);
                    }
                }
            }
        }
        // What is left is of clusters that it does not hold.
        self.hash_of(u64::MAX)?;
        Ok(())
    }

    /// Compares a cluster of the volume with its hash.
    fn compare(
        &mut self,
        cluster: u64,
        hash: &ClusterHash,
        place: Range<u64>,
        is_zeros: bool,
    ) -> Result<()> {
        match self.hash_of(cluster)? {
            Some(right) if right == *hash => {}
            Some(_) => self.lost(cluster, place, "a cluster is not what was written"),
            None if self.is_suspect(&place) => {
                let what = "a cluster that has no hash is not used as it is counted";
                self.lost(cluster, place, what);
            }
            None if !is_zeros => self.both.unchecked += 1,
            None => {}
        }
        Ok(())
    }

    /// Returns the hash of a cluster; those before it are of clusters that the layer does not hold.
    fn hash_of(&mut self, cluster: u64) -> Result<Option<ClusterHash>> {
        while let Some((number, hash)) = self.ahead.filter(|(number, _)| *number <= cluster) {
            self.advance()?;
            if number == cluster {
                return Ok(Some(hash));
            }
            if hash != self.below(number)? {
                self.lost(number, 0..0, "a cluster is missing");
            }
        }
        Ok(None)
    }

    /// Returns the hash of what shows where the layer does not hold a cluster. Hashes have their name before the layer that
    /// they are of, which joins two: a crash in between leaves some of what the lower one holds.
    fn below(&mut self, cluster: u64) -> Result<ClusterHash> {
        if self.is_full {
            return Ok(self.zeros);
        }
        if self.chain.is_none() {
            self.chain = Some(Chain::open(self.storage, &self.layer.path));
        }
        let start = cluster * CLUSTER_LEN;
        let mut content = vec![0; CLUSTER_LEN.min(self.size - start.min(self.size)) as usize];
        match &self.chain {
            // What cannot be read has a finding of its own, and is missing here.
            Some(Ok(chain)) if chain.read_at(&mut content, start).is_ok() => {
                Ok(hash_cluster(&content))
            }
            _ => Ok([0; HASH_LEN]),
        }
    }

    fn lost(&mut self, cluster: u64, place: Range<u64>, what: &str) {
        let range = cluster * CLUSTER_LEN..(cluster + 1) * CLUSTER_LEN;
        let is_told = |costs: &Costs| matches!(costs, Costs::Range(told) if told.start <= range.start && range.end <= told.end);
        if !self
            .structure
            .faults
            .iter()
            .any(|fault| is_told(&fault.costs))
        {
            let lost = area(self.layer, range);
            self.both.image.add(place, what, lost);
        }
    }

    fn is_suspect(&self, place: &Range<u64>) -> bool {
        let at = (place.start / CLUSTER_LEN) as usize;
        !place.is_empty() && self.structure.suspect.get(at).is_some_and(|bit| *bit)
    }
}
