//! Under which conditions engines were asked: how fast memory was, and what else ran.

use anyhow::{Context, Result};

use super::bandwidth::{Memory, best};

/// What was found, in the order in which it was looked at.
#[derive(Debug)]
pub(crate) struct Conditions {
    /// Bytes of memory that a measure reads.
    pub(crate) length: usize,
    /// Bytes a second that the threads together read, each the best of one measure.
    pub(crate) speeds: Vec<f64>,
    /// Bytes a second that the same loop reads out of a cache: it is not what limits the speeds.
    pub(crate) cached: f64,
    /// Load averages over a minute; before all else the first.
    pub(crate) loads: Vec<f64>,
}

impl Conditions {
    /// Bytes a second that the machine can read: a limit, so the best that was seen.
    pub(crate) fn bandwidth(&self) -> f64 {
        best(self.speeds.iter().copied())
    }

    /// The page's words for them.
    pub(crate) fn text(&self, threads: usize) -> String {
        let least = self.speeds.iter().copied().fold(f64::INFINITY, f64::min);
        let first = self.loads.first().copied().unwrap_or_default();
        let last = self.loads.last().copied().unwrap_or_default();
        format!(
            "{threads} threads read {:.1} GB/s from memory: the best of {} measures over {:.1} GiB, before and after each \
             round; the least was {:.1}, and the same loop reads {:.0} GB/s out of a cache. Load average over a minute: \
             {first:.2} before all this, {last:.2} after it, {:.2} at the highest, of which the engine that is asked makes \
             {threads}.",
            self.bandwidth() / 1e9,
            self.speeds.len(),
            self.length as f64 / f64::from(1 << 30),
            least / 1e9,
            self.cached / 1e9,
            best(self.loads.iter().copied()),
        )
    }
}

/// Looks at them again and again.
pub(crate) struct Watch {
    memory: Memory,
    seen: Conditions,
}

impl Watch {
    /// Before anything else is started.
    pub(crate) fn start(threads: usize) -> Result<Self> {
        let before = load()?;
        let memory = Memory::new(threads)?;
        let seen = Conditions {
            length: memory.length(),
            speeds: vec![memory.measure()],
            cached: memory.cached(),
            loads: vec![before],
        };
        Ok(Self { memory, seen })
    }

    /// While no engine computes.
    pub(crate) fn look(&mut self) -> Result<()> {
        self.seen.loads.push(load()?);
        self.seen.speeds.push(self.memory.measure());
        Ok(())
    }

    /// All that was seen, and the last of it.
    pub(crate) fn end(mut self) -> Result<Conditions> {
        self.seen.loads.push(load()?);
        Ok(self.seen)
    }
}

/// The load average over a minute.
fn load() -> Result<f64> {
    let path = "/proc/loadavg";
    let text = std::fs::read_to_string(path).context(path)?;
    load_of(&text).with_context(|| format!("{path} says {text:?}"))
}

fn load_of(text: &str) -> Option<f64> {
    text.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Conditions as they may be.
    pub(crate) fn some() -> Conditions {
        Conditions { length: 1 << 30, speeds: vec![30e9, 40e9, 35e9], cached: 150e9, loads: vec![0.1, 2.5, 1.9] }
    }

    #[test]
    fn the_best_speed_is_the_bandwidth_and_all_loads_are_told() {
        assert_eq!(some().bandwidth(), 40e9);
        assert_eq!(
            some().text(2),
            "2 threads read 40.0 GB/s from memory: the best of 3 measures over 1.0 GiB, before and after each round; the \
             least was 30.0, and the same loop reads 150 GB/s out of a cache. Load average over a minute: 0.10 before all \
             this, 1.90 after it, 2.50 at the highest, of which the engine that is asked makes 2."
        );
    }

    #[test]
    fn the_load_of_a_minute_is_the_first_number() {
        for (text, expected) in
            [("0.52 0.58 0.59 1/467 12345\n", Some(0.52)), ("12.00 1 2", Some(12.0)), ("", None), ("much", None)]
        {
            assert_eq!(load_of(text), expected, "{text:?}");
        }
        assert!(load().unwrap() >= 0.0);
    }
}
