//! Floating point: f32 and f64 as IEEE 754 rounds, 16-bit formats through f64 and rounded once, approximations exact to
//! the last bit or so, which is nearer than the PTX ISA promises.

use super::{Alu, Mods};
use crate::types::{Kind, Type, ones};

/// How a result is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Round {
    Nearest,
    Zero,
    Down,
    Up,
    /// To nearest, halves away from zero (`cvt.rna.tf32`).
    Away,
}

impl Round {
    /// `rn`, `rz`, `rm`, `rp`, `rna`.
    pub(crate) fn take(mods: &mut Mods) -> Option<Round> {
        mods.one_of(&["rn", "rz", "rm", "rp", "rna"]).map(|name| match name {
            "rz" => Round::Zero,
            "rm" => Round::Down,
            "rp" => Round::Up,
            "rna" => Round::Away,
            _ => Round::Nearest,
        })
    }
}

/// A number exactly: every value of every type is one of f64.
pub(crate) fn number(bits: u64, of: Type) -> f64 {
    match (of.kind, of.bits) {
        (Kind::Bfloat, _) => f64::from(f32::from_bits((bits as u32 & 0xffff) << 16)),
        (_, 16) => f64::from(half::f16::from_bits(bits as u16).to_f32()),
        (_, 32) => f64::from(f32::from_bits(bits as u32)),
        _ => f64::from_bits(bits),
    }
}

/// Bits of exponent and of mantissa (without the leading one).
fn shape(of: Type) -> (i32, i32) {
    match (of.kind, of.bits) {
        (Kind::Bfloat, _) => (8, 7),
        (Kind::Tf32, _) => (8, 10),
        (_, 16) => (5, 10),
        (_, 32) => (8, 23),
        _ => (11, 52),
    }
}

/// What PTX calls the canonical NaN.
pub(crate) fn nan(of: Type) -> u64 {
    match of.bits {
        16 => 0x7fff,
        32 => 0x7fff_ffff,
        _ => 0x7fff_ffff_ffff_ffff,
    }
}

/// The value of the type that the rounding asks for, as its bits. `low` is what the number has beyond `high` (at most
/// half its last place; only for types narrower than f64), so that sums and products are rounded once.
pub(crate) fn rounded(high: f64, low: f64, of: Type, round: Round) -> u64 {
    if high.is_nan() {
        return nan(of);
    }
    let (exponent_bits, mantissa_bits) = shape(of);
    let sign = u64::from(high.is_sign_negative()) << (of.bits - 1);
    let infinity = ones(exponent_bits as u32) << mantissa_bits << pad(of);
    if high.is_infinite() {
        return sign | infinity;
    }
    if high == 0.0 && low == 0.0 {
        return sign;
    }
    // What lies beyond is kept as a last bit that is one: f64 has room for it below every narrower type.
    let mut magnitude = high.abs();
    if low != 0.0 {
        if low.is_sign_negative() != high.is_sign_negative() {
            magnitude = magnitude.next_down();
        }
        magnitude = f64::from_bits(magnitude.to_bits() | 1);
    }
    if of == Type::F32 && round == Round::Nearest {
        return sign | u64::from((magnitude as f32).to_bits());
    }
    let bias = (1 << (exponent_bits - 1)) - 1;
    let exponent = exponent(magnitude).max(1 - bias);
    // In units of the last place of the result.
    let scaled = magnitude / power(exponent - mantissa_bits);
    let mut count = scaled as u64;
    let rest = scaled - count as f64;
    let up = match round {
        Round::Nearest => rest > 0.5 || rest == 0.5 && count & 1 == 1,
        Round::Away => rest >= 0.5,
        Round::Zero => false,
        Round::Down => rest > 0.0 && sign != 0,
        Round::Up => rest > 0.0 && sign == 0,
    };
    if up {
        count += 1;
    }
    // The leading one adds to the exponent by itself, and so does a carry out of the mantissa.
    let made = (((exponent + bias - 1) as u64) << mantissa_bits) + count;
    if made >= infinity >> pad(of) {
        let stays = match round {
            Round::Zero => true,
            Round::Down => sign == 0,
            Round::Up => sign != 0,
            _ => false,
        };
        return sign | (if stays { (infinity >> pad(of)) - 1 } else { infinity >> pad(of) }) << pad(of);
    }
    sign | made << pad(of)
}

/// tf32 lies in the upper bits of a register.
fn pad(of: Type) -> i32 {
    if of.kind == Kind::Tf32 { 13 } else { 0 }
}

fn exponent(magnitude: f64) -> i32 {
    let bits = (magnitude.to_bits() >> 52) as i32 & 0x7ff;
    if bits == 0 { -1074 + 63 - (magnitude.to_bits().leading_zeros() as i32) } else { bits - 1023 }
}

fn power(exponent: i32) -> f64 {
    if exponent >= -1022 {
        f64::from_bits(((exponent + 1023) as u64) << 52)
    } else {
        f64::from_bits(1 << (exponent + 1074))
    }
}

/// The sum and what rounding lost of it, exactly.
fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    if !sum.is_finite() {
        return (sum, 0.0);
    }
    let part = sum - a;
    (sum, (a - (sum - part)) + (b - part))
}

fn single(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

/// The bits, a NaN as the canonical one.
fn pack(value: f32) -> u64 {
    if value.is_nan() { 0x7fff_ffff } else { u64::from(value.to_bits()) }
}

fn pack_double(value: f64) -> u64 {
    if value.is_nan() { nan(Type::F64) } else { value.to_bits() }
}

/// Subnormal numbers become zeros of their sign.
pub(crate) fn flushed(bits: u64) -> u64 {
    if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { bits & ones(32) }
}

fn saturated(value: f64) -> f64 {
    if value.is_nan() { 0.0 } else { value.clamp(0.0, 1.0) + 0.0 }
}

/// What happens to a result besides rounding.
#[derive(Clone, Copy, Default)]
struct After {
    flush: bool,
    saturate: bool,
    relu: bool,
}

impl After {
    fn take(mods: &mut Mods) -> Self {
        Self { flush: mods.flag("ftz"), saturate: mods.flag("sat"), relu: mods.flag("relu") }
    }

    fn none(self) -> bool {
        !self.flush && !self.saturate && !self.relu
    }

    fn apply(self, bits: u64, of: Type) -> u64 {
        let bits = if self.flush && of.bits == 32 { flushed(bits) } else { bits };
        if self.saturate {
            return rounded(saturated(number(bits, of)), 0.0, of, Round::Nearest);
        }
        if self.relu && number(bits, of) < 0.0 { 0 } else { bits }
    }
}

/// A function of N numbers of one type (or of both halves of a packed one), with what comes before and after.
fn each<const N: usize>(of: Type, after: After, f: impl Fn([u64; N], Type) -> u64 + Send + Sync + 'static) -> Alu {
    let element = if of.packed { of.half() } else { of };
    let one = move |sources: [u64; N]| {
        let flush = after.flush && element.bits == 32;
        let sources = if flush { sources.map(flushed) } else { sources.map(|s| s & element.mask()) };
        after.apply(f(sources, element), element)
    };
    if of.packed {
        Alu::same(of, move |sources: [u64; N]| one(sources) | one(sources.map(|s| s >> 16)) << 16)
    } else {
        Alu::same(of, one)
    }
}

pub(super) fn decode(mods: &mut Mods) -> Result<Option<Alu>, String> {
    Ok(Some(match mods.name {
        "add" | "sub" | "mul" | "fma" | "mad" => sums(mods)?,
        "div" | "rcp" | "sqrt" => quotients(mods)?,
        "min" | "max" => extremes(mods)?,
        "neg" | "abs" | "copysign" => signs(mods)?,
        "ex2" | "lg2" | "sin" | "cos" | "tanh" | "rsqrt" => approximations(mods)?,
        "testp" => {
            let test = mods.one_of(&["finite", "infinite", "number", "notanumber", "normal", "subnormal"]);
            let Some(test) = test.map(str::to_owned) else { return Err("unknown test".to_owned()) };
            let of = mods.only()?;
            Alu::same(of, move |[a]| {
                let (tiny, value) = (of == Type::F32 && single(a).is_subnormal(), number(a, of));
                u64::from(match test.as_str() {
                    "finite" => value.is_finite(),
                    "infinite" => value.is_infinite(),
                    "number" => !value.is_nan(),
                    "notanumber" => value.is_nan(),
                    "normal" => value.is_normal() && !tiny,
                    _ => value.is_subnormal() || tiny,
                })
            })
        }
        _ => return Ok(None),
    }))
}

fn sums(mods: &mut Mods) -> Result<Alu, String> {
    let name = match mods.name {
        "mad" => "fma",
        name => name,
    }
    .to_owned();
    let round = Round::take(mods).unwrap_or(Round::Nearest);
    let after = After::take(mods);
    mods.flag("noftz");
    let of = mods.only()?;
    if round == Round::Nearest && after.none() && of == Type::F32 {
        return Ok(match name.as_str() {
            "add" => Alu::same(of, |[a, b]| pack(single(a) + single(b))),
            "sub" => Alu::same(of, |[a, b]| pack(single(a) - single(b))),
            "mul" => Alu::same(of, |[a, b]| pack(single(a) * single(b))),
            _ => Alu::same(of, |[a, b, c]| pack(single(a).mul_add(single(b), single(c)))),
        });
    }
    if of == Type::F64 {
        if round != Round::Nearest && name == "fma" {
            return Err("fma.f64 is supported only to nearest".to_owned());
        }
        return Ok(match name.as_str() {
            "add" => each(of, after, move |[a, b], _| double_sum(f64::from_bits(a), f64::from_bits(b), round)),
            "sub" => each(of, after, move |[a, b], _| double_sum(f64::from_bits(a), -f64::from_bits(b), round)),
            "mul" => each(of, after, move |[a, b], _| {
                let (a, b) = (f64::from_bits(a), f64::from_bits(b));
                let product = a * b;
                stepped(product, if product.is_finite() { a.mul_add(b, -product) } else { 0.0 }, round)
            }),
            _ => each(of, after, |[a, b, c], _| {
                pack_double(f64::from_bits(a).mul_add(f64::from_bits(b), f64::from_bits(c)))
            }),
        });
    }
    // Products of two are exact in f64; of a sum the lost part is kept.
    Ok(match name.as_str() {
        "add" => each(of, after, move |[a, b], of| sum(number(a, of), number(b, of), of, round)),
        "sub" => each(of, after, move |[a, b], of| sum(number(a, of), -number(b, of), of, round)),
        "mul" => each(of, after, move |[a, b], of| rounded(number(a, of) * number(b, of), 0.0, of, round)),
        _ => each(of, after, move |[a, b, c], of| sum(number(a, of) * number(b, of), number(c, of), of, round)),
    })
}

fn sum(a: f64, b: f64, of: Type, round: Round) -> u64 {
    let (high, low) = two_sum(a, b);
    let high = if high == 0.0 && low == 0.0 { zero(a, b, high, round) } else { high };
    rounded(high, low, of, round)
}

/// The sign of a sum that is zero: minus only when rounding down, or when both are.
fn zero(a: f64, b: f64, sum: f64, round: Round) -> f64 {
    let differ = a.is_sign_negative() != b.is_sign_negative();
    if round == Round::Down && differ { -0.0 } else { sum }
}

fn double_sum(a: f64, b: f64, round: Round) -> u64 {
    let (high, low) = two_sum(a, b);
    let high = if high == 0.0 { zero(a, b, high, round) } else { high };
    stepped(high, low, round)
}

/// A result to nearest, moved by one place where the other rounding asks for it.
fn stepped(nearest: f64, beyond: f64, round: Round) -> u64 {
    let negative = nearest.is_sign_negative();
    let value = match round {
        Round::Zero if beyond != 0.0 && (beyond < 0.0) != negative => {
            if negative {
                nearest.next_up()
            } else {
                nearest.next_down()
            }
        }
        Round::Down if beyond < 0.0 => nearest.next_down(),
        Round::Up if beyond > 0.0 => nearest.next_up(),
        _ => nearest,
    };
    pack_double(value)
}

fn quotients(mods: &mut Mods) -> Result<Alu, String> {
    let name = mods.name.to_owned();
    let about = mods.one_of(&["approx", "full"]).is_some();
    let round = Round::take(mods).unwrap_or(Round::Nearest);
    let after = After::take(mods);
    let of = mods.only()?;
    if !(of == Type::F32 || of == Type::F64) || round != Round::Nearest || after.saturate {
        return Err(format!("this form of `{name}` is not supported"));
    }
    _ = about;
    Ok(match (name.as_str(), of == Type::F32) {
        ("div", true) => each(of, after, |[a, b], _| pack(single(a) / single(b))),
        ("div", false) => each(of, after, |[a, b], _| pack_double(f64::from_bits(a) / f64::from_bits(b))),
        ("rcp", true) => each(of, after, |[a], _| pack(1.0 / single(a))),
        ("rcp", false) => each(of, after, |[a], _| pack_double(1.0 / f64::from_bits(a))),
        (_, true) => each(of, after, |[a], _| pack(single(a).sqrt())),
        (_, false) => each(of, after, |[a], _| pack_double(f64::from_bits(a).sqrt())),
    })
}

fn extremes(mods: &mut Mods) -> Result<Alu, String> {
    let largest = mods.name == "max";
    let strict = mods.flag("NaN");
    let after = After::take(mods);
    let of = mods.only()?;
    if after.saturate || after.relu {
        return Err("`.sat` and `.relu` have no meaning here".to_owned());
    }
    Ok(each(of, after, move |[a, b], of| {
        let (x, y) = (number(a, of), number(b, of));
        match (x.is_nan(), y.is_nan()) {
            (true, true) => nan(of),
            (true, _) | (_, true) if strict => nan(of),
            (true, _) => b,
            (_, true) => a,
            // Minus zero is less than zero.
            _ if x == y => {
                if x.is_sign_negative() == largest {
                    b
                } else {
                    a
                }
            }
            _ => {
                if (x > y) == largest {
                    a
                } else {
                    b
                }
            }
        }
    }))
}

fn signs(mods: &mut Mods) -> Result<Alu, String> {
    let name = mods.name.to_owned();
    let after = After::take(mods);
    let of = mods.only()?;
    Ok(match name.as_str() {
        "neg" => each(of, after, |[a], of| a ^ 1 << (of.bits - 1)),
        "abs" => each(of, after, |[a], of| a & !(1 << (of.bits - 1))),
        _ => each(of, after, |[a, b], of| {
            let sign = 1 << (of.bits - 1);
            (a & sign) | (b & !sign)
        }),
    })
}

fn approximations(mods: &mut Mods) -> Result<Alu, String> {
    let function: fn(f64) -> f64 = match mods.name {
        "ex2" => f64::exp2,
        "lg2" => f64::log2,
        "sin" => f64::sin,
        "cos" => f64::cos,
        "tanh" => f64::tanh,
        _ => |value| 1.0 / value.sqrt(),
    };
    let named = mods.name.to_owned();
    if !mods.flag("approx") {
        return Err(format!("`{named}` without `.approx`"));
    }
    let after = After::take(mods);
    let of = mods.only()?;
    let finite_only = matches!(named.as_str(), "sin" | "cos");
    Ok(each(of, after, move |[a], of| {
        let value = number(a, of);
        // The logarithm and root of a subnormal, unflushed, are those of the number itself.
        rounded(if finite_only && !value.is_finite() { f64::NAN } else { function(value) }, 0.0, of, Round::Nearest)
    }))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{eval, f};
    use super::*;

    const F16: Type = Type { kind: Kind::Float, bits: 16, packed: false };
    const BF16: Type = Type { kind: Kind::Bfloat, bits: 16, packed: false };

    #[test]
    fn rounding_agrees_with_the_formats_own() {
        let mut state = 1u64;
        for _ in 0..200_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let value = f32::from_bits((state >> 32) as u32);
            let got = rounded(f64::from(value), 0.0, F16, Round::Nearest);
            let brain = rounded(f64::from(value), 0.0, BF16, Round::Nearest);
            if value.is_nan() {
                continue;
            }
            if value == 0.0 {
                continue;
            }
            assert_eq!(got as u16, half::f16::from_f32(value).to_bits(), "{value:e}");
            assert_eq!(brain as u16, half::bf16::from_f32(value).to_bits(), "{value:e}");
            let double = f64::from_bits(state ^ state << 7);
            if !double.is_nan() {
                assert_eq!(rounded(double, 0.0, Type::F32, Round::Nearest), f(double as f32), "{double:e}");
            }
            // Neither neighbour is nearer to a number between those of f16.
            let near = f64::from(value.abs().log2()) * 3.7;
            let got = rounded(near, 0.0, F16, Round::Nearest);
            let away = |bits: u64| (number(bits, F16) - near).abs();
            assert!(away(got) <= away(got - 1) && away(got) <= away(got + 1), "{near:e}");
        }
    }

    #[test]
    fn a_sum_is_rounded_once() {
        // 1 + 2^-11 is half way between two numbers of f16; a little more or less decides.
        let (tie, tiny) = (1.0 + 2f64.powi(-11), 2f64.powi(-80));
        assert_eq!(rounded(tie, 0.0, F16, Round::Nearest), 0x3c00);
        assert_eq!(rounded(tie, tiny, F16, Round::Nearest), 0x3c01);
        assert_eq!(rounded(tie, -tiny, F16, Round::Nearest), 0x3c00);
        assert_eq!(rounded(1.0, -tiny, F16, Round::Zero), 0x3bff);
        assert_eq!(rounded(1.0, tiny, F16, Round::Up), 0x3c01);
        assert_eq!(rounded(-1.0, tiny, F16, Round::Up), 0xbbff);
        assert_eq!(rounded(70000.0, 0.0, F16, Round::Nearest), 0x7c00);
        assert_eq!(rounded(70000.0, 0.0, F16, Round::Zero), 0x7bff);
        assert_eq!(
            rounded(1.0 + 2f64.powi(-11), 0.0, Type { kind: Kind::Tf32, bits: 32, packed: false }, Round::Away),
            0x3f80_2000
        );
    }

    #[test]
    fn singles_and_doubles() {
        let tiny = 2f32.powi(-140);
        let d = |value: f64| value.to_bits();
        for (opcode, sources, expected) in [
            ("add.f32", vec![f(1.0), f(2.5)], f(3.5)),
            ("add.rz.f32", vec![f(1.0), f(-(2f32.powi(-40)))], f(1.0f32.next_down())),
            ("add.rm.f32", vec![f(1.0), f(2f32.powi(-40))], f(1.0)),
            ("add.rp.f32", vec![f(1.0), f(2f32.powi(-40))], f(1.0f32.next_up())),
            ("add.rm.f32", vec![f(1.0), f(-1.0)], f(-0.0)),
            ("add.sat.f32", vec![f(1.0), f(2.5)], f(1.0)),
            ("add.ftz.f32", vec![f(tiny), f(tiny)], 0),
            ("add.f32", vec![f(tiny), f(tiny)], f(2.0 * tiny)),
            ("sub.f32", vec![f(f32::INFINITY), f(f32::INFINITY)], 0x7fff_ffff),
            ("mul.rn.f32", vec![f(3.0), f(-2.0)], f(-6.0)),
            (
                "fma.rn.f32",
                vec![f(1.0 + 2f32.powi(-12)), f(1.0 + 2f32.powi(-12)), f(-1.0)],
                f(2f32.powi(-11) + 2f32.powi(-24)),
            ),
            ("fma.rm.f32", vec![f(1.0), f(1.0), f(-(2f32.powi(-60)))], f(1.0f32.next_down())),
            ("fma.rn.ftz.f32", vec![f(tiny), f(1.0), f(0.0)], 0),
            ("div.rn.f32", vec![f(1.0), f(3.0)], f(1.0 / 3.0)),
            ("div.approx.ftz.f32", vec![f(1.0), f(0.0)], f(f32::INFINITY)),
            ("rcp.approx.ftz.f32", vec![f(tiny)], f(f32::INFINITY)),
            ("sqrt.rn.f32", vec![f(2.0)], f(2f32.sqrt())),
            ("rsqrt.approx.f32", vec![f(4.0)], f(0.5)),
            ("ex2.approx.ftz.f32", vec![f(-3.0)], f(0.125)),
            ("lg2.approx.f32", vec![f(8.0)], f(3.0)),
            ("sin.approx.f32", vec![f(f32::INFINITY)], 0x7fff_ffff),
            ("tanh.approx.f32", vec![f(1e9)], f(1.0)),
            ("min.f32", vec![f(f32::NAN), f(2.0)], f(2.0)),
            ("max.f32", vec![f(-0.0), f(0.0)], f(0.0)),
            ("max.NaN.f32", vec![f(f32::NAN), f(2.0)], 0x7fff_ffff),
            ("neg.f32", vec![f(2.0)], f(-2.0)),
            ("abs.f32", vec![f(-2.0)], f(2.0)),
            ("copysign.f32", vec![f(-2.0), f(3.0)], f(-3.0)),
            ("testp.subnormal.f32", vec![f(tiny)], 1),
            ("add.rm.f64", vec![d(1.0), d(-1e-30)], d(1.0f64.next_down())),
            ("mul.rp.f64", vec![d(0.1), d(0.1)], d(0.010000000000000002)),
            ("fma.rn.f64", vec![d(2.0), d(3.0), d(4.0)], d(10.0)),
            ("div.rn.f64", vec![d(1.0), d(3.0)], d(1.0 / 3.0)),
        ] {
            let wide = if opcode.ends_with("64") { 64 } else { 32 };
            assert_eq!(eval(opcode, wide, &sources), expected, "{opcode} {sources:x?}");
        }
    }

    #[test]
    fn halves() {
        let h = |value: f32| u64::from(half::f16::from_f32(value).to_bits());
        let b = |value: f32| u64::from(half::bf16::from_f32(value).to_bits());
        for (opcode, sources, expected) in [
            ("add.f16", vec![h(1.0), h(2.0)], h(3.0)),
            ("sub.f16x2", vec![h(1.0) | h(5.0) << 16, h(2.0) | h(1.0) << 16], h(-1.0) | h(4.0) << 16),
            ("mul.f16", vec![h(300.0), h(300.0)], 0x7c00),
            ("fma.rn.f16", vec![h(2.0), h(3.0), h(0.5)], h(6.5)),
            ("fma.rn.relu.f16", vec![h(2.0), h(-3.0), h(0.5)], 0),
            (
                "fma.rn.f16x2",
                vec![h(2.0) | h(1.0) << 16, h(3.0) | h(1.0) << 16, h(0.5) | h(0.25) << 16],
                h(6.5) | h(1.25) << 16,
            ),
            ("fma.rn.bf16", vec![b(2.0), b(3.0), b(0.5)], b(6.5)),
            ("fma.rn.bf16x2", vec![b(2.0), b(3.0), b(0.5) | b(-1.0) << 16], b(6.5) | b(-1.0) << 16),
            ("max.bf16x2", vec![b(2.0) | b(-1.0) << 16, b(3.0) | b(-2.0) << 16], b(3.0) | b(-1.0) << 16),
            ("ex2.approx.f16", vec![h(2.0)], h(4.0)),
            ("neg.f16x2", vec![h(1.0) | h(-2.0) << 16], h(-1.0) | h(2.0) << 16),
        ] {
            assert_eq!(eval(opcode, 32, &sources), expected, "{opcode} {sources:x?}");
        }
    }
}
