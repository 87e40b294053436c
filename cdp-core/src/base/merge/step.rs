//! What is merged next of a chain of layers: a pure function.

use crate::bounds::LAYERS_MAX;
use crate::point::Seq;

/// What is known of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) seq: Seq,
    /// Which of the layers it stands on.
    pub(super) below: Option<usize>,
    /// Whether it stands on none at all.
    pub(super) is_full: bool,
    /// Bytes of its file.
    pub(super) bytes: u64,
    /// Whether something that lies behind its end shows at later points all the same: then what is below it must stay.
    pub(super) hides_more: bool,
}

/// What is to be done with a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// This layer goes: nothing stands on it, and nothing needs it.
    Drop(usize),
    /// The second layer goes into the first, which is full.
    IntoFull,
    /// This layer and the next become one.
    Join(usize),
}

/// Returns the next step for the layers of a volume, oldest first; no point before record `first_kept` is kept.
pub(super) fn next_step(layers: &[Facts], first_kept: Seq) -> Option<Step> {
    if layers.len() <= LAYERS_MAX {
        return None;
    }
    let (newest, second) = (layers.len() - 1, layers.get(1)?);
    let is_needed = |at: usize| layers.iter().any(|layer| layer.below == Some(at));
    let is_old = second.seq <= first_kept && !second.hides_more;
    if is_old && !is_needed(0) {
        return Some(Step::Drop(0));
    }
    // Left over where a crash came between the two steps of a join, or a volume was seeded anew.
    if let Some(dead_end) = (1..newest).find(|at| !is_needed(*at)) {
        return Some(Step::Drop(dead_end));
    }
    let is_below = |at: usize| {
        layers
            .get(at + 1)
            .is_some_and(|upper| upper.below == Some(at))
    };
    let first_is_full = layers.first().is_some_and(|first| first.is_full);
    if is_old && first_is_full && is_below(0) && is_alone_on(layers, 0) {
        return Some(Step::IntoFull);
    }
    // Whichever is cheapest to write, the oldest of equals: so an increment is not written anew with each merging.
    let cost = |at: usize| {
        let bytes = |at: usize| layers.get(at).map_or(0, |layer| layer.bytes);
        let is_full = layers.get(at).is_some_and(|layer| layer.is_full);
        (is_full, bytes(at) + bytes(at + 1))
    };
    let pairs = (1..newest).filter(|at| is_below(*at) && is_alone_on(layers, *at));
    pairs.min_by_key(|at| cost(*at)).map(Step::Join)
}

/// Tells whether only the next layer stands on one.
fn is_alone_on(layers: &[Facts], at: usize) -> bool {
    let standing = layers.iter().filter(|layer| layer.below == Some(at));
    standing.count() == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Layers at records 10, 20 and so on, each over the one before.
    fn chain(bytes: &[u64]) -> Vec<Facts> {
        let layers = bytes.iter().enumerate().map(|(at, bytes)| Facts {
            seq: Seq(10 * (at as u64 + 1)),
            below: at.checked_sub(1),
            is_full: at == 0,
            bytes: *bytes,
            hides_more: false,
        });
        layers.collect()
    }

    #[test]
    fn the_full_takes_in_what_no_kept_point_lies_before() {
        let nine = chain(&[90, 1, 1, 1, 1, 1, 1, 1, 1]);
        let table = [
            (Seq(0), Some(Step::Join(1))),
            (Seq(19), Some(Step::Join(1))),
            (Seq(20), Some(Step::IntoFull)),
            (Seq(u64::MAX), Some(Step::IntoFull)),
        ];
        for (first_kept, step) in table {
            assert_eq!(next_step(&nine, first_kept), step, "{first_kept}");
            assert_eq!(next_step(&nine[..8], first_kept), None);
        }
        let mut cut = nine;
        cut[1].hides_more = true;
        assert_eq!(next_step(&cut, Seq(500)), Some(Step::Join(1)));
    }

    #[test]
    fn the_neighbours_that_are_cheapest_become_one() {
        let table: [(&[u64], usize); 4] = [
            (&[90, 2, 1, 1, 1, 1, 1, 1, 1], 2),
            (&[90, 8, 4, 2, 2, 1, 1, 1, 9], 5),
            (&[90, 5, 5, 5, 5, 5, 5, 5, 5], 1),
            (&[1, 9, 9, 9, 9, 9, 9, 1, 1], 7),
        ];
        for (bytes, at) in table {
            assert_eq!(
                next_step(&chain(bytes), Seq(0)),
                Some(Step::Join(at)),
                "{bytes:?}"
            );
        }
    }

    #[test]
    fn what_nothing_stands_on_goes_first() {
        // Joined with the one behind it, and the power was cut before it was removed.
        let mut layers = chain(&[90, 1, 1, 1, 1, 1, 1, 1, 1]);
        layers[3].below = Some(1);
        assert_eq!(next_step(&layers, Seq(500)), Some(Step::Drop(2)));
        // The oldest increment is such a one: it must not go into the full, on which others stand.
        let mut layers = chain(&[90, 1, 1, 1, 1, 1, 1, 1, 1]);
        layers[2].below = Some(0);
        assert_eq!(next_step(&layers, Seq(500)), Some(Step::Drop(1)));
        // The newest is no dead end.
        let mut layers = chain(&[90, 1, 1, 1, 1, 1, 1, 1, 1]);
        layers[8].below = Some(0);
        assert_eq!(next_step(&layers, Seq(500)), Some(Step::Drop(7)));
        // Seeded anew: the older full goes once no point needs it.
        let mut layers = chain(&[90, 90, 1, 1, 1, 1, 1, 1, 1]);
        (layers[1].below, layers[1].is_full) = (None, true);
        assert_eq!(next_step(&layers, Seq(20)), Some(Step::Drop(0)));
        assert_eq!(next_step(&layers, Seq(19)), Some(Step::Join(2)));
    }
}
