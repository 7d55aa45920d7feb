//! Who is next where only few may be busy at once.
//!
//! ```text
//! wait ──▶ in line ──next──▶ busy ──leave──▶ gone
//!             └─────────leave────────────────▶
//! ```
//!
//! What must hold: the next one is of an origin that has the fewest busy, and of those of the one whose line has stood still
//! for longest; no origin has more busy than its part; whoever left has no turn; nothing is known of an origin of
//! which nobody is here.

use std::collections::{HashMap, VecDeque};

/// A line for each origin.
#[derive(Debug)]
pub(super) struct Turns<T> {
    /// How many more may be busy.
    free: usize,
    /// Most of one origin that are busy.
    origin_max: usize,
    /// Counts who came and who had a turn.
    clock: u64,
    origins: HashMap<String, Origin<T>>,
}

#[derive(Debug)]
struct Origin<T> {
    busy: usize,
    /// When somebody came to an empty line, or was taken out of it for the last time.
    since: u64,
    /// In the order in which they came, by number.
    waiting: VecDeque<(u64, T)>,
}

impl<T> Turns<T> {
    pub(super) fn new(most: usize, origin_max: usize) -> Self {
        Self { free: most, origin_max, clock: 0, origins: HashMap::new() }
    }

    /// Puts one in line. Its number is what it leaves with.
    pub(super) fn wait(&mut self, origin: &str, who: T) -> u64 {
        self.clock += 1;
        let number = self.clock;
        let new = || Origin { busy: 0, since: number, waiting: VecDeque::new() };
        let of = self.origins.entry(origin.to_owned()).or_insert_with(new);
        if of.waiting.is_empty() {
            of.since = number;
        }
        of.waiting.push_back((number, who));
        number
    }

    /// Whose turn it is, if somebody's: from now on that one is busy.
    pub(super) fn next(&mut self) -> Option<T> {
        let may = |of: &&mut Origin<T>| self.free > 0 && of.busy < self.origin_max && !of.waiting.is_empty();
        let next = self.origins.values_mut().filter(may).min_by_key(|of| (of.busy, of.since))?;
        let (_, who) = next.waiting.pop_front()?;
        self.clock += 1;
        (next.since, next.busy) = (self.clock, next.busy + 1);
        self.free -= 1;
        Some(who)
    }

    /// Ends the stay of one that waits or is busy.
    pub(super) fn leave(&mut self, origin: &str, number: u64) {
        let Some(of) = self.origins.get_mut(origin) else { return };
        match of.waiting.iter().position(|(of, _)| *of == number) {
            Some(index) => drop(of.waiting.remove(index)),
            None => (of.busy, self.free) = (of.busy - 1, self.free + 1),
        }
        if of.busy == 0 && of.waiting.is_empty() {
            self.origins.remove(origin);
        }
    }

    /// Whether nobody is here.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.origins.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What happens, step by step, with four busy at most and three of an origin: `+name` comes, where the first letter is
    /// its origin; `-name` leaves.
    fn turns_of(steps: &str) -> Vec<String> {
        let mut turns = Turns::new(4, 3);
        let mut numbers = HashMap::new();
        let mut had = Vec::new();
        for step in steps.split(' ') {
            let (what, name) = step.split_at(1);
            match what {
                "+" => drop(numbers.insert(name, turns.wait(&name[..1], name))),
                _ => turns.leave(&name[..1], numbers[name]),
            }
            had.extend(std::iter::from_fn(|| turns.next()).map(str::to_owned));
        }
        numbers.into_iter().filter(|(name, _)| !steps.contains(&format!("-{name}"))).for_each(|(name, number)| {
            turns.leave(&name[..1], number);
        });
        assert!(turns.is_empty() && turns.free == 4, "{steps}: {turns:?}");
        had
    }

    #[test]
    fn who_has_the_fewest_busy_is_next_then_who_had_none_for_longest() {
        for (what, steps, expected) in [
            ("in order", "+a1 +a2 +a3 -a1 -a2", "a1 a2 a3"),
            ("no more than its part", "+a1 +a2 +a3 +a4 +a5 -a2", "a1 a2 a3 a4"),
            ("another finds the rest", "+a1 +a2 +a3 +a4 +b1", "a1 a2 a3 b1"),
            ("and is before a line", "+a1 +a2 +a3 +a4 +b1 +b2 +a5 -a1", "a1 a2 a3 b1 b2"),
            ("one that has none busy", "+a1 +a2 +b1 +b2 +a3 +b3 +c1 -b1", "a1 a2 b1 b2 c1"),
            ("one after the other", "+a1 +b1 +c1 +d1 +e1 +a2 +b2 -a1 -b1 -c1", "a1 b1 c1 d1 e1 a2 b2"),
            ("a new name is not first", "+a1 +b1 +c1 +d1 +e1 +f1 -a1 +g1 -b1 -c1", "a1 b1 c1 d1 e1 f1 g1"),
            ("who left has no turn", "+a1 +a2 +a3 +a4 +a5 -a4 -a1", "a1 a2 a3 a5"),
            ("nor a place in line", "+a1 +b1 +c1 +d1 +e1 -e1 +f1 +e2 -a1", "a1 b1 c1 d1 f1"),
        ] {
            assert_eq!(turns_of(steps).join(" "), expected, "{what}");
        }
    }
}
