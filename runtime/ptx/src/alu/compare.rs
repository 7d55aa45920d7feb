//! Comparing and choosing: `setp`, `set`, `selp`, `slct`.

use super::float::{flushed, number};
use super::{Alu, Mods, Run, lanes};
use crate::types::{Kind, Type, ones};

const OPERATORS: [&str; 18] = [
    "eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan",
];

type Test = Box<dyn Fn(u64, u64) -> bool + Send + Sync>;

/// What the operator says of two values (never packed ones).
fn test(operator: &str, of: Type, flush: bool) -> Result<Test, String> {
    if of.floating() {
        let plain = operator.strip_suffix('u').filter(|plain| plain.len() == 2);
        let unordered = plain.is_some() && operator != "nu";
        let read = move |bits: u64| number(if flush && of.bits == 32 { flushed(bits) } else { bits }, of);
        let ordered: fn(f64, f64) -> bool = match plain.unwrap_or(operator) {
            "eq" => |a, b| a == b,
            "ne" => |a, b| a != b && !a.is_nan() && !b.is_nan(),
            "lt" => |a, b| a < b,
            "le" => |a, b| a <= b,
            "gt" => |a, b| a > b,
            "ge" => |a, b| a >= b,
            "num" => |a, b| !a.is_nan() && !b.is_nan(),
            "nan" => |a, b| a.is_nan() || b.is_nan(),
            _ => return Err(format!("`.{operator}` does not compare floating point")),
        };
        return Ok(Box::new(move |a, b| {
            let (a, b) = (read(a), read(b));
            ordered(a, b) || unordered && (a.is_nan() || b.is_nan())
        }));
    }
    let signed = of.signed() && !matches!(operator, "lo" | "ls" | "hi" | "hs");
    let shift = 64 - of.bits;
    // Signed order for both: the top bit of an unsigned value is turned.
    let key = move |value: u64| ((value << shift) ^ if signed { 0 } else { 1 << 63 }) as i64;
    Ok(match operator {
        "eq" => Box::new(move |a, b| key(a) == key(b)),
        "ne" => Box::new(move |a, b| key(a) != key(b)),
        "lt" | "lo" => Box::new(move |a, b| key(a) < key(b)),
        "le" | "ls" => Box::new(move |a, b| key(a) <= key(b)),
        "gt" | "hi" => Box::new(move |a, b| key(a) > key(b)),
        "ge" | "hs" => Box::new(move |a, b| key(a) >= key(b)),
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

struct Comparison {
    test: Test,
    combine: fn(bool, bool) -> bool,
    combined: bool,
}

fn comparison(mods: &mut Mods, of: Type) -> Result<Comparison, String> {
    let operator = mods.one_of(&OPERATORS).ok_or("no comparison")?;
    let how = mods.one_of(&["and", "or", "xor"]);
    let flush = mods.flag("ftz");
    let element = if of.packed { of.half() } else { of };
    let test = test(operator, element, flush)?;
    Ok(Comparison { test, combine: combine(how), combined: how.is_some() })
}

/// `setp`: the sources' types, and a run that writes one or two predicates.
pub(crate) fn setp(mods: &mut Mods, count: usize) -> Result<(Run, Vec<Type>), String> {
    let of = mods.only()?;
    let Comparison { test, combine, combined } = comparison(mods, of)?;
    mods.finish()?;
    let mut sources = vec![of, of];
    if combined {
        sources.push(Type::PREDICATE);
    }
    if sources.len() != count {
        return Err(format!("expected {} sources, found {count}", sources.len()));
    }
    let run: Run = Box::new(move |registers, slots, mask| {
        let [a, b, c, _] = slots.from.map(|slot| registers[slot as usize]);
        for lane in (0..32).filter(|lane| mask >> lane & 1 == 1) {
            let also = combined && c[lane] != 0;
            let first = test(a[lane], b[lane]);
            // Of a packed type the second predicate is about the upper halves.
            let second = if of.packed { test(a[lane] >> 16, b[lane] >> 16) } else { !first };
            // The second first: it may be the sink.
            registers[slots.to[1] as usize][lane] = u64::from(combine(second, also));
            registers[slots.to[0] as usize][lane] = u64::from(combine(first, also));
        }
    });
    Ok((run, sources))
}

pub(super) fn decode(mods: &mut Mods, count: usize) -> Result<Alu, String> {
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
        _ => set(mods, count),
    }
}

/// `set`: the answer as a number, in a type of its own.
fn set(mods: &mut Mods, count: usize) -> Result<Alu, String> {
    let types = mods.types();
    let [to, of] = types[..] else { return Err("expected two types".to_owned()) };
    let Comparison { test, combine, combined } = comparison(mods, of)?;
    let one = match (to.kind, to.bits) {
        (Kind::Bfloat, _) => 0x3f80,
        (Kind::Float, 16) => 0x3c00,
        (Kind::Float, 32) if to.packed => 0x3c00,
        (Kind::Float, _) => 0x3f80_0000,
        _ if of.packed => ones(16),
        _ => to.mask(),
    };
    let answer = move |a: u64, b: u64, c: u64| if combine(test(a, b), combined && c != 0) { one } else { 0 };
    let both = move |a: u64, b: u64, c: u64| {
        if of.packed { answer(a, b, c) | answer(a >> 16, b >> 16, c) << 16 } else { answer(a, b, c) }
    };
    let mut sources = vec![of, of];
    let run = if combined && count == 3 {
        sources.push(Type::PREDICATE);
        lanes(move |[a, b, c]| both(a, b, c))
    } else {
        lanes(move |[a, b]| both(a, b, 0))
    };
    Ok(Alu { run, sources })
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
