//! Points that were changed, as people are told of them.

use super::at::At;
use crate::{api::v1, units::format_size};

/// Names each point, and what was done to it: `point 123, 2026-11-22 05:12:01.123: locked`.
pub(super) fn each(changes: &v1::PointChanges, done: &str) -> String {
    let name = |point: &v1::Point| super::text::plain(&At::Latest.picked(point));
    let lines = changes
        .points
        .iter()
        .map(|point| format!("{}: {done}\n", name(point)));
    lines.collect()
}

/// As [`each`], for points that are gone, with the room that makes.
pub(super) fn deleted(changes: &v1::PointChanges) -> String {
    let freed = match changes.freed_bytes {
        0 => String::new(),
        bytes => format!("frees {} at least\n", format_size(bytes)),
    };
    each(changes, "deleted") + &freed
}
