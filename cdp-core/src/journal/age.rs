//! How old the oldest write was that had been acknowledged and was not yet on stable storage, at each sync.
//!
//! Ages fall into buckets that grow by an eighth, from 1 ms on; the largest is kept exactly. Memory is fixed.

use std::time::Duration;

const BUCKETS: usize = 128;

/// Ages at the end of syncs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ages {
    counts: [u32; BUCKETS],
    total: u64,
    max: Duration,
}

impl Default for Ages {
    fn default() -> Ages {
        Ages {
            counts: [0; BUCKETS],
            total: 0,
            max: Duration::ZERO,
        }
    }
}

/// Upper end of a bucket, in milliseconds.
fn upper_ms(bucket: usize) -> f64 {
    1.125_f64.powi(bucket as i32)
}

impl Ages {
    pub(crate) fn add(&mut self, age: Duration) {
        let ms = age.as_secs_f64() * 1e3;
        let bucket = (0..BUCKETS - 1).find(|bucket| ms <= upper_ms(*bucket));
        if let Some(count) = self.counts.get_mut(bucket.unwrap_or(BUCKETS - 1)) {
            *count = count.saturating_add(1);
        }
        self.total += 1;
        self.max = self.max.max(age);
    }

    pub(crate) fn max(&self) -> Duration {
        self.max
    }

    /// Returns the age that 99 of 100 did not exceed, to an eighth; zero without any.
    pub(crate) fn p99(&self) -> Duration {
        let wanted = (self.total * 99).div_ceil(100);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += u64::from(*count);
            if seen >= wanted && seen > 0 {
                return Duration::from_secs_f64(upper_ms(bucket) / 1e3).min(self.max);
            }
        }
        self.max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_told_to_an_eighth() {
        let mut ages = Ages::default();
        assert_eq!((ages.p99(), ages.max()), (Duration::ZERO, Duration::ZERO));
        (0..985).for_each(|_| ages.add(Duration::from_millis(100)));
        (0..15).for_each(|_| ages.add(Duration::from_millis(400)));
        let p99 = ages.p99().as_millis();
        assert!((400..=450).contains(&p99) || p99 == 400, "{p99}");
        (0..1000).for_each(|_| ages.add(Duration::from_millis(100)));
        let p99 = ages.p99().as_millis();
        assert!((100..=113).contains(&p99), "{p99}");
        ages.add(Duration::from_secs(3600));
        assert_eq!(ages.max(), Duration::from_secs(3600));
    }
}
