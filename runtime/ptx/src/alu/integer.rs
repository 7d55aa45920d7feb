//! Integers, bits and addresses.

use super::{Alu, Mods};
use crate::space::{CONSTANT_WINDOW, LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW, WINDOW_BYTES};
use crate::types::{Kind, Type, ones};

/// How values of one width are extended and cut.
#[derive(Clone, Copy)]
struct Width {
    bits: u32,
    mask: u64,
    signed: bool,
}

impl Width {
    fn of(of: Type) -> Self {
        Self { bits: of.bits, mask: of.mask(), signed: of.signed() }
    }

    fn signed(self, value: u64) -> i64 {
        let shift = 64 - self.bits;
        ((value << shift) as i64) >> shift
    }

    /// As a number.
    fn wide(self, value: u64) -> i128 {
        if self.signed { i128::from(self.signed(value)) } else { i128::from(value & self.mask) }
    }

    fn cut(self, value: u64) -> u64 {
        value & self.mask
    }

    /// The nearest value the type has.
    fn saturate(self, value: i128) -> u64 {
        let (low, high) = if self.signed {
            (-(1i128 << (self.bits - 1)), (1i128 << (self.bits - 1)) - 1)
        } else {
            (0, i128::from(self.mask))
        };
        self.cut(value.clamp(low, high) as u64)
    }
}

/// The byte that one nibble of the selector names; its top bit spreads the sign.
fn permuted(low: u64, high: u64, selector: u64) -> u64 {
    let bytes = (low & ones(32)) | high << 32;
    (0..4).fold(0, |made, n| {
        let nibble = selector >> (4 * n) & 0xf;
        let byte = bytes >> (8 * (nibble & 7)) & 0xff;
        let byte = if nibble & 8 == 0 { byte } else { 0xff * (byte >> 7) };
        made | byte << (8 * n)
    })
}

/// `lop3`: the truth table read by the bits of a, b and c.
fn looked_up([a, b, c, table]: [u64; 4]) -> u64 {
    let mut made = 0;
    for n in 0..8 {
        if table >> n & 1 == 1 {
            let pick = |value: u64, bit: u64| if n & bit != 0 { value } else { !value };
            made |= pick(a, 4) & pick(b, 2) & pick(c, 1);
        }
    }
    made & ones(32)
}

/// The integers that `dp4a` and `dp2a` find in a register.
fn parts(value: u64, bits: u32, signed: bool, count: u32, first: u32) -> impl Iterator<Item = i64> {
    let width = Width { bits, mask: ones(bits), signed };
    (first..first + count).map(move |n| width.wide(value >> (n * bits)) as i64)
}

/// The start of the addresses at which a space is seen by generic instructions.
fn window(space: &str) -> Option<u64> {
    Some(match space {
        "global" => 0,
        "shared" => SHARED_WINDOW,
        "local" => LOCAL_WINDOW,
        "const" => CONSTANT_WINDOW,
        "param" => PARAM_WINDOW,
        _ => return None,
    })
}

const SPACES: [&str; 5] = ["global", "shared", "local", "const", "param"];

pub(super) fn decode(mods: &mut Mods) -> Result<Option<Alu>, String> {
    let floating = mods.rest.iter().filter_map(|part| Type::named(part)).any(Type::floating);
    if floating && mods.name != "mov" {
        return Ok(None);
    }
    let name = mods.name;
    Ok(Some(match name {
        "mov" | "not" | "and" | "or" | "xor" | "cnot" | "brev" | "popc" | "clz" | "shl" => bits(mods)?,
        "add" | "sub" | "min" | "max" | "div" | "rem" | "abs" | "neg" | "sad" | "shr" => arithmetic(mods)?,
        "mul" | "mad" | "mul24" | "mad24" => products(mods)?,
        "bfe" => extract(mods)?,
        "bfi" => {
            let of = mods.only()?;
            let width = Width::of(of);
            Alu::of([of, of, Type::U32, Type::U32], move |[a, b, position, length]| {
                let (position, length) = ((position & 0xff) as u32, (length & 0xff) as u32);
                if position >= width.bits {
                    return width.cut(b);
                }
                let field = ones(length) << position;
                width.cut((b & !field) | (a << position & field))
            })
        }
        "bfind" => {
            let shift = mods.flag("shiftamt");
            let width = Width::of(mods.only()?);
            Alu::same(Type::B32, move |[a]| {
                let value = if width.signed && width.signed(a) < 0 { width.cut(!a) } else { width.cut(a) };
                match value.checked_ilog2() {
                    None => ones(32),
                    Some(top) if shift => u64::from(width.bits - 1 - top),
                    Some(top) => u64::from(top),
                }
            })
        }
        "prmt" => {
            mods.only()?;
            Alu::same(Type::B32, |[a, b, c]| permuted(a, b, c))
        }
        "lop3" => {
            mods.only()?;
            Alu::same(Type::B32, looked_up)
        }
        "shf" => {
            let left = mods.one_of(&["l", "r"]) == Some("l");
            let clamp = mods.one_of(&["wrap", "clamp"]) == Some("clamp");
            mods.only()?;
            Alu::same(Type::B32, move |[low, high, by]| {
                let value = (low & ones(32)) | high << 32;
                let by = if clamp { (by & ones(32)).min(32) } else { by & 31 };
                if left { (value << by) >> 32 & ones(32) } else { value >> by & ones(32) }
            })
        }
        "dp4a" | "dp2a" => dots(mods)?,
        "cvta" => {
            let to = mods.flag("to");
            let Some(base) = mods.one_of(&SPACES).and_then(window) else {
                return Err("cvta of an unknown space".to_owned());
            };
            let of = mods.only()?;
            Alu::same(of, move |[a]| if to { a.wrapping_sub(base) } else { a.wrapping_add(base) })
        }
        "isspacep" => {
            let Some(space) = mods.one_of(&SPACES) else {
                return Err("isspacep of an unknown space".to_owned());
            };
            let base = window(space).unwrap_or(0);
            let end = if base == 0 { SHARED_WINDOW } else { base + WINDOW_BYTES };
            Alu::same(Type { kind: Kind::Bits, bits: 64, packed: false }, move |[a]| u64::from(base <= a && a < end))
        }
        _ => return Ok(None),
    }))
}

fn bits(mods: &mut Mods) -> Result<Alu, String> {
    let name = mods.name;
    let of = mods.only()?;
    let width = Width::of(of);
    Ok(match name {
        "mov" => Alu::same(of, move |[a]| width.cut(a)),
        "not" => Alu::same(of, move |[a]| width.cut(!a)),
        "and" => Alu::same(of, move |[a, b]| width.cut(a & b)),
        "or" => Alu::same(of, move |[a, b]| width.cut(a | b)),
        "xor" => Alu::same(of, move |[a, b]| width.cut(a ^ b)),
        "cnot" => Alu::same(of, move |[a]| u64::from(width.cut(a) == 0)),
        "brev" => Alu::same(of, move |[a]| width.cut(a).reverse_bits() >> (64 - width.bits)),
        "popc" => Alu::same(of, move |[a]| u64::from(width.cut(a).count_ones())),
        "clz" => Alu::same(of, move |[a]| u64::from(width.cut(a).leading_zeros() - (64 - width.bits))),
        _ => Alu::of([of, Type::U32], move |[a, by]| {
            let by = by & ones(32);
            if by >= u64::from(width.bits) { 0 } else { width.cut(a << by) }
        }),
    })
}

fn arithmetic(mods: &mut Mods) -> Result<Alu, String> {
    let name = mods.name;
    let saturating = mods.flag("sat");
    let of = mods.only()?;
    let width = Width::of(of);
    if saturating && !matches!((name, of), ("add" | "sub", Type { kind: Kind::Signed, bits: 32, .. })) {
        return Err("`.sat` is only for sums of s32".to_owned());
    }
    // Order is that of signed numbers once the sign bit of unsigned ones is turned.
    let key = move |a: u64| if width.signed { width.signed(a) } else { (width.cut(a) ^ 1 << 63) as i64 };
    Ok(match name {
        "add" if saturating => Alu::same(of, move |[a, b]| width.saturate(width.wide(a) + width.wide(b))),
        "sub" if saturating => Alu::same(of, move |[a, b]| width.saturate(width.wide(a) - width.wide(b))),
        "add" => Alu::same(of, move |[a, b]| width.cut(a.wrapping_add(b))),
        "sub" => Alu::same(of, move |[a, b]| width.cut(a.wrapping_sub(b))),
        "min" => Alu::same(of, move |[a, b]| width.cut(if key(a) <= key(b) { a } else { b })),
        "max" => Alu::same(of, move |[a, b]| width.cut(if key(a) >= key(b) { a } else { b })),
        // Division by zero is whatever the machine gives: all ones, and the dividend as the remainder.
        "div" => Alu::same(of, move |[a, b]| match width.wide(b) {
            0 => width.mask,
            divisor => width.cut((width.wide(a) / divisor) as u64),
        }),
        "rem" => Alu::same(of, move |[a, b]| match width.wide(b) {
            0 => width.cut(a),
            divisor => width.cut((width.wide(a) % divisor) as u64),
        }),
        "abs" => Alu::same(of, move |[a]| width.cut(width.signed(a).unsigned_abs())),
        "neg" => Alu::same(of, move |[a]| width.cut(a.wrapping_neg())),
        "sad" => Alu::same(of, move |[a, b, c]| {
            width.cut(c.wrapping_add((width.wide(a) - width.wide(b)).unsigned_abs() as u64))
        }),
        _ => Alu::of([of, Type::U32], move |[a, by]| {
            let by = (by & ones(32)).min(63) as u32;
            if width.signed {
                width.cut((width.signed(a) >> by) as u64)
            } else if by >= width.bits {
                0
            } else {
                width.cut(a) >> by
            }
        }),
    })
}

fn products(mods: &mut Mods) -> Result<Alu, String> {
    let three = mods.name.starts_with("mad");
    let short = mods.name.ends_with("24");
    let part = mods.one_of(&["lo", "hi", "wide"]).unwrap_or("lo");
    let of = mods.only()?;
    let width = Width::of(of);
    if short {
        if part != "lo" {
            return Err("only the low half of 24-bit products is supported".to_owned());
        }
        let factor = Width { bits: 24, mask: ones(24), signed: width.signed };
        let product = move |a, b| factor.wide(a) as i64 * factor.wide(b) as i64;
        return Ok(if three {
            Alu::same(of, move |[a, b, c]| width.cut((product(a, b) as u64).wrapping_add(c)))
        } else {
            Alu::same(of, move |[a, b]| width.cut(product(a, b) as u64))
        });
    }
    let double = Type { bits: of.bits * 2, ..of };
    Ok(match (part, three) {
        ("lo", false) => Alu::same(of, move |[a, b]| width.cut(a.wrapping_mul(b))),
        ("lo", true) => Alu::same(of, move |[a, b, c]| width.cut(a.wrapping_mul(b).wrapping_add(c))),
        ("hi", false) => Alu::same(of, move |[a, b]| width.cut(high(width, a, b))),
        ("hi", true) => Alu::same(of, move |[a, b, c]| width.cut(high(width, a, b).wrapping_add(c))),
        _ if of.bits == 64 => return Err("no product of 128 bits".to_owned()),
        (_, false) => Alu::same(of, move |[a, b]| wide(width, a, b) & double.mask()),
        (_, true) => Alu::of([of, of, double], move |[a, b, c]| wide(width, a, b).wrapping_add(c) & double.mask()),
    })
}

/// Up to 32 bits: the whole product.
fn wide(width: Width, a: u64, b: u64) -> u64 {
    if width.signed {
        width.signed(a).wrapping_mul(width.signed(b)) as u64
    } else {
        width.cut(a).wrapping_mul(width.cut(b))
    }
}

fn high(width: Width, a: u64, b: u64) -> u64 {
    if width.bits < 64 {
        return wide(width, a, b) >> width.bits;
    }
    if width.signed {
        ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64
    } else {
        ((u128::from(a) * u128::from(b)) >> 64) as u64
    }
}

fn extract(mods: &mut Mods) -> Result<Alu, String> {
    let of = mods.only()?;
    let width = Width::of(of);
    Ok(Alu::of([of, Type::U32, Type::U32], move |[a, position, length]| {
        let (position, length) = ((position & 0xff) as u32, (length & 0xff) as u32);
        if length == 0 {
            return 0;
        }
        let top = (position + length - 1).min(width.bits - 1);
        let fill = width.signed && a >> top & 1 == 1;
        let field = if position >= width.bits { 0 } else { width.cut(a) >> position & ones(length) };
        let have = width.bits.saturating_sub(position).min(length);
        width.cut(if fill { field | !ones(have) } else { field })
    }))
}

fn dots(mods: &mut Mods) -> Result<Alu, String> {
    let four = mods.name == "dp4a";
    let high = mods.one_of(&["lo", "hi"]) == Some("hi");
    let [a, b] = mods.types()[..] else { return Err("expected two types".to_owned()) };
    let (a, b) = (a.signed(), b.signed());
    Ok(Alu::same(Type::B32, move |[x, y, c]| {
        let sum: i64 = if four {
            parts(x, 8, a, 4, 0).zip(parts(y, 8, b, 4, 0)).map(|(x, y)| x * y).sum()
        } else {
            parts(x, 16, a, 2, 0).zip(parts(y, 8, b, 2, if high { 2 } else { 0 })).map(|(x, y)| x * y).sum()
        };
        c.wrapping_add(sum as u64) & ones(32)
    }))
}

#[cfg(test)]
mod tests {
    use super::super::testing::eval;

    const MINUS: u64 = 0xffff_ffff;

    #[test]
    fn integers() {
        for (opcode, sources, expected) in [
            ("add.s32", vec![MINUS, 2], 1),
            ("add.sat.s32", vec![0x7fff_ffff, 2], 0x7fff_ffff),
            ("sub.sat.s32", vec![0x8000_0000, 2], 0x8000_0000),
            ("sub.u16", vec![0, 1], 0xffff),
            ("mul.lo.s32", vec![MINUS, 3], 0xffff_fffd),
            ("mul.hi.s32", vec![MINUS, 3], MINUS),
            ("mul.hi.u32", vec![MINUS, 3], 2),
            ("mul.hi.s64", vec![u64::MAX, 3], u64::MAX),
            ("mul.hi.u64", vec![u64::MAX, 3], 2),
            ("mul.wide.s32", vec![MINUS, 3], (-3i64) as u64),
            ("mul.wide.u32", vec![MINUS, 3], 0x2_ffff_fffd),
            ("mul.wide.s16", vec![0xffff, 3], 0xffff_fffd),
            ("mad.lo.s32", vec![2, 3, MINUS], 5),
            ("mad.wide.s32", vec![MINUS, 3, 10], 7),
            ("mad.hi.u32", vec![MINUS, 3, 10], 12),
            ("mul24.lo.s32", vec![0xff_ffff, 3], 0xffff_fffd),
            ("div.s32", vec![0xffff_fff9, 2], 0xffff_fffd),
            ("rem.s32", vec![0xffff_fff9, 2], MINUS),
            ("div.u32", vec![0xffff_fff9, 2], 0x7fff_fffc),
            ("div.u64", vec![5, 0], u64::MAX),
            ("min.s32", vec![MINUS, 2], MINUS),
            ("min.u32", vec![MINUS, 2], 2),
            ("max.s64", vec![u64::MAX, 2], 2),
            ("abs.s32", vec![MINUS], 1),
            ("neg.s32", vec![1], MINUS),
            ("sad.s32", vec![MINUS, 2, 10], 13),
            ("and.b32", vec![6, 3], 2),
            ("xor.b32", vec![6, 3], 5),
            ("not.b16", vec![1], 0xfffe),
            ("not.pred", vec![1], 0),
            ("shl.b32", vec![3, 31], 0x8000_0000),
            ("shl.b32", vec![3, 32], 0),
            ("shr.s32", vec![0x8000_0000, 99], MINUS),
            ("shr.u32", vec![0x8000_0000, 31], 1),
            ("shr.u32", vec![0x8000_0000, 32], 0),
            ("bfe.u32", vec![0xabcd, 4, 8], 0xbc),
            ("bfe.s32", vec![0xabcd, 4, 8], 0xffff_ffbc),
            ("bfe.s32", vec![0x8000_0000, 28, 8], 0xffff_fff8),
            ("bfe.s32", vec![0x8000_0000, 40, 8], MINUS),
            ("bfi.b32", vec![0xff, 0xabcd_abcd, 8, 4], 0xabcd_afcd),
            ("brev.b32", vec![1], 0x8000_0000),
            ("popc.b32", vec![0xff0f], 12),
            ("clz.b32", vec![1], 31),
            ("clz.b64", vec![0], 64),
            ("bfind.u32", vec![0x10], 4),
            ("bfind.shiftamt.s32", vec![0xffff_ffef], 27),
            ("prmt.b32", vec![0x3322_1100, 0x7766_5544, 0x0246], 0x0022_4466),
            ("prmt.b32", vec![0x80, 0, 0x0008], 0x8080_80ff),
            ("lop3.b32", vec![0b1100, 0b1010, 0b0110, 0x96], 0b0000),
            ("lop3.b32", vec![0b1100, 0b1010, 0, 0xe8], 0b1000),
            ("shf.l.wrap.b32", vec![0x8000_0000, 1, 33], 3),
            ("shf.r.clamp.b32", vec![1, 0xab, 40], 0xab),
            ("dp4a.s32.s32", vec![0xff02_0304, 0x0101_0102, 10], 10 - 1 + 2 + 3 + 8),
            ("dp4a.u32.u32", vec![0xff00_0000, 0x0200_0000, 0], 510),
            ("dp2a.lo.s32.s32", vec![0xffff_0003, 0x0302, 0], 3),
            ("dp2a.hi.u32.u32", vec![0x0001_0003, 0x0302_0000, 0], 9),
        ] {
            let wide = if opcode.ends_with("64") || opcode.contains("wide") { 64 } else { 32 };
            assert_eq!(eval(opcode, wide, &sources), expected, "{opcode} {sources:x?}");
        }
    }

    #[test]
    fn generic_addresses_and_back() {
        for space in super::SPACES {
            let generic = eval(&format!("cvta.{space}.u64"), 64, &[40]);
            assert_eq!(eval(&format!("cvta.to.{space}.u64"), 64, &[generic]), 40);
            for other in super::SPACES {
                assert_eq!(eval(&format!("isspacep.{other}"), 1, &[generic]), u64::from(other == space), "{other}");
            }
        }
    }
}
