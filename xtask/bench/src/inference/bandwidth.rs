//! How fast threads together read memory, which bounds how fast answers are made.
//!
//! What must hold: the figure is a limit. So it is the best of many measures, taken beside those of the engines, over
//! memory as weights lie in it (in large pages), far larger than any cache. A thread that reads line after line is limited
//! by how many of them a core asks for ahead; streams side by side let it ask for more, so several numbers of streams are
//! tried. That memory is the limit and not the adding shows the same loop over what a cache holds.

use std::array;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use kedge_formats::Region;

/// What comes from memory at once, in bytes.
const LINE: usize = 64;
/// Bytes that are read.
const LENGTH: usize = 1 << 30;
/// The last cache is at most such a part of them.
const CACHES: usize = 16;
/// Bytes that the first cache of a core holds.
const CACHED: usize = 16 << 10;
/// How often each way is tried in one measure.
const TRIES: usize = 2;
/// Ways to read: in one stream, in two, in four.
const WAYS: [fn(&[u8]) -> u64; 3] = [add::<1>, add::<2>, add::<4>];
/// A part is whole lines in whole streams.
const PART: usize = 4 * LINE;
/// How many times as fast the loop must be out of a cache: else it says nothing of memory.
const FASTER_MIN: f64 = 1.5;

/// Memory to read, and how.
pub(crate) struct Memory {
    region: Arc<Region>,
    threads: usize,
}

impl Memory {
    /// Room for it, all of it touched; refused where adding and not memory would be measured.
    pub(crate) fn new(threads: usize) -> Result<Self> {
        let part = part(LENGTH, last_cache(), threads);
        let mut filling = Region::in_memory(part * threads).context("memory whose speed is to be measured")?;
        std::thread::scope(|scope| {
            for part in filling.bytes().chunks_exact_mut(part) {
                scope.spawn(move || part.fill(1));
            }
        });
        let memory = Self { region: filling.finish()?, threads };
        let (far, near) = (memory.measure(), memory.cached());
        if near < far * FASTER_MIN {
            bail!("the loop that reads memory at {far:.2e} bytes a second reads a cache at {near:.2e} only");
        }
        Ok(memory)
    }

    /// Bytes that are read.
    pub(crate) fn length(&self) -> usize {
        self.region.bytes().len()
    }

    /// Bytes a second, in the best way.
    pub(crate) fn measure(&self) -> f64 {
        best(WAYS.into_iter().flat_map(|way| [way; TRIES]).map(|way| self.speed(self.length(), 1, way)))
    }

    /// Bytes a second that the same loops read where a cache holds all of them.
    pub(crate) fn cached(&self) -> f64 {
        let times = self.length() / self.threads / CACHED;
        best(WAYS.into_iter().map(|way| self.speed(CACHED * self.threads, times, way)))
    }

    /// Bytes a second at which all threads together read so many bytes, each a part of its own, so many times.
    fn speed(&self, length: usize, times: usize, way: impl Fn(&[u8]) -> u64 + Copy + Send) -> f64 {
        let parts = self.region.bytes().chunks_exact(self.length() / self.threads);
        let begin = Instant::now();
        std::thread::scope(|scope| {
            for part in parts {
                let part = &part[..length / self.threads];
                scope.spawn(move || {
                    for _ in 0..times {
                        black_box(way(black_box(part)));
                    }
                });
            }
        });
        (length * times) as f64 / begin.elapsed().as_secs_f64()
    }
}

/// The highest of some speeds.
pub(crate) fn best(speeds: impl IntoIterator<Item = f64>) -> f64 {
    speeds.into_iter().fold(0.0, f64::max)
}

/// Bytes that each thread reads: together no fewer than `length`, and so many that the last cache matters little.
fn part(length: usize, cache: usize, threads: usize) -> usize {
    length.max(cache.saturating_mul(CACHES)).div_ceil(threads).next_multiple_of(PART)
}

/// Adds up the words of some bytes, in streams side by side; what is left of whole lines in whole streams is left out.
fn add<const STREAMS: usize>(bytes: &[u8]) -> u64 {
    let (lines, _) = bytes.as_chunks::<LINE>();
    let length = lines.len() / STREAMS;
    let streams: [&[[u8; LINE]]; STREAMS] = array::from_fn(|stream| &lines[stream * length..][..length]);
    let mut sums = [[0_u64; LINE / 8]; STREAMS];
    for at in 0..length {
        for (sums, stream) in sums.iter_mut().zip(&streams) {
            let (words, _) = stream[at].as_chunks::<8>();
            for (sum, word) in sums.iter_mut().zip(words) {
                *sum = sum.wrapping_add(u64::from_ne_bytes(*word));
            }
        }
    }
    sums.iter().flatten().fold(0, |all, sum| all.wrapping_add(*sum))
}

/// Bytes of all last caches together, as far as the kernel tells.
fn last_cache() -> usize {
    let read = |path: String| std::fs::read_to_string(path).unwrap_or_default();
    let all = (0..std::thread::available_parallelism().map_or(1, |count| count.get())).flat_map(|core| {
        (0..8).map(move |index| {
            let of = |what: &str| read(format!("/sys/devices/system/cpu/cpu{core}/cache/index{index}/{what}"));
            (of("level"), of("shared_cpu_list"), of("size"))
        })
    });
    largest(all)
}

/// Bytes of the caches of the highest level, of which each is told by every core that shares it: level, cores, size.
fn largest(all: impl IntoIterator<Item = (String, String, String)>) -> usize {
    let mut found: Vec<(u32, String, usize)> = Vec::new();
    for (level, cores, size) in all {
        let size = size.trim().strip_suffix('K').and_then(|size| size.parse::<usize>().ok());
        let Some((level, size)) = level.trim().parse().ok().zip(size) else { continue };
        if !found.iter().any(|(known, shared, _)| (*known, shared) == (level, &cores)) {
            found.push((level, cores, size << 10));
        }
    }
    let last = found.iter().map(|(level, ..)| *level).max();
    found.iter().filter(|(level, ..)| Some(*level) == last).map(|(.., size)| size).sum()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn every_way_reads_every_byte() {
        for length in [0, PART, 3 * PART, 64 * PART] {
            let mut bytes: Vec<u8> = (0..length).map(|at| (at * 7 % 251) as u8).collect();
            let sum = |bytes: &[u8]| {
                bytes
                    .chunks_exact(8)
                    .fold(0_u64, |sum, word| sum.wrapping_add(u64::from_ne_bytes(word.try_into().unwrap())))
            };
            for way in WAYS {
                assert_eq!(way(&bytes), sum(&bytes), "{length}");
            }
            for at in [0, length / 4, length / 2, length.saturating_sub(1)] {
                let Some(byte) = bytes.get_mut(at) else { continue };
                *byte ^= 0x55;
                for way in WAYS {
                    assert_eq!(way(&bytes), sum(&bytes), "{length}, at {at}");
                }
            }
        }
    }

    #[test]
    fn a_part_is_whole_lines_and_all_are_beyond_the_caches() {
        for (length, cache, threads, expected) in [
            (1 << 30, 0, 1, 1 << 30),
            (1 << 30, 32 << 20, 2, 1 << 29),
            (1 << 30, 256 << 20, 2, 2 << 30),
            (1 << 30, 0, 3, 357_914_112),
            (1, 0, 1, PART),
        ] {
            let found = part(length, cache, threads);
            assert_eq!(found, expected, "{length} {cache} {threads}");
            assert_eq!(found % PART, 0);
            assert!(found * threads >= length.max(cache * CACHES));
        }
    }

    #[test]
    fn the_last_caches_are_counted_once_each() {
        for (what, all, expected) in [
            ("none is told", vec![], 0),
            ("no number", vec![("3", "0-1", "large")], 0),
            (
                "two cores share one",
                vec![("2", "0", "1024K"), ("3", "0-1", "32768K"), ("3", "0-1", "32768K")],
                32 << 20,
            ),
            ("each has its own", vec![("1", "0", "48K"), ("2", "0", "1024K"), ("2", "1", "1024K\n")], 2 << 20),
        ] {
            let all = all.into_iter().map(|(level, cores, size)| (level.into(), cores.into(), size.into()));
            assert_eq!(largest(all), expected, "{what}");
        }
    }

    #[test]
    fn the_best_speed_counts() {
        assert_eq!(best([2.0, 5.0, 3.0]), 5.0);
        assert_eq!(best([]), 0.0);
    }

    #[test]
    fn each_thread_reads_a_part_of_its_own_so_many_times() {
        let mut filling = Region::in_memory(3 * PART).unwrap();
        for (number, part) in (1..).zip(filling.bytes().chunks_exact_mut(PART)) {
            part.fill(number);
        }
        let memory = Memory { region: filling.finish().unwrap(), threads: 3 };
        for (length, times) in [(3 * PART, 1), (3 * LINE, 5)] {
            let seen = Mutex::new(Vec::new());
            let way = |bytes: &[u8]| {
                seen.lock().unwrap().push((bytes[0], bytes.len()));
                0
            };
            assert!(memory.speed(length, times, way) > 0.0);
            let mut seen = seen.into_inner().unwrap();
            seen.sort_unstable();
            let expected: Vec<_> = (1..=3).flat_map(|part| vec![(part, length / 3); times]).collect();
            assert_eq!(seen, expected);
        }
    }
}
