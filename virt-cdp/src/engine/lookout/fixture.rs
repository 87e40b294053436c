//! Outlooks to test with: everything as it should be, from where a test changes what it is about.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use cdp_core::{RecorderStats, Timestamp, Usage, storage::Space};
use qemu_hook::tap::{LatencyCounts, TapCounts};

use super::{
    Free, Outlook,
    rates::{Activity, Growth},
    sight::{Sight, VolumeSight},
    sizes::Sizes,
    tally::Tally,
};
use crate::engine::{drills::Proof, machine::State};

/// 2026-01-02 03:04:05 UTC.
pub(super) const NOW: Timestamp = Timestamp(1_767_323_045_000_000_000);

/// The moment so many seconds before now.
pub(super) fn ago(s: u64) -> Timestamp {
    Timestamp(NOW.0 - s * 1_000_000_000)
}

/// A protected machine, with which nothing is wrong.
pub(super) fn sight(name: &str) -> Sight {
    let mut latency = LatencyCounts::default();
    latency.counts[1] = 90;
    latency.counts[9] = 10;
    latency.total_ns = 21_000_000;
    let counts = TapCounts {
        writes: 98,
        bytes: 401_408,
        zeroes: 2,
        zero_bytes: 8192,
        overdue: 1,
        latency,
    };
    let recording = RecorderStats {
        buffer_used: 4096,
        buffer_limit: 64 << 20,
        unsynced_age: Duration::from_millis(125),
        ..RecorderStats::default()
    };
    let lost = Tally {
        gaps: 2,
        time: Duration::from_millis(4500),
    };
    Sight {
        name: name.into(),
        state: State::Protected,
        detail: String::new(),
        since: ago(3600),
        missing: None,
        interval: Duration::from_secs(1),
        flush: Duration::from_millis(200),
        points: 7,
        newest: Some(ago(1)),
        base: Some(ago(1800)),
        gaps: BTreeMap::from([("tap-lost".into(), lost)]),
        open_gap: None,
        astray: Duration::ZERO,
        pending: Duration::ZERO,
        recording: Some(recording),
        volumes: vec![VolumeSight {
            target: "vda".into(),
            counts,
        }],
        sizes: Some(Sizes {
            at: Instant::now(),
            usage: Usage {
                journal_bytes: 3 << 20,
                base_bytes: 5 << 20,
            },
            unwritten: 1 << 20,
        }),
        limit: None,
        activity: Some(Activity {
            window: Duration::from_secs(300),
            bytes_per_second: 4096.0,
            writes_per_second: 1.0,
            latency,
        }),
        growth: Some(Growth {
            window: Duration::from_secs(1500),
            bytes_per_day: 1 << 30,
        }),
        damage: Arc::default(),
        verified: Some(Timestamp(1_000_000_000)),
        proof: Some(Proof {
            proved: Some((5, i64::try_from(ago(7200).0).unwrap_or(0))),
            last: Some(("20260102-020405-0001".into(), true, String::new())),
            last_ns: i64::try_from(ago(3600).0).unwrap_or(0),
            ended_ns: 0,
            judged_ns: 0,
            rto_ms: Some(12_300),
            counts: (3, 1),
        }),
        put_off: None,
    }
}

/// What the lookout sees when it sees those machines.
pub(super) fn outlook(machines: Vec<Sight>) -> Outlook {
    Outlook {
        at: NOW,
        machines: machines.into_iter().map(Arc::new).collect(),
        room: Some(Free {
            space: Space {
                free: 50 << 30,
                total: 100 << 30,
            },
            reserve: 1 << 30,
            is_low: false,
        }),
        ..Outlook::nothing()
    }
}
