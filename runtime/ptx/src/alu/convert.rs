//! `cvt`, between all types.

use super::float::{Round, flushed, nan, number, rounded};
use super::{Alu, Mods};
use crate::types::{Kind, Type, ones};

pub(super) fn decode(mods: &mut Mods, count: usize, wide: u32) -> Result<Alu, String> {
    let round = Round::take(mods);
    let whole = mods.one_of(&["rni", "rzi", "rmi", "rpi"]).map(to_whole);
    let (flush, saturate, relu) = (mods.flag("ftz"), mods.flag("sat"), mods.flag("relu"));
    let [to, of] = mods.types()[..] else { return Err("expected two types".to_owned()) };
    if of.packed || to.packed != (count == 2) {
        return Err("this conversion is not supported".to_owned());
    }
    let read = move |bits: u64| number(if flush && of.bits == 32 { flushed(bits) } else { bits & of.mask() }, of);
    if to.packed {
        let half = to.half();
        let round = round.ok_or("a narrowing conversion without a rounding")?;
        // The first source becomes the upper half.
        return Ok(Alu::same(of, move |[a, b]| {
            let one = |bits| finish(rounded(read(bits), 0.0, half, round), half, saturate, relu);
            one(a) << 16 | one(b)
        }));
    }
    Ok(match (of.floating(), to.floating()) {
        (false, false) if of.bits <= 32 && !saturate => Alu::same(of, move |[a]| extend(short(a, of) as u64, to, wide)),
        (false, false) => Alu::same(of, move |[a]| {
            let value = integer(a, of);
            extend(if saturate { clamp(value, to) } else { value as u64 }, to, wide)
        }),
        (false, true) => {
            let round = round.ok_or("an integer becomes floating point without a rounding")?;
            if to == Type::F64 && round != Round::Nearest {
                return Err("integers become f64 only to nearest".to_owned());
            }
            if to == Type::F32 && of.bits <= 32 && round == Round::Nearest && !saturate && !relu {
                return Ok(Alu::same(of, move |[a]| u64::from((short(a, of) as f32).to_bits())));
            }
            Alu::same(of, move |[a]| {
                let value = integer(a, of);
                // Up to 2^64 the high part is a double, the rest exactly another.
                let high = value as f64;
                let low = (value - high as i128) as f64;
                let bits = if to == Type::F64 { high.to_bits() } else { rounded(high, low, to, round) };
                finish(bits, to, saturate, relu)
            })
        }
        (true, false) => {
            let whole = whole.ok_or("floating point becomes an integer without a rounding")?;
            let (low, high) = if to.signed() {
                (-((1u64 << (to.bits - 1)) as f64), ((1u64 << (to.bits - 1)) - 1) as f64)
            } else {
                (0.0, to.mask() as f64)
            };
            Alu::same(of, move |[a]| {
                let value = read(a);
                let made = if value.is_nan() {
                    if of.bits == 64 || to.bits == 64 { 1 << (to.bits - 1) } else { 0 }
                } else {
                    // The bounds of 64 bits are not exact, but these casts saturate.
                    let value = whole(value).clamp(low, high);
                    if to.signed() { value as i64 as u64 } else { value as u64 }
                };
                extend(made, to, wide)
            })
        }
        (true, true) => floats(to, of, round, whole, move |bits| (read(bits), flush), saturate, relu)?,
    })
}

fn floats(
    to: Type,
    of: Type,
    round: Option<Round>,
    whole: Option<fn(f64) -> f64>,
    read: impl Fn(u64) -> (f64, bool) + Send + Sync + 'static,
    saturate: bool,
    relu: bool,
) -> Result<Alu, String> {
    let narrowing = to.bits < of.bits || to.bits == of.bits && to.kind != of.kind;
    if narrowing && round.is_none() {
        return Err("a narrowing conversion without a rounding".to_owned());
    }
    let round = round.unwrap_or(Round::Nearest);
    // By far the most frequent.
    if of == Type::F32 && to.bits == 16 && round == Round::Nearest && !saturate && !relu {
        let brain = to.kind == Kind::Bfloat;
        return Ok(Alu::same(of, move |[a]| {
            let (value, _) = read(a);
            let value = value as f32;
            u64::from(match (value.is_nan(), brain) {
                (true, _) => 0x7fff,
                (_, true) => half::bf16::from_f32(value).to_bits(),
                _ => half::f16::from_f32(value).to_bits(),
            })
        }));
    }
    Ok(Alu::same(of, move |[a]| {
        let (value, flush) = read(a);
        let value = whole.map_or(value, |whole| whole(value));
        let bits = if value.is_nan() { nan(to) } else { rounded(value, 0.0, to, round) };
        finish(if flush && to == Type::F32 { flushed(bits) } else { bits }, to, saturate, relu)
    }))
}

fn finish(bits: u64, to: Type, saturate: bool, relu: bool) -> u64 {
    let value = number(bits, to);
    if saturate {
        let value = if value.is_nan() { 0.0 } else { value.clamp(0.0, 1.0) + 0.0 };
        rounded(value, 0.0, to, Round::Nearest)
    } else if relu && value < 0.0 {
        0
    } else {
        bits
    }
}

fn to_whole(name: &str) -> fn(f64) -> f64 {
    match name {
        "rni" => f64::round_ties_even,
        "rzi" => f64::trunc,
        "rmi" => f64::floor,
        _ => f64::ceil,
    }
}

/// Of up to 32 bits, the integer.
fn short(bits: u64, of: Type) -> i64 {
    let shift = 64 - of.bits;
    if of.signed() { ((bits << shift) as i64) >> shift } else { (bits & of.mask()) as i64 }
}

fn integer(bits: u64, of: Type) -> i128 {
    let shift = 64 - of.bits;
    if of.signed() { i128::from(((bits << shift) as i64) >> shift) } else { i128::from(bits & of.mask()) }
}

fn clamp(value: i128, to: Type) -> u64 {
    let (low, high) = if to.signed() {
        (-(1i128 << (to.bits - 1)), (1i128 << (to.bits - 1)) - 1)
    } else {
        (0, i128::from(to.mask()))
    };
    value.clamp(low, high) as u64
}

/// A value in a register that may be wider than its type.
fn extend(value: u64, to: Type, wide: u32) -> u64 {
    let shift = 64 - to.bits;
    let value = if to.signed() { (((value << shift) as i64) >> shift) as u64 } else { value & to.mask() };
    value & ones(wide.max(to.bits))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{eval, f};

    #[test]
    fn conversions() {
        let d = |value: f64| value.to_bits();
        for (opcode, wide, sources, expected) in [
            ("cvt.u32.u16", 32, vec![0xffff], 0xffff),
            ("cvt.s32.s8", 32, vec![0x80], 0xffff_ff80),
            ("cvt.s8.s32", 32, vec![0x180], 0xffff_ff80),
            ("cvt.s8.s32", 16, vec![0x180], 0xff80),
            ("cvt.u8.u32", 32, vec![0x180], 0x80),
            ("cvt.s64.s32", 64, vec![0xffff_ffff], u64::MAX),
            ("cvt.u64.u32", 64, vec![0xffff_ffff], 0xffff_ffff),
            ("cvt.u32.u64", 32, vec![0x5_0000_0001], 1),
            ("cvt.sat.s8.s32", 32, vec![300], 127),
            ("cvt.sat.u8.s32", 32, vec![0xffff_fff0], 0),
            ("cvt.rn.f32.s32", 32, vec![0xffff_ffff], f(-1.0)),
            ("cvt.rn.f32.u32", 32, vec![0xffff_ffff], f(4294967296.0)),
            ("cvt.rz.f32.u32", 32, vec![0xffff_ffff], f(4294967040.0)),
            ("cvt.rn.f32.u64", 32, vec![(1 << 40) + (1 << 16) + 1], f(1099511758848.0)),
            ("cvt.rn.f64.s64", 64, vec![u64::MAX], d(-1.0)),
            ("cvt.rn.f16.s32", 16, vec![3], 0x4200),
            ("cvt.rzi.s32.f32", 32, vec![f(-2.7)], 0xffff_fffe),
            ("cvt.rni.s32.f32", 32, vec![f(2.5)], 2),
            ("cvt.rmi.s32.f32", 32, vec![f(-2.1)], 0xffff_fffd),
            ("cvt.rpi.s32.f32", 32, vec![f(2.1)], 3),
            ("cvt.rzi.s32.f32", 32, vec![f(1e20)], 0x7fff_ffff),
            ("cvt.rzi.u32.f32", 32, vec![f(-1.0)], 0),
            ("cvt.rzi.s32.f32", 32, vec![f(f32::NAN)], 0),
            ("cvt.rzi.s64.f32", 64, vec![f(1e30)], i64::MAX as u64),
            ("cvt.rzi.u64.f32", 64, vec![f(1e30)], u64::MAX),
            ("cvt.rzi.s64.f32", 64, vec![f(f32::NEG_INFINITY)], i64::MIN as u64),
            ("cvt.rni.sat.s8.f32", 32, vec![f(-200.0)], 0xffff_ff80),
            ("cvt.rzi.s64.f64", 64, vec![d(-3.9)], -3i64 as u64),
            ("cvt.f32.f16", 32, vec![0x3c00], f(1.0)),
            ("cvt.f32.bf16", 32, vec![0x3f80], f(1.0)),
            ("cvt.rn.f16.f32", 16, vec![f(1.0 + 2f32.powi(-11))], 0x3c00),
            ("cvt.rz.f16.f32", 16, vec![f(1.9999)], 0x3fff),
            ("cvt.rn.bf16.f32", 16, vec![f(1.0)], 0x3f80),
            ("cvt.rn.f16x2.f32", 32, vec![f(1.0), f(2.0)], 0x3c00_4000),
            ("cvt.rn.relu.bf16x2.f32", 32, vec![f(1.0), f(-2.0)], 0x3f80_0000),
            ("cvt.rna.tf32.f32", 32, vec![f(1.0 + 2f32.powi(-11))], 0x3f80_2000),
            ("cvt.f64.f32", 64, vec![f(0.1)], d(f64::from(0.1f32))),
            ("cvt.rn.f32.f64", 32, vec![d(0.1)], f(0.1)),
            ("cvt.rzi.f32.f32", 32, vec![f(-2.7)], f(-2.0)),
            ("cvt.rni.f32.f32", 32, vec![f(3.5)], f(4.0)),
            ("cvt.sat.f32.f32", 32, vec![f(3.5)], f(1.0)),
            ("cvt.ftz.f64.f32", 64, vec![f(1e-42)], 0),
            ("cvt.rn.ftz.f32.f64", 32, vec![d(1e-42)], 0),
        ] {
            assert_eq!(eval(opcode, wide, &sources), expected, "{opcode} {sources:x?}");
        }
    }
}
