//! Comparing and choosing: `setp`, `set`, `selp`, `slct`.

use super::float::{flushed, number};
use super::{Alu, Mods, Run, keep, lanes};
use crate::types::{Kind, Type, ones};

const OPERATORS: [&str; 18] = [
    "eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan",
];

/// What is made of a comparison. The comparison is a type of its own each time, so that no call is left in the loop over
/// the lanes.
trait Build {
    fn build(self, test: impl Fn(u64, u64) -> bool + Copy + Send + Sync + 'static) -> Run;
}

/// Builds from what the operator says of two values (never packed ones).
fn with_test(operator: &str, of: Type, flush: bool, build: impl Build) -> Result<Run, String> {
    if of.floating() {
        let read = move |bits: u64| {
            let bits = if flush && of.bits == 32 { flushed(bits) } else { bits };
            if of == Type::F32 { f64::from(f32::from_bits(bits as u32)) } else { number(bits, of) }
        };
        let unordered = |a: f64, b: f64| a.is_nan() || b.is_nan();
        return Ok(match operator {
            "eq" => build.build(move |a, b| read(a) == read(b)),
            "ne" => build.build(move |a, b| read(a) != read(b) && !unordered(read(a), read(b))),
            "lt" => build.build(move |a, b| read(a) < read(b)),
            "le" => build.build(move |a, b| read(a) <= read(b)),
            "gt" => build.build(move |a, b| read(a) > read(b)),
            "ge" => build.build(move |a, b| read(a) >= read(b)),
            "equ" => build.build(move |a, b| read(a) == read(b) || unordered(read(a), read(b))),
            "neu" => build.build(move |a, b| read(a) != read(b)),
            "ltu" => build.build(move |a, b| read(a) < read(b) || unordered(read(a), read(b))),
            "leu" => build.build(move |a, b| read(a) <= read(b) || unordered(read(a), read(b))),
            "gtu" => build.build(move |a, b| read(a) > read(b) || unordered(read(a), read(b))),
            "geu" => build.build(move |a, b| read(a) >= read(b) || unordered(read(a), read(b))),
            "num" => build.build(move |a, b| !unordered(read(a), read(b))),
            "nan" => build.build(move |a, b| unordered(read(a), read(b))),
            _ => return Err(format!("`.{operator}` does not compare floating point")),
        });
    }
    let signed = of.signed() && !matches!(operator, "lo" | "ls" | "hi" | "hs");
    let shift = 64 - of.bits;
    // Signed order for both: the top bit of an unsigned value is turned.
    let turn = if signed { 0 } else { 1 << 63 };
    let key = move |value: u64| ((value << shift) ^ turn) as i64;
    Ok(match operator {
        "eq" => build.build(move |a, b| key(a) == key(b)),
        "ne" => build.build(move |a, b| key(a) != key(b)),
        "lt" | "lo" => build.build(move |a, b| key(a) < key(b)),
        "le" | "ls" => build.build(move |a, b| key(a) <= key(b)),
        "gt" | "hi" => build.build(move |a, b| key(a) > key(b)),
        "ge" | "hs" => build.build(move |a, b| key(a) >= key(b)),
        _ => return Err(format!("`.{operator}` does not compare integers")),
    })
}

/// How the comparison is combined with a third predicate.
fn combine(how: Option<&str>) -> fn(bool, bool) -> bool {
    match how {
        Some("and") => |a, b| a && b,
        Some("or") => |a, b| a || b,
        Some("xor") => |a, b| a != b,
        _ => |a, _| a,
    }
}

/// The modifiers that all comparisons share.
struct Comparison<'a> {
    operator: &'a str,
    combine: fn(bool, bool) -> bool,
    combined: bool,
    flush: bool,
}

fn comparison<'a>(mods: &mut Mods<'a>) -> Result<Comparison<'a>, String> {
    let operator = mods.one_of(&OPERATORS).ok_or("no comparison")?;
    let how = mods.one_of(&["and", "or", "xor"]);
    Ok(Comparison { operator, combine: combine(how), combined: how.is_some(), flush: mods.flag("ftz") })
}

fn element(of: Type) -> Type {
    if of.packed { of.half() } else { of }
}

struct Predicates {
    of: Type,
    combine: fn(bool, bool) -> bool,
    combined: bool,
}

impl Build for Predicates {
    fn build(self, test: impl Fn(u64, u64) -> bool + Copy + Send + Sync + 'static) -> Run {
        let Predicates { of, combine, combined } = self;
        Box::new(move |registers, slots, mask| {
            let (mut first, mut second) = ([0; 32], [0; 32]);
            {
                let [a, b, c, _] = slots.from.map(|slot| &registers[slot as usize]);
                for lane in 0..32 {
                    let one = test(a[lane], b[lane]);
                    // Of a packed type the second predicate is about the upper halves.
                    let other = if of.packed { test(a[lane] >> 16, b[lane] >> 16) } else { !one };
                    (first[lane], second[lane]) = (u64::from(one), u64::from(other));
                    if combined {
                        first[lane] = u64::from(combine(one, c[lane] != 0));
                        second[lane] = u64::from(combine(other, c[lane] != 0));
                    }
                }
            }
            // The second first: it may be the sink.
            keep(&mut registers[slots.to[1] as usize], &second, mask);
            keep(&mut registers[slots.to[0] as usize], &first, mask);
        })
    }
}

/// `setp`: the sources' types, and a run that writes one or two predicates.
pub(crate) fn setp(mods: &mut Mods, count: usize) -> Result<(Run, Vec<Type>), String> {
    let of = mods.only()?;
    let Comparison { operator, combine, combined, flush } = comparison(mods)?;
    mods.finish()?;
    let mut sources = vec![of, of];
    if combined {
        sources.push(Type::PREDICATE);
    }
    if sources.len() != count {
        return Err(format!("expected {} sources, found {count}", sources.len()));
    }
    let run = with_test(operator, element(of), flush, Predicates { of, combine, combined })?;
    Ok((run, sources))
}

pub(super) fn decode(mods: &mut Mods) -> Result<Alu, String> {
    match mods.name {
        "selp" => {
            let of = mods.only()?;
            let mask = of.mask();
            Ok(Alu::of([of, of, Type::PREDICATE], move |[a, b, c]| mask & if c != 0 { a } else { b }))
        }
        "slct" => {
            let flush = mods.flag("ftz");
            let [of, by] = mods.types()[..] else { return Err("expected two types".to_owned()) };
            let mask = of.mask();
            Ok(Alu::of([of, of, by], move |[a, b, c]| {
                let c = if flush { flushed(c) } else { c };
                let first = if by.floating() { number(c, by) >= 0.0 } else { c >> (by.bits - 1) & 1 == 0 };
                mask & if first { a } else { b }
            }))
        }
        _ => set(mods),
    }
}

/// `set`: the answer as a number, in a type of its own.
fn set(mods: &mut Mods) -> Result<Alu, String> {
    let types = mods.types();
    let [to, of] = types[..] else { return Err("expected two types".to_owned()) };
    let Comparison { operator, combine, combined, flush } = comparison(mods)?;
    let one = match (to.kind, to.bits) {
        (Kind::Bfloat, _) => 0x3f80,
        (Kind::Float, 16) => 0x3c00,
        (Kind::Float, 32) if to.packed => 0x3c00,
        (Kind::Float, _) => 0x3f80_0000,
        _ if of.packed => ones(16),
        _ => to.mask(),
    };
    let mut sources = vec![of, of];
    if combined {
        sources.push(Type::PREDICATE);
    }
    let run = with_test(operator, element(of), flush, Values { of, one, combine, combined })?;
    Ok(Alu { run, sources })
}

struct Values {
    of: Type,
    /// What stands for yes.
    one: u64,
    combine: fn(bool, bool) -> bool,
    combined: bool,
}

impl Build for Values {
    fn build(self, test: impl Fn(u64, u64) -> bool + Copy + Send + Sync + 'static) -> Run {
        let Values { of, one, combine, combined } = self;
        let answer = move |a: u64, b: u64, c: u64| if combine(test(a, b), c != 0) { one } else { 0 };
        let both = move |a: u64, b: u64, c: u64| {
            if of.packed { answer(a, b, c) | answer(a >> 16, b >> 16, c) << 16 } else { answer(a, b, c) }
        };
        if combined { lanes(move |[a, b, c]| both(a, b, c)) } else { lanes(move |[a, b]| both(a, b, 0)) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Slots;
    use super::super::testing::{eval, f};
    use super::*;

    fn compared(opcode: &str, sources: &[u64]) -> (u64, u64) {
        let (run, types) = setp(&mut Mods::new(opcode), sources.len()).unwrap_or_else(|e| panic!("{opcode}: {e}"));
        assert_eq!(types.len(), sources.len());
        let mut registers = vec![[0; 32]; 6];
        for (n, &source) in sources.iter().enumerate() {
            registers[n + 2] = [source; 32];
        }
        run(&mut registers, &Slots { to: [0, 1], from: [2, 3, 4, 5] }, u32::MAX);
        (registers[0][31], registers[1][0])
    }

    #[test]
    fn predicates() {
        let nan = f(f32::NAN);
        for (opcode, sources, expected) in [
            ("setp.lt.s32", vec![0xffff_ffff, 0], (1, 0)),
            ("setp.lt.u32", vec![0xffff_ffff, 0], (0, 1)),
            ("setp.lo.u32", vec![0, 1], (1, 0)),
            ("setp.ne.b64", vec![1 << 40, 0], (1, 0)),
            ("setp.eq.s16", vec![0xffff, u64::MAX], (1, 0)),
            ("setp.eq.and.s32", vec![1, 1, 0], (0, 0)),
            ("setp.eq.or.s32", vec![1, 2, 1], (1, 1)),
            ("setp.eq.xor.s32", vec![1, 1, 1], (0, 1)),
            ("setp.lt.f32", vec![nan, f(1.0)], (0, 1)),
            ("setp.ltu.f32", vec![nan, f(1.0)], (1, 0)),
            ("setp.ne.f32", vec![nan, f(1.0)], (0, 1)),
            ("setp.neu.f32", vec![nan, f(1.0)], (1, 0)),
            ("setp.num.f32", vec![nan, f(1.0)], (0, 1)),
            ("setp.nan.f32", vec![nan, f(1.0)], (1, 0)),
            ("setp.gt.ftz.f32", vec![f(1e-42), f(0.0)], (0, 1)),
            ("setp.gt.f16", vec![0x4000, 0x3c00], (1, 0)),
            ("setp.gt.f16x2", vec![0x3c00_4000, 0x4000_3c00], (1, 0)),
        ] {
            assert_eq!(compared(opcode, &sources), expected, "{opcode} {sources:x?}");
        }
    }

    #[test]
    fn choices() {
        for (opcode, sources, expected) in [
            ("selp.b32", vec![1, 2, 1], 1),
            ("selp.f32", vec![1, 2, 0], 2),
            ("slct.u32.s32", vec![1, 2, 0xffff_ffff], 2),
            ("slct.f32.f32", vec![1, 2, f(0.5)], 1),
            ("set.lt.u32.f32", vec![f(1.0), f(2.0)], 0xffff_ffff),
            ("set.lt.f32.s32", vec![1, 2], f(1.0)),
            ("set.eq.f16.f16", vec![0x3c00, 0x3c00], 0x3c00),
            ("set.eq.f16x2.f16x2", vec![0x4000_3c00, 0x3c00_3c00], 0x3c00),
            ("set.eq.and.u32.s32", vec![1, 1, 0], 0),
        ] {
            assert_eq!(eval(opcode, 32, &sources), expected, "{opcode} {sources:x?}");
        }
    }
}
