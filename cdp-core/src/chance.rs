//! Chance from a seed: numbers that look random and are the same for the same seed.
//!
//! For the doors that fail on purpose and for what drives them, so that a failure can be replayed.
//! Nothing that is kept, and nothing that must not be guessed, comes from here.

/// Numbers that look random and are the same for the same seed (xorshift64*).
#[derive(Debug, Clone)]
pub struct Chance(u64);

impl Chance {
    /// Begins the numbers of a seed.
    pub fn new(seed: u64) -> Chance {
        // Seeds that are alike must not begin alike: one round of splitmix64.
        let mut mixed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Chance((mixed ^ (mixed >> 31)) | 1)
    }

    /// Returns any number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Returns a number from 0 up to but not including `bound`; 0 if that is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        (self.number() >> 11) % bound.max(1)
    }

    /// Tells yes once in `times`, on average.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// Picks one of `choices`; none if there are none.
    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> Option<&'a T> {
        choices.get(self.below(choices.len() as u64) as usize)
    }

    /// Fills `bytes`.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for word in bytes.chunks_mut(8) {
            for (to, from) in word.iter_mut().zip(self.number().to_le_bytes()) {
                *to = from;
            }
        }
    }

    /// Begins numbers of their own, for a part of the work.
    pub fn split(&mut self) -> Chance {
        Chance::new(self.number())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_numbers_and_neighbours_give_others() {
        let numbers = |seed| {
            let mut chance = Chance::new(seed);
            (0..32).map(|_| chance.below(1000)).collect::<Vec<_>>()
        };
        assert_eq!(numbers(7), numbers(7));
        assert!((0..100).all(|seed| numbers(seed) != numbers(seed + 1)));
        let mut seen = [false; 10];
        let mut chance = Chance::new(1);
        (0..1000).for_each(|_| seen[chance.below(10) as usize] = true);
        assert_eq!(seen, [true; 10]);
    }
}
