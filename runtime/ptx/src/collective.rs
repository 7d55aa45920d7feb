//! What the lanes of a warp tell each other: shuffles, votes, matches, reductions.

use crate::Fault;
use crate::alu::Lane;
use crate::types::ones;

/// Which lane a shuffle reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

/// What is asked of predicates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vote {
    All,
    Any,
    Uniform,
    Ballot,
}

/// How values are reduced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reduce {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
}

pub(crate) fn active(mask: u32) -> impl Iterator<Item = usize> {
    (0..32).filter(move |lane| mask >> lane & 1 == 1)
}

/// Every lane here must be a member of its own mask, and every member must be here.
pub(crate) fn members(masks: &Lane, here: u32) -> Result<(), (usize, Fault)> {
    for lane in active(here) {
        let mask = masks[lane] as u32;
        if mask & !here != 0 || mask >> lane & 1 == 0 {
            return Err((lane, Fault::Mask { mask, active: here }));
        }
    }
    Ok(())
}

/// The lane that is read, and whether it lies in the segment ("shfl.sync" in the PTX ISA).
pub(crate) fn source(mode: Shuffle, lane: u32, by: u32, clamp: u32) -> (u32, bool) {
    let (by, segment, clamp) = (by & 31, clamp >> 8 & 31, clamp & 31);
    let last = (lane & segment) | (clamp & !segment);
    let first = lane & segment;
    let (from, inside) = match mode {
        Shuffle::Up => (lane.wrapping_sub(by), lane as i32 - by as i32 >= last as i32),
        Shuffle::Down => (lane + by, lane + by <= last),
        Shuffle::Butterfly => (lane ^ by, lane ^ by <= last),
        Shuffle::Index => {
            let from = first | (by & !segment);
            (from, from <= last)
        }
    };
    if inside { (from, true) } else { (lane, false) }
}

/// What each lane gets, and whether the lane read was in its segment.
pub(crate) fn shuffle(
    mode: Shuffle,
    [values, by, clamps, masks]: [&Lane; 4],
    here: u32,
) -> Result<(Lane, Lane), (usize, Fault)> {
    members(masks, here)?;
    let (mut made, mut inside) = ([0; 32], [0; 32]);
    for lane in active(here) {
        let (from, within) = source(mode, lane as u32, by[lane] as u32, clamps[lane] as u32);
        if masks[lane] >> from & 1 == 0 {
            return Err((lane, Fault::Mask { mask: masks[lane] as u32, active: here }));
        }
        made[lane] = values[from as usize] & ones(32);
        inside[lane] = u64::from(within);
    }
    Ok((made, inside))
}

pub(crate) fn vote(vote: Vote, predicates: &Lane, masks: &Lane, here: u32) -> Result<Lane, (usize, Fault)> {
    members(masks, here)?;
    let set = active(here).filter(|&lane| predicates[lane] != 0).fold(0u64, |set, lane| set | 1 << lane);
    Ok(std::array::from_fn(|lane| {
        let mask = masks[lane] & ones(32);
        match vote {
            Vote::All => u64::from(set & mask == mask),
            Vote::Any => u64::from(set & mask != 0),
            Vote::Uniform => u64::from(set & mask == mask || set & mask == 0),
            Vote::Ballot => set & mask,
        }
    }))
}

/// The members with the same value; of `all`, only if these are all members (and whether they are).
pub(crate) fn matches(all: bool, values: &Lane, masks: &Lane, here: u32) -> Result<(Lane, Lane), (usize, Fault)> {
    members(masks, here)?;
    let (mut made, mut whole) = ([0; 32], [0; 32]);
    for lane in active(here) {
        let mask = masks[lane] as u32;
        let same =
            active(mask).filter(|&other| values[other] == values[lane]).fold(0u32, |set, other| set | 1 << other);
        whole[lane] = u64::from(same == mask);
        made[lane] = if all && same != mask { 0 } else { u64::from(same) };
    }
    Ok((made, whole))
}

pub(crate) fn reduce(
    how: Reduce,
    signed: bool,
    values: &Lane,
    masks: &Lane,
    here: u32,
) -> Result<Lane, (usize, Fault)> {
    members(masks, here)?;
    let mut made = [0; 32];
    for lane in active(here) {
        let all = active(masks[lane] as u32).map(|other| values[other] as u32);
        let one = all.reduce(|a, b| match (how, signed) {
            (Reduce::Add, _) => a.wrapping_add(b),
            (Reduce::Min, true) => (a as i32).min(b as i32) as u32,
            (Reduce::Max, true) => (a as i32).max(b as i32) as u32,
            (Reduce::Min, false) => a.min(b),
            (Reduce::Max, false) => a.max(b),
            (Reduce::And, _) => a & b,
            (Reduce::Or, _) => a | b,
            (Reduce::Xor, _) => a ^ b,
        });
        made[lane] = u64::from(one.unwrap_or(0));
    }
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_that_are_read() {
        for (mode, lane, by, clamp, expected) in [
            (Shuffle::Butterfly, 5, 16, 0x1f, (21, true)),
            (Shuffle::Up, 5, 2, 0, (3, true)),
            (Shuffle::Up, 1, 2, 0, (1, false)),
            (Shuffle::Up, 9, 2, 0x1800, (9, false)), // segments of 8
            (Shuffle::Down, 30, 1, 0x1f, (31, true)),
            (Shuffle::Down, 31, 1, 0x1f, (31, false)),
            (Shuffle::Down, 7, 1, 0x181f, (7, false)),
            (Shuffle::Index, 13, 3, 0x181f, (11, true)),
            (Shuffle::Index, 13, 3, 0x1f, (3, true)),
        ] {
            assert_eq!(source(mode, lane, by, clamp), expected, "{mode:?} {lane} {by} {clamp:#x}");
        }
    }

    #[test]
    fn members_must_be_here() {
        let full = [u64::from(u32::MAX); 32];
        assert!(members(&full, u32::MAX).is_ok());
        assert!(members(&full, 0xffff).is_err());
        assert!(members(&[0xff; 32], 0xffff).is_err(), "lanes 8 to 15 are no members");
        let halves: Lane = std::array::from_fn(|lane| if lane < 16 { 0xffff } else { 0xffff_0000 });
        assert!(members(&halves, u32::MAX).is_ok());
        let values: Lane = std::array::from_fn(|lane| lane as u64);
        let sums = reduce(Reduce::Add, true, &values, &halves, u32::MAX).expect("members");
        assert_eq!((sums[0], sums[16]), (120, 376));
        assert_eq!(vote(Vote::Ballot, &values, &halves, u32::MAX).expect("members")[0], 0xfffe);
        let parity: Lane = std::array::from_fn(|lane| lane as u64 & 1);
        assert_eq!(matches(false, &parity, &halves, u32::MAX).expect("members").0[1], 0xaaaa);
        assert_eq!(matches(true, &parity, &halves, u32::MAX).expect("members").0[1], 0);
    }
}
