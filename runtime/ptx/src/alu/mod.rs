//! Instructions that compute a register from registers of the same thread: each becomes one function over the lanes of
//! a warp. Registers are 64 bits wide; a narrower value has zeros above it.

pub(crate) mod carry;
mod compare;
mod convert;
pub(crate) mod float;
mod integer;

use crate::types::Type;

/// One register of a warp.
pub(crate) type Lane = [u64; 32];

/// Which registers an instruction writes and reads.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Slots {
    pub(crate) to: [u32; 2],
    pub(crate) from: [u32; 4],
}

/// Computes for the lanes whose bit is set.
pub(crate) type Run = Box<dyn Fn(&mut [Lane], &Slots, u32) + Send + Sync>;

/// What an opcode computes.
pub(crate) struct Alu {
    pub(crate) run: Run,
    /// The types of its sources, in order.
    pub(crate) sources: Vec<Type>,
}

impl Alu {
    fn same<const N: usize>(of: Type, f: impl Fn([u64; N]) -> u64 + Send + Sync + 'static) -> Alu {
        Alu { run: lanes(f), sources: vec![of; N] }
    }

    fn of<const N: usize>(sources: [Type; N], f: impl Fn([u64; N]) -> u64 + Send + Sync + 'static) -> Alu {
        Alu { run: lanes(f), sources: sources.to_vec() }
    }
}

/// A function of a lane, for all lanes.
pub(crate) fn lanes<const N: usize>(f: impl Fn([u64; N]) -> u64 + Send + Sync + 'static) -> Run {
    Box::new(move |registers, slots, mask| {
        // All lanes are computed, and those that are active kept: without branches this is fast.
        let made: Lane = {
            let sources: [&Lane; N] = std::array::from_fn(|n| &registers[slots.from[n] as usize]);
            std::array::from_fn(|lane| f(std::array::from_fn(|n| sources[n][lane])))
        };
        keep(&mut registers[slots.to[0] as usize], &made, mask);
    })
}

/// Writes the lanes whose bit is set.
pub(crate) fn keep(to: &mut Lane, made: &Lane, mask: u32) {
    if mask == u32::MAX {
        *to = *made;
        return;
    }
    for lane in 0..32 {
        to[lane] = if mask >> lane & 1 == 1 { made[lane] } else { to[lane] };
    }
}

/// An opcode taken apart: what is asked for is removed, what is left at the end is unknown.
pub(crate) struct Mods<'a> {
    pub(crate) name: &'a str,
    pub(crate) rest: Vec<&'a str>,
}

impl<'a> Mods<'a> {
    pub(crate) fn new(opcode: &'a str) -> Self {
        let mut parts = opcode.split('.');
        Self { name: parts.next().unwrap_or(""), rest: parts.collect() }
    }

    /// Whether the modifier is there.
    pub(crate) fn flag(&mut self, name: &str) -> bool {
        self.one_of(&[name]).is_some()
    }

    /// The first modifier that is one of these.
    pub(crate) fn one_of(&mut self, names: &[&str]) -> Option<&'a str> {
        let at = self.rest.iter().position(|part| names.contains(part))?;
        Some(self.rest.remove(at))
    }

    /// All types, in order.
    pub(crate) fn types(&mut self) -> Vec<Type> {
        let types = self.rest.iter().filter_map(|part| Type::named(part)).collect();
        self.rest.retain(|part| Type::named(part).is_none());
        types
    }

    /// The only type.
    pub(crate) fn only(&mut self) -> Result<Type, String> {
        match self.types()[..] {
            [only] => Ok(only),
            _ => Err("expected one type".to_owned()),
        }
    }

    pub(crate) fn finish(&self) -> Result<(), String> {
        match self.rest.first() {
            Some(part) => Err(format!("`.{part}` of `{}` is not supported", self.name)),
            None => Ok(()),
        }
    }
}

/// The instruction, when it is one that computes; `count` is how many sources are written, `wide` how many bits the
/// destination has.
pub(crate) fn decode(mods: &mut Mods, count: usize, wide: u32) -> Result<Option<Alu>, String> {
    let alu = match mods.name {
        "setp" => return Err("setp is decoded apart".to_owned()),
        "set" | "selp" | "slct" => compare::decode(mods)?,
        "cvt" => convert::decode(mods, count, wide)?,
        _ => match integer::decode(mods)? {
            Some(alu) => alu,
            None => match float::decode(mods)? {
                Some(alu) => alu,
                None => return Ok(None),
            },
        },
    };
    mods.finish()?;
    if alu.sources.len() != count {
        return Err(format!("expected {} sources, found {count}", alu.sources.len()));
    }
    Ok(Some(alu))
}

pub(crate) use compare::setp;

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// The result of one lane.
    pub(crate) fn eval(opcode: &str, wide: u32, sources: &[u64]) -> u64 {
        let mut mods = Mods::new(opcode);
        let alu = decode(&mut mods, sources.len(), wide)
            .unwrap_or_else(|reason| panic!("{opcode}: {reason}"))
            .unwrap_or_else(|| panic!("{opcode} is unknown"));
        let mut registers = vec![[0; 32]; 5];
        for (n, &source) in sources.iter().enumerate() {
            registers[n + 1] = [source; 32];
        }
        (alu.run)(&mut registers, &Slots { to: [0, 0], from: [1, 2, 3, 4] }, 0x10);
        assert_eq!(registers[0][5], 0, "a lane that is not active");
        registers[0][4]
    }

    pub(crate) fn f(value: f32) -> u64 {
        u64::from(value.to_bits())
    }
}
