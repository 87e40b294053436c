//! Random sequences that can be played again.

/// A random sequence from a seed (xorshift64*); the seed must not be 0.
pub struct Random(pub u64);

impl Random {
    /// A sequence from `$SEED`, else from the clock; the seed is printed.
    pub fn from_env() -> Self {
        let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok());
        let seed = seed.unwrap_or(crate::now_ns().unsigned_abs());
        eprintln!("replay with SEED={seed}");
        Self(seed | 1)
    }

    /// The next number, below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }
}
