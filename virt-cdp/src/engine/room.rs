//! Whether the file system of the harbors has room for what is captured.
//!
//! One thread of the daemon asks it, several times in the time in which a fast guest writes the reserve full; whoever
//! wants to know reads the last answer. A file system that does not answer holds up that thread and nothing else.
//!
//! Room is low once less than the reserve is free, and is enough again once a margin is free beyond it. What a segment
//! reserves never reaches into the reserve, so that a protection that returns does not end itself by that.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use cdp_core::storage::{RealStorage, Space, Storage};

use super::{guard, lookout::Free};
use crate::{
    api::{ApiError, ApiErrorKind, ApiResult},
    units::format_size,
};

/// How often the file system is asked. With the supervisor's look, which comes as often, a guest that writes 2 GB/s
/// has used less than half of the default reserve when its capture is put down.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// What is kept free.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reserve {
    /// Bytes, of which a tenth of the file system counts at most.
    pub(crate) bytes: u64,
    /// Length of a segment: the margin is two of them at most.
    pub(crate) segment: u64,
}

/// A file system whose room is low.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Low {
    /// Bytes that are free.
    pub(crate) free: u64,
    /// Bytes that are kept free.
    pub(crate) reserve: u64,
    /// Bytes that must be free until there is enough again.
    pub(crate) enough: u64,
}

impl Reserve {
    /// Judges the room there is; `was_low` as it was judged before.
    fn judge(self, space: Space, was_low: bool) -> Option<Low> {
        let reserve = space.kept_free(self.bytes);
        let margin = self.segment.saturating_mul(2).min(reserve / 2);
        let enough = reserve.saturating_add(margin);
        let needed = if was_low { enough } else { reserve };
        (space.free < needed).then_some(Low {
            free: space.free,
            reserve,
            enough,
        })
    }
}

impl fmt::Display for Low {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [free, reserve, enough] = [self.free, self.reserve, self.enough].map(format_size);
        write!(
            f,
            "no space to spare: the file system of the harbors has {free} free, and the reserve is {reserve} \
             (capture.reserve); make room on it, and protection returns by itself once {enough} are free"
        )
    }
}

/// A machine whose disks are being read for a seed or a resync, as long as it is held.
pub(crate) struct BeingRead(Arc<Room>);

impl Drop for BeingRead {
    fn drop(&mut self) {
        self.0.being_read.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Knows whether there is room.
pub(crate) struct Room {
    dir: PathBuf,
    storage: Arc<dyn Storage>,
    reserve: Reserve,
    low: Mutex<Option<Low>>,
    /// As it was told last.
    space: Mutex<Option<Space>>,
    /// Machines whose disks are being read.
    being_read: AtomicUsize,
}

impl Room {
    /// Asks the file system of `dir` a first time, and then again and again as long as the answer is held.
    pub(crate) fn watch(dir: &Path, reserve: Reserve) -> io::Result<Arc<Self>> {
        let room = Arc::new(Self {
            dir: dir.to_path_buf(),
            storage: Arc::new(RealStorage),
            reserve,
            low: Mutex::default(),
            space: Mutex::default(),
            being_read: AtomicUsize::new(0),
        });
        room.look();
        let watched = Arc::downgrade(&room);
        // Nobody waits for its end: it may be held up.
        thread::Builder::new().name("room".into()).spawn(move || {
            while let Some(room) = watched.upgrade() {
                room.look();
                drop(room);
                thread::sleep(LOOK_INTERVAL);
            }
        })?;
        Ok(room)
    }

    /// Says how low the room is, as it was seen last; does not wait.
    pub(crate) fn low(&self) -> Option<Low> {
        *guard(&self.low)
    }

    /// Returns the room there is, as it was seen last; does not wait. None if it was never seen.
    pub(crate) fn known(&self) -> Option<Free> {
        let space = (*guard(&self.space))?;
        Some(Free {
            space,
            reserve: space.kept_free(self.reserve.bytes),
            is_low: self.low().is_some(),
        })
    }

    /// Says that a machine's disks are being read, as long as the answer is held.
    pub(crate) fn being_read(self: &Arc<Self>) -> BeingRead {
        self.being_read.fetch_add(1, Ordering::SeqCst);
        BeingRead(Arc::clone(self))
    }

    /// Says how low the room is, if a machine that `is_ready` has to yield it. One whose disks are being read yields at
    /// once, and what it gives back may be enough: the others wait for that, down to half of the reserve.
    pub(crate) fn to_yield(&self, is_ready: bool) -> Option<Low> {
        let waits = is_ready && self.being_read.load(Ordering::SeqCst) > 0;
        self.low()
            .filter(|low| !waits || low.free < low.reserve / 2)
    }

    /// Refuses what needs room while there is none; asks the file system.
    pub(crate) fn require(&self) -> ApiResult<()> {
        match self.look() {
            None => Ok(()),
            Some(low) => {
                let [free, reserve, enough] = [low.free, low.reserve, low.enough].map(format_size);
                let what = format!(
                    "no space to spare: {} has {free} left, and {reserve} are kept free (capture.reserve)",
                    self.dir.display()
                );
                Err(ApiError::new(ApiErrorKind::ResourceExhausted, what).hint(format!(
                    "make room on that file system until {enough} are free, or set state_dir to a larger one"
                )))
            }
        }
    }

    /// Returns what is free, and what of it is kept free; asks the file system.
    pub(crate) fn free(&self) -> io::Result<(u64, u64)> {
        let space = self.storage.space(&self.dir)?;
        Ok((space.free, space.kept_free(self.reserve.bytes)))
    }

    fn look(&self) -> Option<Low> {
        let space = match self.storage.space(&self.dir) {
            Ok(space) => space,
            Err(error) => {
                tracing::debug!(dir = %self.dir.display(), %error, "its room is not known now");
                return self.low();
            }
        };
        *guard(&self.space) = Some(space);
        let mut low = guard(&self.low);
        let now = self.reserve.judge(space, low.is_some());
        match (*low, now) {
            (None, Some(now)) => tracing::warn!(
                free = now.free,
                reserve = now.reserve,
                "the harbors' file system is short of space"
            ),
            (Some(_), None) => tracing::info!(free = space.free, "there is space again"),
            _ => {}
        }
        *low = now;
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    #[test]
    fn room_is_low_below_the_reserve_and_enough_with_a_margin_beyond() {
        // free, total, reserve, was low -> what is kept free and what is enough, while it is low
        let table = [
            // A large file system: 1 GiB, and two segments of 64 MiB to return.
            (GIB, 100 * GIB, GIB, false, None),
            (GIB - 1, 100 * GIB, GIB, false, Some((GIB, 1152 * MIB))),
            (GIB, 100 * GIB, GIB, true, Some((GIB, 1152 * MIB))),
            (
                1152 * MIB - 1,
                100 * GIB,
                GIB,
                true,
                Some((GIB, 1152 * MIB)),
            ),
            (1152 * MIB, 100 * GIB, GIB, true, None),
            (0, 100 * GIB, GIB, false, Some((GIB, 1152 * MIB))),
            // A small one: a tenth, and half of that to return.
            (4 * MIB, 40 * MIB, GIB, false, None),
            (4 * MIB - 1, 40 * MIB, GIB, false, Some((4 * MIB, 6 * MIB))),
            (6 * MIB - 1, 40 * MIB, GIB, true, Some((4 * MIB, 6 * MIB))),
            (6 * MIB, 40 * MIB, GIB, true, None),
            // Made larger, it has another reserve.
            (6 * MIB, 400 * MIB, GIB, false, Some((40 * MIB, 60 * MIB))),
            // No reserve: it is never low, full as it may be.
            (0, 40 * MIB, 0, false, None),
            (0, 40 * MIB, 0, true, None),
            // A file system that tells nothing of itself.
            (0, 0, GIB, false, None),
        ];
        for (free, total, bytes, was_low, expected) in table {
            let reserve = Reserve {
                bytes,
                segment: 64 * MIB,
            };
            let found = reserve.judge(Space { free, total }, was_low);
            let expected = expected.map(|(reserve, enough)| Low {
                free,
                reserve,
                enough,
            });
            assert_eq!(found, expected, "{free} of {total}, {bytes}, {was_low}");
        }
    }
}
