//! Tests of whole reports.

mod hostile;
mod junit;
mod keeping;
mod schema;
mod signed;

use super::{Key, sample};

/// A key by chance.
fn key() -> Key {
    let dir = tempfile::tempdir().unwrap();
    Key::open_or_make(&dir.path().join("report.key")).unwrap()
}

/// Numbers by chance from a seed.
fn chance(seed: &mut u64) -> usize {
    *seed = seed
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 33) as usize
}
