//! What `space --json` prints. The promise of [`json`](super::json) holds here too.

use serde::Serialize;

use super::json::{Point, all, document};
use crate::api::v1;

document! {
    /// What a harbor takes on its file system; `deletion` is null where no points were named.
    Space(s: v1::Space) {
        harbor: String = s.harbor.clone(),
        layers: Vec<Layer> = all(&s.layers),
        journal: Journal = Journal::from(&s.journal.unwrap_or_default()),
        unfinished_bytes: u64 = s.unfinished_bytes,
        other_bytes: u64 = s.other_bytes,
        total_bytes: u64 = s.total_bytes,
        deletion: Option<Deletion> = s.deletion.as_ref().map(Into::into),
    }
}

document! {
    /// A layer of a volume's base points; `first_point` is null where no point is shown with it.
    Layer(l: v1::LayerSpace) {
        volume: String = l.volume.clone(),
        seq: u64 = l.seq,
        first_point: Option<Point> = l.first_point.as_ref().map(Into::into),
        image_bytes: u64 = l.image_bytes,
        hashes_bytes: u64 = l.hashes_bytes,
    }
}

document! {
    /// What the journal takes.
    Journal(j: v1::JournalSpace) {
        sealed_segments: u64 = j.sealed_segments,
        sealed_bytes: u64 = j.sealed_bytes,
        cold_segments: u64 = j.cold_segments,
        cold_bytes: u64 = j.cold_bytes,
        recorded_bytes: u64 = j.recorded_bytes,
        reserved_bytes: u64 = j.reserved_bytes,
    }
}

document! {
    /// What deleting the points named would do; `held` of them would stay.
    Deletion(d: v1::Deletion) {
        points: u64 = d.points,
        held: u64 = d.held,
        freed_soon_bytes: u64 = d.freed_soon_bytes,
        freed_later_bytes: u64 = d.freed_later_bytes,
    }
}
