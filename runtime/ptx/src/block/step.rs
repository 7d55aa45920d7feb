//! One instruction that is more than arithmetic.

use super::{Machine, Stepped, next};
use crate::Fault;
use crate::alu::float::{Round, number, rounded};
use crate::alu::{Lane, keep};
use crate::collective::{self, active};
use crate::memory::aligned;
use crate::program::{Atomic, Op, Place};
use crate::shared::Touch;
use crate::space::Space;
use crate::types::{Kind, Type, ones};
use crate::warp::{Copy, Warp};

const LOCAL: &str = "local memory";

impl Machine<'_> {
    pub(super) fn step(&mut self, op: &Op, warp: &mut Warp, number: usize, mask: u32) -> Stepped<()> {
        match op {
            Op::Branch { target, meeting } => {
                let Some(part) = warp.parts.last().copied() else { return Ok(()) };
                warp.split(&[(part.mask & !mask, part.at + 1), (mask, *target)], *meeting);
                return Ok(());
            }
            Op::Indexed { index, targets, meeting } => {
                let mut ways: Vec<(u32, u32)> = targets.iter().map(|&target| (0, target)).collect();
                for lane in active(mask) {
                    let index = warp.registers[*index as usize][lane];
                    match ways.get_mut(index as usize) {
                        Some((lanes, _)) => *lanes |= 1 << lane,
                        None => {
                            return Err((lane, Fault::Nowhere { space: "branch table", address: index, length: 1 }));
                        }
                    }
                }
                // Entries with the same target are one way.
                ways.sort_by_key(|&(_, target)| target);
                ways.dedup_by(|next, first| {
                    let same = next.1 == first.1;
                    first.0 |= if same { next.0 } else { 0 };
                    same
                });
                warp.split(&ways, *meeting);
                return Ok(());
            }
            Op::Call { target } => {
                warp.call(*target);
                return Ok(());
            }
            Op::Return => {
                warp.come_back();
                return Ok(());
            }
            Op::Exit => {
                // Those who stay go on.
                next(warp);
                warp.exit(mask);
                return Ok(());
            }
            _ if mask == 0 => {}
            Op::Barrier { .. } => return self.arrive(warp, number, op, mask),
            op => self.work(op, warp, number, mask)?,
        }
        next(warp);
        Ok(())
    }

    fn work(&mut self, op: &Op, warp: &mut Warp, number: usize, mask: u32) -> Stepped<()> {
        match op {
            Op::Pack { to, from, bits } => {
                let made: Lane = std::array::from_fn(|lane| {
                    from.iter()
                        .rev()
                        .fold(0, |made, &part| made << bits | warp.registers[part as usize][lane] & ones(*bits))
                });
                put(warp, *to, mask, &made);
            }
            Op::Unpack { to, from, bits } => {
                let value = warp.registers[*from as usize];
                for (n, &to) in to.iter().enumerate() {
                    put(warp, to, mask, &value.map(|value| value >> (n as u32 * bits) & ones(*bits)));
                }
            }
            Op::Clock { to } => {
                let steps = warp.steps;
                put(warp, *to, mask, &[steps; 32]);
            }
            Op::Load { place, of, to } => {
                let each = of.bytes();
                for lane in active(mask) {
                    let address = address(warp, place, lane);
                    let length = u64::from(each) * to.len() as u64;
                    let value = self.load(place.space, address, length, warp, thread(number, lane), Touch::Read);
                    let value = value.map_err(|fault| (lane, fault))?;
                    for (n, &(register, cut)) in to.iter().enumerate() {
                        let part = (value >> (8 * each * n as u32)) as u64 & of.mask();
                        warp.registers[register as usize][lane] =
                            if of.signed() { extended(part, *of) & cut } else { part };
                    }
                }
            }
            Op::Store { place, of, from } => {
                for lane in active(mask) {
                    let address = address(warp, place, lane);
                    let value = from.iter().rev().fold(0, |value, &register| {
                        value << (8 * of.bytes()) | u128::from(warp.registers[register as usize][lane] & of.mask())
                    });
                    let length = u64::from(of.bytes()) * from.len() as u64;
                    self.store(place.space, address, length, value, warp, thread(number, lane), Touch::Write)
                        .map_err(|fault| (lane, fault))?;
                }
            }
            Op::Atomic { place, how, of, to, from } => {
                for lane in active(mask) {
                    let address = address(warp, place, lane);
                    let [one, other] = from.map(|register| warp.registers[register as usize][lane] & of.mask());
                    let length = u64::from(of.bytes());
                    let who = thread(number, lane);
                    let mut work = || {
                        let old = self.load(place.space, address, length, warp, who, Touch::Atomic)? as u64;
                        let new = atomic(*how, *of, old, one, other);
                        self.store(place.space, address, length, u128::from(new), warp, who, Touch::Atomic)?;
                        Ok(old)
                    };
                    let old = work().map_err(|fault| (lane, fault))?;
                    if let Some(to) = to {
                        warp.registers[*to as usize][lane] = old;
                    }
                }
            }
            Op::Pass { from, to, length } => {
                for lane in active(mask) {
                    let start = lane as u64 * self.local_bytes();
                    warp.local.copy(start + u64::from(*from), start + u64::from(*to), u64::from(*length));
                }
            }
            Op::WarpBarrier { mask: members } => {
                for lane in active(mask) {
                    let members = warp.registers[*members as usize][lane] as u32;
                    if members & warp.live & !mask != 0 || members >> lane & 1 == 0 {
                        return Err((lane, Fault::Mask { mask: members, active: mask }));
                    }
                }
                self.shared.warp_barrier(number);
            }
            Op::Shuffle { mode, to, from } => {
                let [value, by, clamp, members] = from.map(|register| &warp.registers[register as usize]);
                let (made, inside) = collective::shuffle(*mode, [value, by, clamp, members], mask)?;
                put(warp, to[1], mask, &inside);
                put(warp, to[0], mask, &made);
            }
            Op::Vote { vote, to, predicate, mask: members } => {
                let [predicate, members] = [predicate, members].map(|register| &warp.registers[*register as usize]);
                let made = collective::vote(*vote, predicate, members, mask)?;
                put(warp, *to, mask, &made);
            }
            Op::Match { all, to, from, mask: members } => {
                let [from, members] = [from, members].map(|register| &warp.registers[*register as usize]);
                let (made, whole) = collective::matches(*all, from, members, mask)?;
                put(warp, to[1], mask, &whole);
                put(warp, to[0], mask, &made);
            }
            Op::Reduce { how, signed, to, from, mask: members } => {
                let [from, members] = [from, members].map(|register| &warp.registers[*register as usize]);
                let made = collective::reduce(*how, *signed, from, members, mask)?;
                put(warp, *to, mask, &made);
            }
            Op::ActiveMask { to } => put(warp, *to, mask, &[u64::from(mask); 32]),
            Op::Mma(mma) => {
                if mask != u32::MAX {
                    return Err((mask.trailing_zeros() as usize, Fault::Mask { mask: u32::MAX, active: mask }));
                }
                mma.run(&mut warp.registers);
            }
            Op::Matrices { place, to, transposed } => self.matrices(place, to, *transposed, warp, number, mask)?,
            Op::CopyAsync { to, from, length, source_length } => {
                for lane in active(mask) {
                    let length = u64::from(*length);
                    let source_length =
                        source_length.map_or(length, |register| warp.registers[register as usize][lane] & ones(32));
                    let copy = Copy {
                        to: address(warp, to, lane),
                        from: address(warp, from, lane),
                        length,
                        source_length: source_length.min(length),
                    };
                    self.announce(copy, thread(number, lane)).map_err(|fault| (lane, fault))?;
                    let groups = &mut warp.copies[lane];
                    if groups.is_empty() {
                        groups.push_back(Vec::new());
                    }
                    if let Some(open) = groups.back_mut() {
                        open.push(copy);
                    }
                }
            }
            Op::CopyCommit => {
                for lane in active(mask) {
                    let groups = &mut warp.copies[lane];
                    if groups.is_empty() {
                        groups.push_back(Vec::new());
                    }
                    groups.push_back(Vec::new());
                }
            }
            Op::CopyWait(count) => {
                for lane in active(mask) {
                    // The open group is waited for only by wait_all.
                    let keep = count.map_or(0, |count| count as usize + 1);
                    while warp.copies[lane].len() > keep {
                        let group = warp.copies[lane].pop_front().unwrap_or_default();
                        for copy in group {
                            self.finish(copy, thread(number, lane)).map_err(|fault| (lane, fault))?;
                        }
                    }
                }
            }
            Op::Trap => return Err((mask.trailing_zeros() as usize, Fault::Trap)),
            _ => {}
        }
        Ok(())
    }

    fn load(
        &mut self,
        space: Space,
        address: u64,
        length: u64,
        warp: &Warp,
        thread: u32,
        touch: Touch,
    ) -> Result<u128, Fault> {
        match space.resolve(address) {
            (Space::Shared, offset) => self.shared.load(offset, length, thread, touch),
            (Space::Local, offset) => {
                let at = self.local(offset, length, thread)?;
                // A structure is copied with the gaps between its fields: only what was never written at all is wrong.
                if warp.local.written(at, length) == 0 {
                    return Err(Fault::Uninitialised { space: LOCAL, address: offset, length });
                }
                Ok(warp.local.get(at, length))
            }
            (Space::Constant, offset) => table("constant memory", self.constants, offset, length),
            (Space::Param, offset) => table("parameters", &self.params, offset, length),
            (_, address) => self.memory.load(address, length),
        }
    }

    #[allow(clippy::too_many_arguments)] // An access is that.
    fn store(
        &mut self,
        space: Space,
        address: u64,
        length: u64,
        value: u128,
        warp: &mut Warp,
        thread: u32,
        touch: Touch,
    ) -> Result<(), Fault> {
        match space.resolve(address) {
            (Space::Shared, offset) => self.shared.store(offset, length, value, thread, touch),
            (Space::Local, offset) => {
                let at = self.local(offset, length, thread)?;
                warp.local.set(at, length, value);
                Ok(())
            }
            (Space::Constant, address) => Err(Fault::ReadOnly { space: "constant memory", address, length }),
            (Space::Param, address) => Err(Fault::ReadOnly { space: "parameters", address, length }),
            (_, address) => self.memory.store(address, length, value),
        }
    }

    /// Where a thread's own memory lies in that of the warp.
    fn local(&self, offset: u64, length: u64, thread: u32) -> Result<u64, Fault> {
        aligned(LOCAL, offset, length)?;
        let size = u64::from(self.program.local_bytes);
        if offset.checked_add(length).is_none_or(|end| end > size) {
            return Err(Fault::OutOfBounds { space: LOCAL, address: offset, length, start: 0, size });
        }
        Ok(u64::from(thread % 32) * self.local_bytes() + offset)
    }

    /// A copy begins: from now on nobody else may touch where it goes.
    fn announce(&mut self, copy: Copy, thread: u32) -> Result<(), Fault> {
        aligned("global memory", copy.from, copy.length)?;
        if copy.source_length == copy.length {
            self.memory.load(copy.from, copy.length)?;
        }
        self.shared.touch(copy.to, copy.length, thread, Touch::Write, false)
    }

    /// A copy is waited for: only now its bytes are there.
    fn finish(&mut self, copy: Copy, thread: u32) -> Result<(), Fault> {
        let mut value = 0;
        if copy.source_length == copy.length {
            value = self.memory.load(copy.from, copy.length)?;
        } else {
            for n in 0..copy.source_length {
                value |= self.memory.load(copy.from + n, 1)? << (8 * n);
            }
        }
        self.shared.store(copy.to, copy.length, value, thread, Touch::Write)
    }

    /// `ldmatrix`: lane `8 i + r` says where row `r` of matrix `i` stands; of each matrix a lane gets two neighbours of
    /// a row (`lane / 4`), or of a column when transposed.
    fn matrices(
        &mut self,
        place: &Place,
        to: &[u32],
        transposed: bool,
        warp: &mut Warp,
        number: usize,
        mask: u32,
    ) -> Stepped<()> {
        if mask != u32::MAX {
            return Err((mask.trailing_zeros() as usize, Fault::Mask { mask: u32::MAX, active: mask }));
        }
        for (matrix, &to) in to.iter().enumerate() {
            let mut rows = [0u128; 8];
            for (r, row) in rows.iter_mut().enumerate() {
                let lane = 8 * matrix + r;
                let address = address(warp, place, lane);
                let (space, _) = place.space.resolve(address);
                if space != Space::Shared {
                    return Err((lane, Fault::Nowhere { space: "shared memory", address, length: 16 }));
                }
                *row = self
                    .load(place.space, address, 16, warp, thread(number, lane), Touch::Read)
                    .map_err(|fault| (lane, fault))?;
            }
            let element = |row: usize, column: usize| (rows[row] >> (16 * column)) as u64 & 0xffff;
            let made: Lane = std::array::from_fn(|lane| {
                let (a, b) = (lane / 4, lane % 4 * 2);
                if transposed {
                    element(b, a) | element(b + 1, a) << 16
                } else {
                    element(a, b) | element(a, b + 1) << 16
                }
            });
            put(warp, to, mask, &made);
        }
        Ok(())
    }
}

fn table(space: &'static str, bytes: &crate::bytes::Bytes, address: u64, length: u64) -> Result<u128, Fault> {
    aligned(space, address, length)?;
    if !bytes.holds(address, length) {
        return Err(Fault::OutOfBounds { space, address, length, start: 0, size: bytes.len() });
    }
    Ok(bytes.get(address, length))
}

fn thread(warp: usize, lane: usize) -> u32 {
    (32 * warp + lane) as u32
}

fn address(warp: &Warp, place: &Place, lane: usize) -> u64 {
    warp.registers[place.base as usize][lane].wrapping_add_signed(place.offset)
}

fn put(warp: &mut Warp, to: u32, mask: u32, made: &Lane) {
    keep(&mut warp.registers[to as usize], made, mask);
}

fn extended(value: u64, of: Type) -> u64 {
    let shift = 64 - of.bits;
    (((value << shift) as i64) >> shift) as u64
}

/// What stands there afterwards.
fn atomic(how: Atomic, of: Type, old: u64, one: u64, other: u64) -> u64 {
    let order = |value: u64| if of.signed() { extended(value, of) as i64 } else { (value ^ 1 << 63) as i64 };
    let new = match how {
        Atomic::Add if of.packed => {
            let half = of.half();
            let sum = |shift: u32| float_sum(half, old >> shift & 0xffff, one >> shift & 0xffff);
            sum(0) | sum(16) << 16
        }
        Atomic::Add if of.floating() => float_sum(of, old, one),
        Atomic::Add => old.wrapping_add(one),
        Atomic::Min => {
            if order(one) < order(old) {
                one
            } else {
                old
            }
        }
        Atomic::Max => {
            if order(one) > order(old) {
                one
            } else {
                old
            }
        }
        Atomic::And => old & one,
        Atomic::Or => old | one,
        Atomic::Xor => old ^ one,
        Atomic::Exchange => one,
        Atomic::CompareAndSwap => {
            if old == one {
                other
            } else {
                old
            }
        }
        Atomic::Increment => {
            if old >= one {
                0
            } else {
                old + 1
            }
        }
        Atomic::Decrement => {
            if old == 0 || old > one {
                one
            } else {
                old - 1
            }
        }
    };
    new & of.mask()
}

fn float_sum(of: Type, a: u64, b: u64) -> u64 {
    if of.kind == Kind::Float && of.bits == 64 {
        return (f64::from_bits(a) + f64::from_bits(b)).to_bits();
    }
    // A sum of two numbers of 32 bits or fewer, rounded to 53 bits and then to 24 or fewer, is rounded right.
    rounded(number(a, of) + number(b, of), 0.0, of, Round::Nearest)
}
