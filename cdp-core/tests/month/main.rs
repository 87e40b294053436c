//! A month in a minute: thirty days of points run through the real code, on real files, by a clock that is set by hand.
//!
//! A guest with two disks works by chance from a seed ([`guest`]): a database that writes its pages over, files that come
//! and go, zeros, a disk that grows and shrinks. A point is made every five minutes or so, and what the daemon does with
//! what is kept is done in the same order: the policy, a base point every hour or so many bytes of journal, merging,
//! the removal of needless segments, compaction ([`keeper`]). Points are locked now and then, views held open, the harbor
//! closed and opened again.
//!
//! The oracle in memory has every point that was ever made, and a hash of each block as the guest's disks were at that
//! moment. It works out by itself which points the policy promises. At intervals and at the end ([`check`]): those are
//! there and exact and nothing else is, there are at most eight layers, the sizes add up to what the files take, and
//! `qemu-img check` finds nothing in any layer.
//!
//! `cargo test` plays one seed; `SEED=n` says which, `DAYS=n` how many days.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod check;
mod guest;
mod keeper;
mod promise;

use std::env;
use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use keeper::Keeper;

const DAYS: u64 = 30;

fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number")),
    )
}

fn main() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = number("SEED").unwrap_or(now.as_secs() % 1_000_000);
    let days = number("DAYS").unwrap_or(DAYS);
    println!("month: seed {seed}; again: SEED={seed} cargo test -p cdp-core --test month");
    // In memory if there is room for files: tens of thousands of syncs are not what is tested here.
    let home = match Path::new("/dev/shm").is_dir() {
        true => tempfile::tempdir_in("/dev/shm"),
        false => tempfile::tempdir(),
    };
    let home = home.unwrap();
    let begin = Instant::now();
    let mut keeper = Keeper::new(&home.path().join("harbor"), seed);
    for day in 0..days {
        keeper.live_a_day(day);
        let is_last = day + 1 == days;
        if day % 3 == 2 || is_last {
            keeper.check(if is_last { usize::MAX } else { 8 });
        }
    }
    keeper.close();
    keeper.say_what_was_done(days);
    println!(
        "month: {days} days in {:.1?}: nothing wrong",
        begin.elapsed()
    );
}
