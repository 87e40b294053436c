//! How drills are held, and what is kept of them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Bounds, HINT_MARK, MIB, absolute, put_size, size};

const RESERVE_MEMORY: Bounds<u64> = Bounds {
    least: 0,
    most: 16 * 1024 * 1024 * MIB,
};

/// How drills are held, and what is kept of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Drills {
    /// The folder of check plugins.
    #[serde(deserialize_with = "absolute")]
    pub plugins: PathBuf,
    /// How many reports are kept, 1 at least; the oldest go first.
    #[serde(deserialize_with = "keep_reports")]
    pub keep_reports: usize,
    /// How many drills of policies run at once; 0: none.
    pub parallel: usize,
    /// Memory of the host that drills of policies leave free.
    #[serde(serialize_with = "put_size", deserialize_with = "reserve_memory")]
    pub reserve_memory: u64,
    /// When drills of policies may begin, as `22:00-06:00` in local time; empty: always.
    pub window: Window,
}

impl Default for Drills {
    fn default() -> Self {
        Self {
            plugins: "/etc/virt-cdp/checks.d".into(),
            keep_reports: 1000,
            parallel: 1,
            reserve_memory: 1024 * MIB,
            window: Window::default(),
        }
    }
}

fn keep_reports<'de, D: serde::Deserializer<'de>>(from: D) -> Result<usize, D::Error> {
    use serde::de::Error as _;
    match usize::deserialize(from)? {
        0 => Err(D::Error::custom(format!(
            "no report would be kept{HINT_MARK}give 1 or more"
        ))),
        kept => Ok(kept),
    }
}

fn reserve_memory<'de, D: serde::Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    size(from, &RESERVE_MEMORY)
}

pub use drill_runner::schedule::Window;
