//! Choices as the kernel takes them, and what it found as choices. Pure; `kernels/sample.cu` has the same structures.

use kedge_engine::generate::sample::{Draw, Found, NotFinite, Told, VOCABULARY_MAX, WHOLE};

use crate::arguments as a;
use crate::constants::{CHANGE_NUMBERS, CHOOSERS, DRAW_NUMBERS, FOUND_NUMBERS, WHOLE_BITS};
use crate::launch::Launch;

const _: () = assert!(WHOLE == 1 << WHOLE_BITS, "masses are those of the host");
/// The most of the likeliest tokens that are told: the kernel goes through all logits for each.
pub(crate) const TOLD_MAX: usize = 32;

/// Choices to make.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Choices {
    /// The draws, and all their changes behind them.
    pub(crate) table: Vec<u32>,
    draws: usize,
    width: usize,
    /// The most of the likeliest tokens that any of them is told.
    told_most: usize,
}

impl Choices {
    /// From vectors of so many logits; none where the kernel does not take them.
    pub(crate) fn of(draws: &[Draw], width: usize) -> Option<Self> {
        let told_most = draws.iter().filter_map(|draw| draw.told).max().unwrap_or(0).min(width);
        if told_most > TOLD_MAX || width == 0 || width > VOCABULARY_MAX {
            return None;
        }
        let (mut table, mut changes) = (Vec::with_capacity(DRAW_NUMBERS * draws.len()), Vec::new());
        for draw in draws {
            let first = changes.len() / CHANGE_NUMBERS;
            for change in draw.changes.iter().filter(|change| (change.token as usize) < width) {
                changes.extend([change.token, change.bias.to_bits(), change.by.to_bits(), change.off.to_bits()]);
            }
            let told = draw.told.map_or(0, |told| told.min(width) as u32 + 1);
            table.extend([draw.sharpness.to_bits(), draw.top_k.min(width) as u32, draw.top_p.to_bits(), told]);
            table.extend([draw.least, draw.random].map(|long| [long as u32, (long >> 32) as u32]).as_flattened());
            table.extend([first as u32, (changes.len() / CHANGE_NUMBERS - first) as u32]);
        }
        table.extend(changes);
        Some(Self { table, draws: draws.len(), width, told_most })
    }

    /// The launch that makes them, and bytes of what it finds.
    pub(crate) fn launch(&self, logits: u64, table: u64, found: u64) -> Launch {
        let changes = table + 4 * (DRAW_NUMBERS * self.draws) as u64;
        let (width, found_step) = (self.width as u32, self.found_step() as u32);
        let arguments = a::Choose { logits, draws: table, changes, found, width, found_step }.bytes();
        let (grid, block) = ([self.draws as u32, 1, 1], [32 * CHOOSERS as u32, 1, 1]);
        Launch { kernel: "kedge_choose", grid, block, shared: 0, arguments }
    }

    fn found_step(&self) -> usize {
        FOUND_NUMBERS + self.told_most
    }

    /// Bytes of what is found.
    pub(crate) fn found_bytes(&self) -> usize {
        8 * self.found_step() * self.draws
    }

    /// What was found for each of the draws.
    pub(crate) fn read<'a>(
        &'a self,
        draws: &'a [Draw],
        found: &'a [u8],
    ) -> impl Iterator<Item = Result<Found, NotFinite>> + 'a {
        let number = |bytes: &[u8], at: usize| {
            u32::from_le_bytes([bytes[4 * at], bytes[4 * at + 1], bytes[4 * at + 2], bytes[4 * at + 3]])
        };
        draws.iter().zip(found.chunks_exact(8 * self.found_step())).map(move |(draw, one)| {
            let at = |index: usize| number(one, index);
            if at(0) != 0 {
                return Err(NotFinite);
            }
            let logit = |index: usize| f32::from_bits(at(index));
            let told = draw.told.map(|count| Told {
                logit: logit(2),
                top: logit(3),
                total: u64::from(at(5)) << 32 | u64::from(at(4)),
                best: (0..count.min(self.width))
                    .map(|index| 2 * (FOUND_NUMBERS + index))
                    .map(|index| (at(index), logit(index + 1)))
                    .collect(),
            });
            Ok(Found { token: at(1), told })
        })
    }
}

#[cfg(test)]
mod tests {
    use kedge_engine::generate::sample::Change;

    use super::*;

    #[test]
    fn draws_lie_where_the_kernel_reads_them() {
        let change = |token| Change { token, bias: 1.0, by: 2.0, off: 3.0 };
        let draws = [
            Draw { sharpness: 0.5, top_k: 9, top_p: 1.0, least: 3 << 32 | 7, random: 5, ..Draw::default() },
            Draw { told: Some(2), changes: vec![change(1), change(8)], ..Draw::default() },
            Draw { told: Some(0), changes: vec![change(3)], ..Draw::default() },
        ];
        let choices = Choices::of(&draws, 8).unwrap();
        let [half, one, two, three] = [0.5f32, 1.0, 2.0, 3.0].map(f32::to_bits);
        assert_eq!(choices.table[..10], [half, 8, one, 0, 7, 3, 5, 0, 0, 0]);
        assert_eq!(choices.table[10..20], [0, 0, 0, 3, 0, 0, 0, 0, 0, 1]);
        assert_eq!(choices.table[20..30], [0, 0, 0, 1, 0, 0, 0, 0, 1, 1]);
        assert_eq!(choices.table[30..], [1, one, two, three, 3, one, two, three], "8 is no token of the model");
        let launch = choices.launch(1 << 20, 1 << 16, 1 << 17);
        assert_eq!((launch.grid, choices.found_bytes()), ([3, 1, 1], 3 * 40));
        let found = [0, 7, one, two, 5, 1, 6, three, 4, half].map(u32::to_le_bytes).concat();
        let all = [[1u8].repeat(40), found.clone(), found].concat();
        let read: Vec<_> = choices.read(&draws, &all).collect();
        let told = |best| Some(Told { logit: 1.0, top: 2.0, total: 1 << 32 | 5, best });
        assert_eq!(read[0], Err(NotFinite));
        assert_eq!(read[1], Ok(Found { token: 7, told: told(vec![(6, 3.0), (4, 0.5)]) }));
        assert_eq!(read[2], Ok(Found { token: 7, told: told(vec![]) }));
    }

    #[test]
    fn what_the_kernel_does_not_take() {
        let told = |count| [Draw { told: Some(count), ..Draw::default() }];
        assert!(Choices::of(&told(TOLD_MAX), 100).is_some() && Choices::of(&told(TOLD_MAX + 1), 100).is_none());
        assert!(Choices::of(&told(99), 20).is_some(), "there are no more");
        assert!(Choices::of(&told(0), 0).is_none() && Choices::of(&told(0), VOCABULARY_MAX + 1).is_none());
    }
}
