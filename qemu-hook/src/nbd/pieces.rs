//! Cuts a read into the chunks of its reply, and block status to sectors.

use super::bounds;
use super::export::{Extent, ExtentKind};

/// One chunk of a read's reply, by device offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) kind: ExtentKind,
}

/// Plans the chunks that answer a read: they cover exactly `[offset, offset + len)`, in order.
pub(super) fn plan_pieces(extents: &[Extent], offset: u64, len: u64) -> Vec<Part> {
    let mut merged = Vec::new();
    let mut covered = 0;
    for extent in clip(extents, len) {
        let kind = if extent.len < bounds::HOLE_MIN {
            ExtentKind::Data
        } else {
            extent.kind
        };
        Extent::push_merged(&mut merged, extent.len, kind);
        covered += extent.len;
    }
    Extent::push_merged(&mut merged, len - covered, ExtentKind::Data);

    let mut plan = Vec::new();
    let mut at = offset;
    for Extent {
        len: mut left,
        kind,
    } in merged
    {
        while left > 0 {
            let len = match kind {
                ExtentKind::Data => left.min(bounds::READ_PIECE as u64),
                ExtentKind::Zero => left,
            };
            plan.push(Part {
                offset: at,
                len,
                kind,
            });
            at += len;
            left -= len;
        }
    }
    plan
}

/// Cuts extents to `len` bytes, merged, without the empty ones.
pub(super) fn clip(extents: &[Extent], len: u64) -> Vec<Extent> {
    let mut clipped = Vec::new();
    let mut left = len;
    for extent in extents {
        let part = extent.len.min(left);
        Extent::push_merged(&mut clipped, part, extent.kind);
        left -= part;
    }
    clipped
}

/// Moves boundaries inside `len` bytes from byte `offset`, of which the extents tell the first, to sectors: zeroes shrink.
///
/// qemu-img counts block status in sectors and rounds up: data in a sector that begins as zeroes
/// would be lost in its copy.
pub(super) fn to_sectors(extents: &[Extent], offset: u64, len: u64) -> Vec<Extent> {
    let end = extents.iter().fold(offset, |at, extent| at + extent.len);
    let mut moved = Vec::new();
    let (mut start, mut told) = (offset, offset);
    for extent in extents {
        let stop = start + extent.len;
        if extent.kind == ExtentKind::Zero {
            let from = if start == offset {
                start
            } else {
                start.next_multiple_of(bounds::SECTOR)
            };
            let to = if stop == offset + len {
                stop
            } else {
                stop - stop % bounds::SECTOR
            };
            if from < to {
                Extent::push_merged(&mut moved, from - told, ExtentKind::Data);
                Extent::push_merged(&mut moved, to - from, ExtentKind::Zero);
                told = to;
            }
        }
        start = stop;
    }
    Extent::push_merged(&mut moved, end - told, ExtentKind::Data);
    moved
}

#[cfg(test)]
mod tests {
    use super::*;
    use ExtentKind::{Data, Zero};

    fn extents(list: &[(u64, ExtentKind)]) -> Vec<Extent> {
        let make = |&(len, kind)| Extent { len, kind };
        list.iter().map(make).collect()
    }

    #[test]
    fn a_plan_covers_the_read_whatever_the_extents_say() {
        let piece = bounds::READ_PIECE as u64;
        type Row<'a> = (&'a [(u64, ExtentKind)], u64, usize);
        let tables: &[Row<'_>] = &[
            (&[], 100, 1),
            (&[(100, Zero)], 100, 1),
            (&[(4096, Zero), (4096, Data), (u64::MAX, Zero)], 16384, 3),
            (&[(4096, Data), (512, Zero), (3584, Data)], 8192, 1),
            (&[(10, Data), (0, Zero)], 8192, 1),
            (&[(3 * piece, Data)], 2 * piece + 1, 3),
            (&[(8 * piece, Zero)], 8 * piece, 1),
        ];
        for (list, len, count) in tables {
            let plan = plan_pieces(&extents(list), 1000, *len);
            assert_eq!(plan.len(), *count, "{list:?}");
            let mut at = 1000;
            for part in plan {
                assert_eq!(part.offset, at);
                assert!(part.len > 0 && (part.kind == Zero || part.len <= piece));
                at += part.len;
            }
            assert_eq!(at, 1000 + len, "{list:?}");
        }
    }

    #[test]
    fn extents_are_cut_to_the_request() {
        let all = extents(&[(10, Data), (10, Data), (0, Zero), (10, Zero), (99, Data)]);
        let cut = extents(&[(20, Data), (10, Zero), (5, Data)]);
        assert_eq!(clip(&all, 35), cut);
        assert_eq!(clip(&all, 12), extents(&[(12, Data)]));
        assert!(clip(&[], 12).is_empty());
    }

    #[test]
    fn zeroes_shrink_to_whole_sectors() {
        type Row<'a> = (u64, &'a [(u64, ExtentKind)], &'a [(u64, ExtentKind)]);
        let tables: &[Row<'_>] = &[
            (0, &[(100, Zero), (412, Data)], &[(512, Data)]),
            (
                0,
                &[(600, Data), (1000, Zero), (400, Data)],
                &[(1024, Data), (512, Zero), (464, Data)],
            ),
            (0, &[(600, Data), (300, Zero)], &[(900, Data)]),
            (
                0,
                &[(1024, Data), (300, Zero)],
                &[(1024, Data), (300, Zero)],
            ),
            (700, &[(10, Zero)], &[(10, Zero)]),
            (
                700,
                &[(400, Zero), (100, Data)],
                &[(324, Zero), (176, Data)],
            ),
            (
                0,
                &[(513, Zero), (1, Data), (510, Zero)],
                &[(512, Zero), (512, Data)],
            ),
        ];
        for (offset, given, wanted) in tables {
            let len = given.iter().map(|(len, _)| len).sum();
            assert_eq!(to_sectors(&extents(given), *offset, len), extents(wanted));
        }
        // What follows on the last one is not told: it may be data in the same sector.
        let given = extents(&[(1024, Data), (700, Zero)]);
        let wanted = extents(&[(1024, Data), (512, Zero), (188, Data)]);
        assert_eq!(to_sectors(&given, 0, 4096), wanted);
    }
}
