//! Sets of completion indexes, as a job's status and its policies write them: `1,3-5,7`. Pure.
//! (`pkg/controller/job/indexed_job_utils.go`.)

use std::fmt::{Display, Formatter, Result};

/// A set of indexes as ranges: in order, apart, none touching the next.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Indexes(Vec<(i32, i32)>);

impl Indexes {
    /// Reads a list; what is at or beyond `completions` is cut off, what is no number is left out.
    pub(super) fn parse(text: &str, completions: i32) -> Self {
        let mut set = Self::default();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>()) else { continue };
            set.insert(first, last.min(completions - 1));
        }
        set
    }

    /// Adds the indexes from `first` to `last`.
    pub(super) fn insert(&mut self, first: i32, last: i32) {
        if first > last {
            return;
        }
        let from = self.0.partition_point(|(_, end)| *end < first.saturating_sub(1));
        let upto = self.0.partition_point(|(start, _)| *start <= last.saturating_add(1));
        let touched = &self.0[from..upto];
        let merged = touched.iter().fold((first, last), |(a, b), (c, d)| (a.min(*c), b.max(*d)));
        self.0.splice(from..upto, [merged]);
    }

    pub(super) fn contains(&self, index: i32) -> bool {
        let at = self.0.partition_point(|(_, last)| *last < index);
        self.0.get(at).is_some_and(|(first, _)| *first <= index)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn len(&self) -> i32 {
        self.0.iter().map(|(first, last)| last - first + 1).sum()
    }

    /// How many indexes both sets have.
    pub(super) fn in_common(&self, other: &Self) -> i32 {
        let both = |(a, b): &(i32, i32), (c, d): &(i32, i32)| (b.min(d) - a.max(c) + 1).max(0);
        self.0.iter().map(|mine| other.0.iter().map(|theirs| both(mine, theirs)).sum::<i32>()).sum()
    }

    /// The first `count` indexes below `completions` that the set lacks.
    pub(super) fn missing(&self, count: usize, completions: i32) -> Vec<i32> {
        let mut found = Vec::new();
        let mut candidate = 0;
        for (first, last) in self.0.iter().copied().chain([(completions, completions)]) {
            found.extend((candidate..first.min(completions)).take(count - found.len()));
            candidate = last.saturating_add(1);
        }
        found
    }
}

impl Extend<i32> for Indexes {
    fn extend<I: IntoIterator<Item = i32>>(&mut self, more: I) {
        more.into_iter().for_each(|index| self.insert(index, index));
    }
}

impl Display for Indexes {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        for (at, (first, last)) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            match last - first {
                0 => write!(f, "{comma}{first}")?,
                1 => write!(f, "{comma}{first},{last}")?,
                _ => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn lists_are_read_and_written() {
        let check = |text: &str, shown: &str| assert_eq!(Indexes::parse(text, 10).to_string(), shown, "{text}");
        check("", "");
        check("1,3-5,7", "1,3-5,7");
        check("0,1", "0,1");
        check("0,1,2", "0-2");
        check("x,4,5-y", "4");
        check("8-20", "8,9");
        check("10,12", "");
    }

    proptest! {
        #[test]
        fn it_is_a_set(members in proptest::collection::vec((0..40i32, 0..5i32), 0..12), count in 0..10usize) {
            let (mut set, mut model) = (Indexes::default(), BTreeSet::new());
            for (first, more) in members {
                set.insert(first, first + more);
                model.extend(first..=first + more);
            }
            prop_assert_eq!(set.len(), model.len() as i32);
            prop_assert!((0..50).all(|index| set.contains(index) == model.contains(&index)));
            prop_assert_eq!(&Indexes::parse(&set.to_string(), 100), &set);
            let missing: Vec<i32> = (0..30).filter(|index| !model.contains(index)).take(count).collect();
            prop_assert_eq!(set.missing(count, 30), missing);
            let mut even = Indexes::default();
            even.extend((0..40).step_by(2));
            let both = model.iter().filter(|index| **index % 2 == 0 && **index < 40).count() as i32;
            prop_assert_eq!(set.in_common(&even), both);
        }
    }
}
