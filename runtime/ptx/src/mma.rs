//! `mma.sync` and the fragments it takes, as the PTX ISA lays them out ("Warp Level Matrix Multiply-Accumulate").
//!
//! With `group = lane / 4` and `in_group = lane % 4`, element `i` of a lane's fragment stands at:
//!
//! | shape, type | A (row, column) | B (row, column) |
//! | --- | --- | --- |
//! | m16n8k16, 16 bits | `group + 8*(i/2 % 2)`, `2*in_group + i%2 + 8*(i/4)` | `2*in_group + i%2 + 8*(i/2)`, `group` |
//! | m16n8k8, 16 bits | `group + 8*(i/2)`, `2*in_group + i%2` | `2*in_group + i`, `group` |
//! | m16n8k8, tf32 | `group + 8*(i%2)`, `in_group + 4*(i/2)` | `in_group + 4*i`, `group` |
//! | m16n8k4, tf32 | `group + 8*i`, `in_group` | `in_group`, `group` |
//! | m16n8k32, 8 bits | `group + 8*(i/4 % 2)`, `4*in_group + i%4 + 16*(i/8)` | `4*in_group + i%4 + 16*(i/4)`, `group` |
//! | m16n8k16, 8 bits | `group + 8*(i/4)`, `4*in_group + i%4` | `4*in_group + i`, `group` |
//! | m8n8k16, 8 bits | `group`, `4*in_group + i` | `4*in_group + i`, `group` |
//!
//! These are one rule: a register holds `w` neighbours of a row of A (a column of B), `w = 32 / bits`; registers go
//! first down eight rows (where A has sixteen), then right. C and D hold two neighbours a row: `group + 8*(i/2)`,
//! `2*in_group + i%2`.
//!
//! Sums of floating point are made in f64 and rounded once to the accumulator; the hardware's order is not specified.

use crate::alu::float::{Round, number, rounded};
use crate::alu::{Lane, Mods};
use crate::collective::active;
use crate::types::{Kind, Type};

/// One decoded `mma.sync`.
#[derive(Debug)]
pub(crate) struct Mma {
    rows: usize,
    depth: usize,
    a: Type,
    b: Type,
    /// Of the sum that goes in and of the one that comes out.
    c: Type,
    d: Type,
    saturate: bool,
    /// Registers of D, A, B and C.
    pub(crate) registers: [Vec<u32>; 4],
}

const COLUMNS: usize = 8;

impl Mma {
    /// From the opcode; registers are filled in by the caller and then [`check`](Self::check)ed.
    pub(crate) fn decode(mods: &mut Mods) -> Result<Mma, String> {
        let shapes = ["m16n8k16", "m16n8k8", "m16n8k4", "m16n8k32", "m8n8k16"];
        let shape = mods.one_of(&shapes).ok_or("this shape of mma is not supported")?;
        let whole = mods.flag("sync") && mods.flag("aligned") && mods.flag("row") && mods.flag("col");
        let saturate = mods.flag("satfinite");
        let [d, a, b, c] = mods.types()[..] else { return Err("expected four types".to_owned()) };
        if !whole {
            return Err("expected mma.sync.aligned with .row.col".to_owned());
        }
        mods.finish()?;
        let byte = a.bits == 8 && b.bits == 8 && !a.floating();
        let half = a.bits == 16 && a == b && a.floating();
        let single = a.kind == Kind::Tf32 && a == b;
        let fits = match shape {
            "m16n8k16" => half || byte,
            "m16n8k8" => half || single,
            "m16n8k4" => single,
            _ => byte,
        };
        let sums = |of: Type| {
            if byte {
                of.signed() && of.bits == 32
            } else {
                of == Type::F32 || of.bits == 16 && of.kind == Kind::Float && a.kind == Kind::Float
            }
        };
        if !fits || !sums(c) || !sums(d) || saturate && !byte {
            return Err(format!("{shape} is not supported with these types"));
        }
        let (rows, depth) = shape[1..].split_once("n8k").expect("a shape of the list");
        let (rows, depth) = (rows.parse().expect("digits"), depth.parse().expect("digits"));
        Ok(Mma { rows, depth, a, b, c, d, saturate, registers: Default::default() })
    }

    /// The type of an immediate as C.
    pub(crate) fn sum(&self) -> Type {
        self.c
    }

    /// Whether each fragment has as many registers as its part of the matrix needs.
    pub(crate) fn check(&self) -> Result<(), String> {
        let registers = |elements: usize, of: Type| elements / 32 * of.bits as usize / 32;
        let wanted = [
            registers(self.rows * COLUMNS, self.d),
            registers(self.rows * self.depth, self.a),
            registers(self.depth * COLUMNS, self.b),
            registers(self.rows * COLUMNS, self.c),
        ];
        let found = [0, 1, 2, 3].map(|n| self.registers[n].len());
        if wanted == found { Ok(()) } else { Err(format!("expected {wanted:?} registers, found {found:?}")) }
    }

    /// For the whole warp.
    pub(crate) fn run(&self, registers: &mut [Lane]) {
        if self.a.floating() {
            self.floats(registers);
        } else {
            self.integers(registers);
        }
    }

    /// The values of A by row, then those of B by column.
    fn gather<T: Copy + Default>(&self, registers: &[Lane], read: impl Fn(u64, Type) -> T) -> (Vec<T>, Vec<T>) {
        let (mut a, mut b) = (vec![T::default(); self.rows * self.depth], vec![T::default(); COLUMNS * self.depth]);
        let width = 32 / self.a.bits as usize;
        let down = self.rows / 8;
        for lane in active(u32::MAX) {
            let (group, in_group) = (lane / 4, lane % 4);
            for (n, &register) in self.registers[1].iter().enumerate() {
                let (row, column) = (group + 8 * (n % down), width * (in_group + 4 * (n / down)));
                for part in 0..width {
                    let bits = registers[register as usize][lane] >> (part * self.a.bits as usize);
                    a[row * self.depth + column + part] = read(bits, self.a);
                }
            }
            for (n, &register) in self.registers[2].iter().enumerate() {
                let row = width * (in_group + 4 * n);
                for part in 0..width {
                    let bits = registers[register as usize][lane] >> (part * self.b.bits as usize);
                    b[group * self.depth + row + part] = read(bits, self.b);
                }
            }
        }
        (a, b)
    }

    /// The sum of each row with each column, given what is there already.
    fn scatter(&self, registers: &mut [Lane], mut sum: impl FnMut(u64, usize, usize) -> u64) {
        for lane in 0..32 {
            let (group, in_group) = (lane / 4, lane % 4);
            let mut made = [0; 4];
            let count = self.rows * COLUMNS / 32;
            for (i, made) in made.iter_mut().enumerate().take(count) {
                let before = part(&self.registers[3], i, self.c, registers, lane);
                *made = sum(before, group + 8 * (i / 2), 2 * in_group + i % 2);
            }
            for (n, &register) in self.registers[0].iter().enumerate() {
                registers[register as usize][lane] =
                    if self.d.bits == 16 { made[2 * n] | made[2 * n + 1] << 16 } else { made[n] };
            }
        }
    }

    fn floats(&self, registers: &mut [Lane]) {
        // The hardware reads only the upper bits of tf32.
        let (a, b) = self.gather(registers, |bits, of| match of.kind {
            Kind::Tf32 => number(bits & 0xffff_e000, of),
            _ => number(bits & of.mask(), of),
        });
        self.scatter(registers, |before, row, column| {
            let before = number(before, self.c);
            let (row, column) = (&a[row * self.depth..][..self.depth], &b[column * self.depth..][..self.depth]);
            rounded(dot(row, column) + before, 0.0, self.d, Round::Nearest)
        });
    }

    fn integers(&self, registers: &mut [Lane]) {
        let (a, b) =
            self.gather(
                registers,
                |bits, of| {
                    if of.signed() { i32::from(bits as u8 as i8) } else { i32::from(bits as u8) }
                },
            );
        self.scatter(registers, |before, row, column| {
            let (row, column) = (&a[row * self.depth..][..self.depth], &b[column * self.depth..][..self.depth]);
            let sum = row.iter().zip(column).map(|(a, b)| a * b).sum::<i32>();
            let before = before as u32 as i32;
            let sum = if self.saturate { before.saturating_add(sum) } else { before.wrapping_add(sum) };
            u64::from(sum as u32)
        });
    }
}

/// The sum of products, four at a time so that they need not wait for each other. Depths are multiples of four.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 4];
    for (a, b) in a.chunks_exact(4).zip(b.chunks_exact(4)) {
        for n in 0..4 {
            sums[n] += a[n] * b[n];
        }
    }
    sums[0] + sums[1] + sums[2] + sums[3]
}

/// Element `i` of a fragment of C.
fn part(fragment: &[u32], i: usize, of: Type, registers: &[Lane], lane: usize) -> u64 {
    if of.bits == 16 {
        registers[fragment[i / 2] as usize][lane] >> (16 * (i % 2)) & 0xffff
    } else {
        registers[fragment[i] as usize][lane]
    }
}
