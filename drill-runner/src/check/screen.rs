//! The screen of a machine: whether it stands still.
//!
//! It does when it has shown the same picture for [`STILL`], or no more than two pictures for [`BLINKING`], as a cursor
//! that blinks makes them; when one of them is more than one single colour; and when the CPUs have run for [`STILL`].
//!
//! Invariant: of a picture only its hash is kept.

use std::{
    collections::VecDeque,
    io::Cursor,
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};

/// How long the picture must be the same.
const STILL: Duration = Duration::from_secs(3);
/// How long two pictures may take turns.
const BLINKING: Duration = Duration::from_secs(4);
/// The most pixels of a picture that is looked into: 8K, and a half more.
const PIXELS_MAX: u64 = 48 << 20;

/// What was seen of a screen.
#[derive(Debug, Default)]
pub(super) struct Screen {
    runs_since: Option<Instant>,
    looks: VecDeque<Look>,
}

#[derive(Debug, Clone, Copy)]
struct Look {
    at: Instant,
    hash: [u8; 32],
    has_content: bool,
}

impl Screen {
    /// Takes note that the CPUs run, or that they do not.
    pub(super) fn cpus(&mut self, run: bool, now: Instant) {
        match run {
            true => {
                self.runs_since.get_or_insert(now);
            }
            false => {
                self.runs_since = None;
                self.looks.clear();
            }
        }
    }

    /// Takes note of a picture; whether the screen stands still.
    pub(super) fn shows(&mut self, png: &[u8], now: Instant) -> bool {
        let hash: [u8; 32] = Sha256::digest(png).into();
        let known = self.looks.iter().find(|look| look.hash == hash);
        let has_content = match known {
            Some(look) => look.has_content,
            None => has_content(png),
        };
        self.looks.push_back(Look {
            at: now,
            hash,
            has_content,
        });
        // One look from before the time is kept: it says what was shown when the time began.
        while self
            .looks
            .get(1)
            .is_some_and(|look| now - look.at >= BLINKING)
        {
            self.looks.pop_front();
        }
        let has_run = self.runs_since.is_some_and(|since| now - since >= STILL);
        has_run && (self.pictures(STILL, now) == Some(1) || self.blinks(now))
    }

    fn blinks(&self, now: Instant) -> bool {
        self.pictures(BLINKING, now) == Some(2)
    }

    /// How many pictures there were in that time, one of them with content; none if it was not watched for so long.
    fn pictures(&self, time: Duration, now: Instant) -> Option<usize> {
        let from = self.looks.iter().rposition(|look| now - look.at >= time)?;
        let looks: Vec<Look> = self.looks.iter().skip(from).copied().collect();
        // Three looks at the least: two can be the same by chance.
        if looks.len() < 3 || !looks.iter().any(|look| look.has_content) {
            return None;
        }
        let mut hashes: Vec<[u8; 32]> = looks.iter().map(|look| look.hash).collect();
        hashes.sort_unstable();
        hashes.dedup();
        Some(hashes.len())
    }
}

/// Whether a picture is more than one single colour. One that is no picture has nothing to show.
fn has_content(png: &[u8]) -> bool {
    let Ok(mut reader) = png::Decoder::new(Cursor::new(png)).read_info() else {
        return false;
    };
    let info = reader.info();
    let pixels = u64::from(info.width) * u64::from(info.height);
    let pixel_bytes = info.bytes_per_pixel();
    if pixels > PIXELS_MAX || (info.bit_depth as u8) < 8 {
        // Less than a byte for each pixel is not what a hypervisor writes; such a picture is taken as it is.
        return pixels > 1;
    }
    let mut first: Option<Vec<u8>> = None;
    while let Ok(Some(row)) = reader.next_row() {
        for pixel in row.data().chunks_exact(pixel_bytes) {
            match &first {
                Some(first) if first != pixel => return true,
                Some(_) => {}
                None => first = Some(pixel.to_vec()),
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A picture of 8 x 8 grey pixels, the first of them another one.
    fn picture(first: u8, others: u8) -> Vec<u8> {
        let mut png = Vec::new();
        let mut encoder = png::Encoder::new(&mut png, 8, 8);
        encoder.set_color(png::ColorType::Grayscale);
        let mut pixels = [others; 64];
        pixels[0] = first;
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(&pixels).unwrap();
        writer.finish().unwrap();
        png
    }

    /// Shows pictures every half second; when the screen counted as still, in half seconds.
    fn still_at(pictures: impl Fn(u32) -> Vec<u8>) -> Option<u32> {
        let mut screen = Screen::default();
        let start = Instant::now();
        screen.cpus(true, start);
        (0..40).find(|tick| {
            let now = start + Duration::from_millis(500) * *tick;
            screen.shows(&pictures(*tick), now)
        })
    }

    #[test]
    fn one_picture_stands_still_after_three_seconds() {
        assert_eq!(still_at(|_| picture(1, 0)), Some(6));
    }

    #[test]
    fn a_screen_of_one_colour_or_of_rubbish_never_does() {
        assert_eq!(still_at(|_| picture(0, 0)), None);
        assert_eq!(still_at(|_| b"no picture".to_vec()), None);
    }

    #[test]
    fn a_cursor_that_blinks_is_no_movement() {
        assert_eq!(still_at(|tick| picture((tick % 2) as u8, 0)), Some(8));
        assert_eq!(still_at(|tick| picture((tick % 3) as u8, 0)), None);
    }

    #[test]
    fn what_moves_is_waited_for() {
        let moving = |tick: u32| picture(tick.min(10) as u8 + 1, 0);
        assert_eq!(still_at(moving), Some(16), "still since tick 10");
    }

    #[test]
    fn what_stood_still_before_the_cpus_ran_does_not_count() {
        let mut screen = Screen::default();
        let start = Instant::now();
        screen.cpus(true, start);
        screen.shows(&picture(1, 0), start);
        screen.cpus(false, start + Duration::from_secs(1));
        let again = start + Duration::from_secs(2);
        screen.cpus(true, again);
        let late = |ms| again + Duration::from_millis(ms);
        assert!(!screen.shows(&picture(1, 0), late(500)));
        assert!(!screen.shows(&picture(1, 0), late(2000)));
        assert!(!screen.shows(&picture(1, 0), late(3400)));
        assert!(screen.shows(&picture(1, 0), late(3500)));
    }
}
