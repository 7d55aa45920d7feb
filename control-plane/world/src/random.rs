//! Randomness as a value somebody hands in.

use ring::rand::{SecureRandom, SystemRandom as RingRandom};

/// The letters of generated names: no vowels, no look-alikes, so that names never spell words.
/// (`k8s.io/apimachinery/pkg/util/rand`.)
const SUFFIX_ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// A source of bytes. The real one is fit for keys; a seeded one replays a run.
pub trait Random: Send + Sync + 'static {
    /// Fills `out` with random bytes.
    fn fill(&self, out: &mut [u8]);

    /// A random number over the whole range.
    fn number(&self) -> u64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// A version 4 UUID in its usual text form.
    fn uuid(&self) -> String {
        let mut b = [0; 16];
        self.fill(&mut b);
        b[6] = (b[6] & 0x0f) | 0x40;
        b[8] = (b[8] & 0x3f) | 0x80;
        let hex = |range: &[u8]| range.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        format!("{}-{}-{}-{}-{}", hex(&b[..4]), hex(&b[4..6]), hex(&b[6..8]), hex(&b[8..10]), hex(&b[10..]))
    }

    /// `length` letters for the end of a generated name.
    fn suffix(&self, length: usize) -> String {
        (0..length).map(|_| SUFFIX_ALPHABET[(self.number() % 27) as usize] as char).collect()
    }
}

/// The operating system's random numbers.
#[derive(Debug)]
pub struct SystemRandom(RingRandom);

impl Default for SystemRandom {
    fn default() -> Self {
        Self(RingRandom::new())
    }
}

impl Random for SystemRandom {
    fn fill(&self, out: &mut [u8]) {
        self.0.fill(out).expect("the operating system always has random numbers");
    }
}
