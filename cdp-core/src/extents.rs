//! Which record is on top where: the merge of overlapping ranges, by number.
//!
//! A pure function from ranges in any order to spans in order, in O(n log n): a sweep over the
//! starts, with the ranges that are open at the moment in a heap, newest on top.

use std::collections::BinaryHeap;

/// A range that lies over all ranges of a lower order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layer {
    /// First byte.
    pub start: u64,
    /// Byte behind the last.
    pub end: u64,
    /// Higher is on top; no two are equal.
    pub order: u64,
    /// What it belongs to, for the caller.
    pub source: u32,
}

/// A range in which one source is on top.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: u64,
    /// Byte behind the last.
    pub end: u64,
    /// The source on top.
    pub source: u32,
}

/// Returns what is on top where, in order, without overlap; nothing where no layer is.
pub fn overlay(mut layers: Vec<Layer>) -> Vec<Span> {
    layers.sort_unstable_by_key(|layer| layer.start);
    let mut spans: Vec<Span> = Vec::with_capacity(layers.len());
    let mut open: BinaryHeap<(u64, u64, u32)> = BinaryHeap::new();
    let mut coming = layers.iter().peekable();
    let mut at = 0;
    loop {
        while open.peek().is_some_and(|(_, end, _)| *end <= at) {
            open.pop();
        }
        let next_start = coming.peek().map(|layer| layer.start);
        if let Some((_, end, source)) = open.peek() {
            let stop = next_start.map_or(*end, |start| start.min(*end));
            push(
                &mut spans,
                Span {
                    start: at,
                    end: stop,
                    source: *source,
                },
            );
            at = stop;
        } else if let Some(start) = next_start {
            at = start;
        } else {
            return spans;
        }
        while let Some(layer) = coming.next_if(|layer| layer.start <= at) {
            open.push((layer.order, layer.end, layer.source));
        }
    }
}

fn push(spans: &mut Vec<Span>, span: Span) {
    if span.start == span.end {
        return;
    }
    match spans.last_mut() {
        Some(last) if last.end == span.start && last.source == span.source => last.end = span.end,
        _ => spans.push(span),
    }
}

/// Returns the number of spans that end at or before byte `offset`: where a search begins.
pub fn first_after(spans: &[Span], offset: u64) -> usize {
    spans.partition_point(|span| span.end <= offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_is_on_top() {
        type Case = (&'static [(u64, u64)], &'static [(u64, u64, u32)]);
        let cases: [Case; 7] = [
            (&[], &[]),
            (&[(0, 10)], &[(0, 10, 0)]),
            (&[(0, 10), (2, 4)], &[(0, 2, 0), (2, 4, 1), (4, 10, 0)]),
            (&[(2, 4), (0, 10)], &[(0, 10, 1)]),
            (&[(0, 5), (5, 9)], &[(0, 5, 0), (5, 9, 1)]),
            (
                &[(0, 5), (7, 9), (3, 8)],
                &[(0, 3, 0), (3, 8, 2), (8, 9, 1)],
            ),
            (&[(0, 5), (0, 5), (0, 5)], &[(0, 5, 2)]),
        ];
        for (ranges, expected) in cases {
            let layers = ranges.iter().enumerate().map(|(i, (start, end))| Layer {
                start: *start,
                end: *end,
                order: i as u64,
                source: i as u32,
            });
            let spans: Vec<_> = overlay(layers.collect())
                .iter()
                .map(|s| (s.start, s.end, s.source))
                .collect();
            assert_eq!(spans, expected, "{ranges:?}");
        }
    }

    #[test]
    fn a_merge_equals_painting_one_after_the_other() {
        let mut state = 1_u64;
        let mut random = |below: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695);
            (state >> 33) % below
        };
        for round in 0..200 {
            let mut canvas = [u32::MAX; 64];
            let mut layers = Vec::new();
            for source in 0..20 {
                let start = random(60);
                let end = (start + 1 + random(12)).min(64);
                canvas[start as usize..end as usize].fill(source);
                layers.push(Layer {
                    start,
                    end,
                    order: u64::from(source),
                    source,
                });
            }
            let mut merged = [u32::MAX; 64];
            for span in overlay(layers) {
                merged[span.start as usize..span.end as usize].fill(span.source);
            }
            assert_eq!(merged, canvas, "round {round}");
        }
    }
}
