//! Judges copies of disks on which a guest wrote marks (tests/guest/marks.c).

use virt_cdp_tests::guest::Guest;

use crate::takeover::clock_offset;

const BLOCK: usize = 4096;
/// How exactly guest and host can be told to agree on the time, in nanoseconds.
const SLACK_NS: i64 = 300_000_000;

/// Which mark had been acknowledged when, by the host's clock.
pub(crate) struct Log(Vec<(u64, i64)>);

impl Log {
    /// Fetches the log of a guest whose marks have ended.
    pub(crate) fn fetch(guest: &Guest) -> Self {
        let offset = clock_offset(guest);
        let text = guest.sh("cat /tmp/marks.log");
        let parse = |line: &str| {
            let (mark, ns) = line.split_once(' ')?;
            Some((mark.parse().ok()?, ns.parse::<i64>().ok()? - offset))
        };
        let lines: Vec<_> = text.lines().filter_map(parse).collect();
        assert!(lines.len() > 100, "{} lines of marks", lines.len());
        Self(lines)
    }

    /// When the marks began.
    pub(crate) fn first_ns(&self) -> i64 {
        self.0.first().map_or(0, |(_, ns)| *ns) + SLACK_NS
    }

    /// The newest mark that was surely acknowledged, and the newest that may have been sent, at a time.
    fn between(&self, ns: i64) -> (u64, u64) {
        let surely = self.0.partition_point(|(_, at)| *at < ns - SLACK_NS);
        let least = surely.checked_sub(1).map_or(0, |at| self.0[at].0);
        let perhaps = self.0.partition_point(|(_, at)| *at <= ns + SLACK_NS);
        // The one that follows the next line may have been sent already.
        let most = self.0.get(perhaps).map_or(u64::MAX, |(mark, _)| mark + 1);
        (least, most)
    }
}

/// Judges `disks` as of the time `ns`.
///
/// # Errors
/// What is wrong with them.
pub(crate) fn judge(disks: &[Vec<u8>], slots: u64, ns: i64, log: &Log) -> Result<u64, String> {
    let count = disks.len() as u64;
    let at = |disk: u64, slot: u64| {
        let from = slot as usize * BLOCK;
        &disks[disk as usize][from..from + BLOCK]
    };
    let number = |block: &[u8]| u64::from_le_bytes(block[..8].try_into().expect("8 bytes"));
    let newest = (0..count)
        .flat_map(|disk| (0..slots).map(move |slot| (disk, slot)))
        .map(|(disk, slot)| number(at(disk, slot)))
        .max()
        .unwrap_or(0);
    let (least, most) = log.between(ns);
    if newest < least || newest > most {
        return Err(format!(
            "the newest mark is {newest}, and at that time it was {least} to {most}"
        ));
    }
    for disk in 0..count {
        for slot in 0..slots {
            // Marks of this slot are first, first + period, ...
            let (first, period) = (slot * count + disk + 1, slots * count);
            let expected = match newest.checked_sub(first) {
                Some(rest) => fill(first + rest / period * period),
                None => vec![0; BLOCK],
            };
            let found = at(disk, slot);
            if found != expected {
                return Err(format!(
                    "disk {disk}, slot {slot}: mark {} in the place of {}, the newest being {newest}",
                    number(found),
                    number(&expected)
                ));
            }
        }
    }
    Ok(newest)
}

/// The block of a mark.
fn fill(mark: u64) -> Vec<u8> {
    let mut state = mark;
    let mut block = Vec::with_capacity(BLOCK);
    block.extend(mark.to_le_bytes());
    block.extend((!mark).to_le_bytes());
    while block.len() < BLOCK {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        block.extend(state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    block
}
