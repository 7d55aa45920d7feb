//! Sums of more than one register: `add.cc`, `addc`, `sub.cc`, `subc`, `mad.cc`, `madc`. The carry is a register that no
//! name stands for; these write it as their second target and read it as their fourth source.

use super::{Mods, Run};
use crate::types::Type;

/// The run and the types of the sources that are written; nothing for an instruction without a carry.
pub(crate) fn decode(mods: &mut Mods) -> Result<Option<(Run, Vec<Type>)>, String> {
    let out = mods.flag("cc");
    let into = matches!(mods.name, "addc" | "subc" | "madc");
    if !out && !into {
        return Ok(None);
    }
    let high = mods.one_of(&["lo", "hi"]) == Some("hi");
    let name = mods.name.to_owned();
    let of = mods.only()?;
    mods.finish()?;
    let (bits, mask) = (of.bits, of.mask());
    let products = name.starts_with("mad");
    if products && of.signed() && high {
        return Err("a signed product with a carry is not supported".to_owned());
    }
    let run: Run = Box::new(move |registers, slots, active| {
        let [a, b, c, carry] = slots.from.map(|slot| registers[slot as usize]);
        for lane in (0..32).filter(|lane| active >> lane & 1 == 1) {
            let [a, b, c] = [a, b, c].map(|register| u128::from(register[lane] & mask));
            let carry = if into { u128::from(carry[lane] & 1) } else { 0 };
            let wide = if products {
                let product = if high { (a * b) >> bits } else { a * b };
                (product & u128::from(mask)) + c + carry
            } else if name.starts_with("add") {
                a + b + carry
            } else {
                a.wrapping_sub(b).wrapping_sub(carry)
            };
            if out {
                registers[slots.to[1] as usize][lane] = (wide >> bits) as u64 & 1;
            }
            registers[slots.to[0] as usize][lane] = wide as u64 & mask;
        }
    });
    Ok(Some((run, vec![of; if products { 3 } else { 2 }])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alu::Slots;

    #[test]
    fn carries() {
        const ALL: u64 = 0xffff_ffff;
        for (opcode, sources, carry, expected) in [
            ("add.cc.u32", [ALL, 2, 0], 1, (1, 1)),
            ("addc.cc.u32", [1, 2, 0], 1, (4, 0)),
            ("addc.u32", [ALL, 0, 0], 1, (0, 1)),
            ("sub.cc.u32", [1, 2, 0], 0, (ALL, 1)),
            ("subc.u32", [5, 2, 0], 1, (2, 1)),
            ("subc.cc.u32", [2, 2, 0], 1, (ALL, 1)),
            ("mad.lo.cc.u32", [ALL, ALL, ALL], 0, (0, 1)),
            ("madc.hi.u32", [ALL, ALL, 1], 1, (0, 1)),
            ("madc.hi.cc.u64", [u64::MAX, 2, u64::MAX], 0, (0, 1)),
        ] {
            let (run, types) = decode(&mut Mods::new(opcode)).expect(opcode).expect(opcode);
            let mut registers = vec![[0; 32], [carry; 32], [sources[0]; 32], [sources[1]; 32], [sources[2]; 32]];
            assert_eq!(types.len(), if opcode.starts_with("mad") { 3 } else { 2 });
            run(&mut registers, &Slots { to: [0, 1], from: [2, 3, 4, 1] }, u32::MAX);
            assert_eq!((registers[0][9], registers[1][9]), expected, "{opcode} {sources:x?}");
        }
    }
}
