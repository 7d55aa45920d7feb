//! One instruction: its opcode, its modifiers and operands. What it does not know it refuses.

use super::Linker;
use crate::Error;
use crate::alu::{self, Mods, Slots};
use crate::collective::{Reduce, Shuffle, Vote};
use crate::flow::NOWHERE;
use crate::mma::Mma;
use crate::parse::Operand;
use crate::program::{Atomic, Barrier, Initial, Op, SINK, Special};
use crate::space::Space;
use crate::types::{Type, ones};

/// How long a value stays in which cache, and in which order others see it: nothing here, where everything is seen in
/// the order it happens.
const HINTS: [&str; 15] = [
    "volatile", "relaxed", "acquire", "release", "acq_rel", "weak", "cta", "gpu", "sys", "ca", "cg", "cs", "lu", "cv",
    "nc",
];
const STORE_HINTS: [&str; 2] = ["wb", "wt"];

fn drop_hints(mods: &mut Mods) {
    mods.rest.retain(|part| {
        !HINTS.contains(part) && !STORE_HINTS.contains(part) && !part.starts_with("L1::") && !part.starts_with("L2::")
    });
}

fn space(mods: &mut Mods) -> Space {
    let names = ["global", "shared", "local", "const", "param", "shared::cta", "param::entry", "param::func"];
    match mods.one_of(&names) {
        Some("global") => Space::Global,
        Some("shared" | "shared::cta") => Space::Shared,
        Some("local") => Space::Local,
        Some("const") => Space::Constant,
        Some(_) => Space::Param,
        None => Space::Generic,
    }
}

impl Linker<'_> {
    pub(super) fn instruction(&mut self) -> Result<(), Error> {
        let instruction = self.instruction.clone();
        if let Some((name, _)) = &instruction.guard {
            self.target(&Operand::Name(name.clone()))?;
        }
        let operands = &instruction.operands[..];
        let mut mods = Mods::new(&instruction.opcode);
        match mods.name {
            "mov" => self.moves(&mut mods, operands),
            "ld" | "ldu" | "st" => self.loads_and_stores(&mut mods, operands),
            "atom" | "red" => self.atomics(&mut mods, operands),
            "bra" | "brx" | "call" | "ret" | "exit" => self.flow(&mut mods, operands),
            "bar" | "barrier" => self.barriers(&mut mods, operands),
            "shfl" | "vote" | "match" | "redux" | "activemask" => self.collectives(&mut mods, operands),
            "mma" => {
                let mut mma = Mma::decode(&mut mods).or_else(|reason| self.wrong(reason))?;
                let [d, a, b, c] = operands else { return self.wrong("expected four operands") };
                let d = self.targets(d)?.into_iter().map(|(register, _)| register).collect();
                mma.registers =
                    [d, self.sources(a, Type::B32)?, self.sources(b, Type::B32)?, self.sources(c, mma.sum())?];
                mma.check().or_else(|reason| self.wrong(reason))?;
                self.emit(Op::Mma(Box::new(mma)));
                Ok(())
            }
            "ldmatrix" => self.matrices(&mut mods, operands),
            "cp" => self.copies(&mut mods, operands),
            // Order between threads and hints: threads here run in one order, and everything is seen at once.
            "membar" | "fence" | "prefetch" | "prefetchu" | "nanosleep" | "griddepcontrol" => {
                self.emit(Op::Nothing);
                Ok(())
            }
            "trap" => {
                self.emit(Op::Trap);
                Ok(())
            }
            "setp" => {
                let Some((first, rest)) = operands.split_first() else { return self.wrong("no operands") };
                let to = match first {
                    Operand::Pair(one, other) => [self.target(one)?.0, self.target(other)?.0],
                    one => [self.target(one)?.0, SINK],
                };
                let (run, types) = alu::setp(&mut mods, rest.len()).or_else(|reason| self.wrong(reason))?;
                self.compute(run, to, rest, &types)
            }
            _ => {
                let Some((first, rest)) = operands.split_first() else {
                    return self.wrong("an instruction that is not supported");
                };
                let (to, of) = self.target(first)?;
                if let Some((run, types)) = alu::carry::decode(&mut mods).or_else(|reason| self.wrong(reason))? {
                    if types.len() != rest.len() {
                        return self.wrong(format!("expected {} sources", types.len()));
                    }
                    return self.carry(run, to, rest, &types);
                }
                // The table of lop3 and the like are operands; predicates of `lop3.or.p` are refused by their number.
                match alu::decode(&mut mods, rest.len(), of.bits).or_else(|reason| self.wrong(reason))? {
                    Some(alu) => self.compute(alu.run, [to, SINK], rest, &alu.sources),
                    None => self.wrong("an instruction that is not supported"),
                }
            }
        }
    }

    fn compute(&mut self, run: alu::Run, to: [u32; 2], operands: &[Operand], types: &[Type]) -> Result<(), Error> {
        let mut from = [SINK; 4];
        for (n, (operand, &of)) in operands.iter().zip(types).enumerate() {
            from[n] = self.source(operand, of)?;
        }
        self.emit(Op::Alu(run, Slots { to, from }));
        Ok(())
    }

    fn carry(&mut self, run: alu::Run, to: u32, operands: &[Operand], types: &[Type]) -> Result<(), Error> {
        let mut from = [SINK; 4];
        for (n, (operand, &of)) in operands.iter().zip(types).enumerate() {
            from[n] = self.source(operand, of)?;
        }
        let carry = self.constant(Initial::Special(Special::Carry));
        from[3] = carry;
        self.emit(Op::Alu(run, Slots { to: [to, carry], from }));
        Ok(())
    }

    fn moves(&mut self, mods: &mut Mods, operands: &[Operand]) -> Result<(), Error> {
        let of = mods.only().or_else(|reason| self.wrong(reason))?;
        mods.finish().or_else(|reason| self.wrong(reason))?;
        match operands {
            [Operand::Vector(to), from] => {
                let bits = of.bits / to.len() as u32;
                let to = to.iter().map(|part| Ok(self.target(part)?.0)).collect::<Result<_, Error>>()?;
                let from = self.source(from, of)?;
                self.emit(Op::Unpack { to, from, bits });
            }
            [to, Operand::Vector(from)] => {
                let bits = of.bits / from.len() as u32;
                let (to, _) = self.target(to)?;
                let part = Type { bits, ..Type::B32 };
                let from = from.iter().map(|operand| self.source(operand, part)).collect::<Result<_, Error>>()?;
                self.emit(Op::Pack { to, from, bits });
            }
            [to, Operand::Name(name)] if name == "%clock" || name == "%clock64" || name == "%globaltimer" => {
                let (to, _) = self.target(to)?;
                self.emit(Op::Clock { to });
            }
            [to, from] => {
                let (to, _) = self.target(to)?;
                let from = self.source(from, of)?;
                let mask = of.mask();
                self.emit(Op::Alu(alu::lanes(move |[a]| a & mask), Slots { to: [to, SINK], from: [from, 0, 0, 0] }));
            }
            _ => return self.wrong("expected two operands"),
        }
        Ok(())
    }

    fn loads_and_stores(&mut self, mods: &mut Mods, operands: &[Operand]) -> Result<(), Error> {
        let space = space(mods);
        drop_hints(mods);
        let count = match mods.one_of(&["v2", "v4", "v8"]) {
            Some(vector) => vector[1..].parse().unwrap_or(1),
            None => 1,
        };
        let of = mods.only().or_else(|reason| self.wrong(reason))?;
        mods.finish().or_else(|reason| self.wrong(reason))?;
        if count * of.bytes() > 16 {
            return self.wrong("an access of more than 16 bytes is not supported");
        }
        // A third operand is a cache policy.
        let [first, second, ..] = operands else { return self.wrong("expected two operands") };
        if mods.name == "st" {
            let place = self.place(first, space)?;
            let from = self.sources(second, of)?;
            if from.len() != count as usize {
                return self.wrong(format!("expected {count} values"));
            }
            self.emit(Op::Store { place, of, from });
        } else {
            let to: Vec<(u32, u64)> =
                self.targets(first)?.into_iter().map(|(register, of)| (register, ones(of.bits))).collect();
            let place = self.place(second, space)?;
            if to.len() != count as usize {
                return self.wrong(format!("expected {count} values"));
            }
            self.emit(Op::Load { place, of, to });
        }
        Ok(())
    }

    fn atomics(&mut self, mods: &mut Mods, operands: &[Operand]) -> Result<(), Error> {
        let space = space(mods);
        drop_hints(mods);
        mods.flag("noftz");
        let how = match mods.one_of(&["add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec"]) {
            Some("add") => Atomic::Add,
            Some("min") => Atomic::Min,
            Some("max") => Atomic::Max,
            Some("and") => Atomic::And,
            Some("or") => Atomic::Or,
            Some("xor") => Atomic::Xor,
            Some("exch") => Atomic::Exchange,
            Some("cas") => Atomic::CompareAndSwap,
            Some("inc") => Atomic::Increment,
            Some("dec") => Atomic::Decrement,
            _ => return self.wrong("an atomic operation that is not supported"),
        };
        let of = mods.only().or_else(|reason| self.wrong(reason))?;
        mods.finish().or_else(|reason| self.wrong(reason))?;
        let (to, rest) = match operands.split_first() {
            Some((first, rest)) if mods.name == "atom" => (Some(self.target(first)?.0), rest),
            _ => (None, operands),
        };
        let wanted = if how == Atomic::CompareAndSwap { 3 } else { 2 };
        if rest.len() != wanted {
            return self.wrong(format!("expected {wanted} operands"));
        }
        let place = self.place(&rest[0], space)?;
        let one = self.source(&rest[1], of)?;
        let other = rest.get(2).map_or(Ok(SINK), |operand| self.source(operand, of))?;
        self.emit(Op::Atomic { place, how, of, to, from: [one, other] });
        Ok(())
    }

    fn flow(&mut self, mods: &mut Mods, operands: &[Operand]) -> Result<(), Error> {
        mods.flag("uni");
        match (mods.name, operands) {
            ("bra", [Operand::Name(label)]) => {
                self.leads(vec![label.clone()]);
                self.emit(Op::Branch { target: 0, meeting: NOWHERE });
            }
            ("brx", [index, Operand::Name(table)]) if mods.flag("idx") => {
                if self.instruction.guard.is_some() {
                    return self.wrong("a predicate is not supported here");
                }
                let index = self.source(index, Type::U32)?;
                let Some(labels) = self.tables.get(table).cloned() else {
                    return self.wrong(format!("no table `{table}`"));
                };
                self.leads(labels);
                self.emit(Op::Indexed { index, targets: Vec::new(), meeting: NOWHERE });
            }
            ("ret", []) if !self.entry => {
                self.returns.push(self.program.code.len());
                self.emit(Op::Branch { target: 0, meeting: NOWHERE });
            }
            ("ret" | "exit", []) => self.emit(Op::Exit),
            ("call", _) => self.call(operands)?,
            _ => return self.wrong("a form that is not supported"),
        }
        mods.finish().or_else(|reason| self.wrong(reason))
    }

    fn call(&mut self, operands: &[Operand]) -> Result<(), Error> {
        let at = operands.iter().position(|operand| matches!(operand, Operand::Name(_)));
        let Some(at) = at else { return self.wrong("a call of what has no name") };
        let Operand::Name(name) = &operands[at] else { return self.wrong("a call of what has no name") };
        let list = |operand: Option<&Operand>| match operand {
            Some(Operand::List(names)) => Some(names.clone()),
            None => Some(Vec::new()),
            _ => None,
        };
        let results = list(at.checked_sub(1).and_then(|before| operands.get(before)));
        let (Some(results), Some(arguments)) = (results, list(operands.get(at + 1))) else {
            return self.wrong("a call of this form is not supported");
        };
        if self.instruction.guard.is_some() {
            return self.wrong("a predicate is not supported here");
        }
        let source = self.source;
        let function = source.functions.iter().find(|f| f.name == *name && f.body.is_some() && !f.entry);
        let Some(function) = function else {
            return self.wrong(format!("`{name}` is no function with a body"));
        };
        let frame = self.frame(function);
        if results.len() != frame.returns.len() || arguments.len() != frame.params.len() {
            return self.wrong("another number of arguments or results than the function has");
        }
        if !self.starts.contains_key(name) && !self.waiting.iter().any(|waiting| waiting.name == *name) {
            self.waiting.push(function);
        }
        for (argument, (to, length)) in arguments.iter().zip(frame.params) {
            let from = self.local(argument)?;
            self.emit(Op::Pass { from, to, length });
        }
        self.calls.push((self.program.code.len(), name.clone()));
        self.emit(Op::Call { target: 0 });
        for (result, (from, length)) in results.iter().zip(frame.returns) {
            let to = self.local(result)?;
            self.emit(Op::Pass { from, to, length });
        }
        Ok(())
    }

    /// Where a variable lies in the memory of the thread.
    fn local(&mut self, operand: &Operand) -> Result<u32, Error> {
        if let Operand::Name(name) = operand
            && let Some(super::Symbol::Memory(Space::Local, Initial::Value(at))) = self.symbol(name)
        {
            return Ok(at as u32);
        }
        self.wrong("only variables in .param can be passed")
    }

    fn barriers(&mut self, mods: &mut Mods, operands: &[Operand]) -> Result<(), Error> {
        if mods.flag("warp") {
            mods.flag("sync");
            mods.finish().or_else(|reason| self.wrong(reason))?;
            let [mask] = operands else { return self.wrong("expected one operand") };
            let mask = self.source(mask, Type::B32)?;
            self.emit(Op::WarpBarrier { mask });
            return Ok(());
        }
        mods.flag("cta");
        mods.flag("aligned");
        let kind = match (mods.one_of(&["sync", "arrive", "red"]), mods.one_of(&["popc", "and", "or"])) {
            (Some("sync"), None) => Barrier::Sync,
            (Some("arrive"), None) => Barrier::Arrive,
            (Some("red"), Some("popc")) => Barrier::Count,
            (Some("red"), Some("and")) => Barrier::And,
            (Some("red"), Some("or")) => Barrier::Or,
            _ => return self.wrong("a barrier that is not supported"),
        };
        let reduces = !matches!(kind, Barrier::Sync | Barrier::Arrive);
        if reduces {
            mods.types();
        }
        mods.finish().or_else(|reason| self.wrong(reason))?;
        let (mut to, mut from, mut rest) = (SINK, SINK, operands);
        if reduces {
            let [first, middle @ .., last] = operands else { return self.wrong("expected three operands") };
            to = self.target(first)?.0;
            from = self.source(last, Type::PREDICATE)?;
            rest = middle;
        }
        let (number, count) = match rest {
            [number] => (number, None),
            [number, count] => (number, Some(self.source(count, Type::U32)?)),
            _ => return self.wrong("expected the number of a barrier"),
        };
        let number = self.source(number, Type::U32)?;
        self.emit(Op::Barrier { kind, number, count, to, from });
        Ok(())
    }

    fn collectives(&mut self, mods: &mut Mods, operands: &[Operand]) -> Result<(), Error> {
        let name = mods.name;
        if !mods.flag("sync") && name != "activemask" {
            return self.wrong("only the form with `.sync` is supported");
        }
        let mode = mods.one_of(&["up", "down", "bfly", "idx", "all", "any", "uni", "ballot"]);
        let how = mods.one_of(&["add", "min", "max", "and", "or", "xor"]);
        let of = mods.only().or_else(|reason| self.wrong(reason))?;
        mods.finish().or_else(|reason| self.wrong(reason))?;
        let Some((first, rest)) = operands.split_first() else { return self.wrong("no operands") };
        let to = match first {
            Operand::Pair(one, other) => [self.target(one)?.0, self.target(other)?.0],
            one => [self.target(one)?.0, SINK],
        };
        let op = match (name, mode, rest) {
            ("activemask", None, []) => Op::ActiveMask { to: to[0] },
            ("shfl", Some(mode), [value, by, clamp, mask]) => {
                let mode = match mode {
                    "up" => Shuffle::Up,
                    "down" => Shuffle::Down,
                    "bfly" => Shuffle::Butterfly,
                    _ => Shuffle::Index,
                };
                let mut from = [0; 4];
                for (slot, operand) in from.iter_mut().zip([value, by, clamp, mask]) {
                    *slot = self.source(operand, Type::B32)?;
                }
                Op::Shuffle { mode, to, from }
            }
            ("vote", Some(mode), [predicate, mask]) => {
                let vote = match mode {
                    "all" => Vote::All,
                    "any" => Vote::Any,
                    "uni" => Vote::Uniform,
                    _ => Vote::Ballot,
                };
                let predicate = self.source(predicate, Type::PREDICATE)?;
                Op::Vote { vote, to: to[0], predicate, mask: self.source(mask, Type::B32)? }
            }
            ("match", Some(mode), [value, mask]) => {
                let from = self.source(value, of)?;
                Op::Match { all: mode == "all", to, from, mask: self.source(mask, Type::B32)? }
            }
            ("redux", None, [value, mask]) => {
                let how = match how {
                    Some("add") => Reduce::Add,
                    Some("min") => Reduce::Min,
                    Some("max") => Reduce::Max,
                    Some("and") => Reduce::And,
                    Some("or") => Reduce::Or,
                    _ => Reduce::Xor,
                };
                let from = self.source(value, of)?;
                Op::Reduce { how, signed: of.signed(), to: to[0], from, mask: self.source(mask, Type::B32)? }
            }
            _ => return self.wrong("a form that is not supported"),
        };
        self.emit(op);
        Ok(())
    }

    fn matrices(&mut self, mods: &mut Mods, operands: &[Operand]) -> Result<(), Error> {
        let whole = mods.flag("sync") && mods.flag("aligned") && mods.flag("m8n8");
        let count = match mods.one_of(&["x1", "x2", "x4"]) {
            Some("x1") => 1,
            Some("x2") => 2,
            _ => 4,
        };
        let transposed = mods.flag("trans");
        let space = space(mods);
        let of = mods.only().or_else(|reason| self.wrong(reason))?;
        mods.finish().or_else(|reason| self.wrong(reason))?;
        let [to, place] = operands else { return self.wrong("expected two operands") };
        let to: Vec<u32> = self.targets(to)?.into_iter().map(|(register, _)| register).collect();
        if !whole || of.bits != 16 || to.len() != count {
            return self.wrong("a form that is not supported");
        }
        let place = self.place(place, space)?;
        self.emit(Op::Matrices { place, to, transposed });
        Ok(())
    }

    fn copies(&mut self, mods: &mut Mods, operands: &[Operand]) -> Result<(), Error> {
        if !mods.flag("async") {
            return self.wrong("an instruction that is not supported");
        }
        drop_hints(mods);
        let what = mods.one_of(&["commit_group", "wait_group", "wait_all"]);
        if what.is_none() && mods.rest != ["shared", "global"] && mods.rest != ["shared::cta", "global"] {
            return self.wrong("an instruction that is not supported");
        }
        let op = match (what, operands) {
            (Some("commit_group"), []) => Op::CopyCommit,
            (Some("wait_all"), []) => Op::CopyWait(None),
            (Some("wait_group"), [Operand::Integer(count)]) => Op::CopyWait(Some(*count as u32)),
            (None, [to, from, Operand::Integer(length), rest @ ..]) => {
                let source_length = match rest {
                    [] => None,
                    [Operand::Name(name)] if matches!(self.symbol(name), Some(super::Symbol::Register(_, of)) if of != Type::U32 && of.bits != 32) =>
                    {
                        return self.wrong("a predicate or a cache policy is not supported here");
                    }
                    [length] => Some(self.source(length, Type::U32)?),
                    _ => return self.wrong("a form that is not supported"),
                };
                if ![4, 8, 16].contains(length) {
                    return self.wrong("only 4, 8 or 16 bytes are copied");
                }
                let (to, from) = (self.place(to, Space::Shared)?, self.place(from, Space::Global)?);
                Op::CopyAsync { to, from, length: *length as u32, source_length }
            }
            _ => return self.wrong("a form that is not supported"),
        };
        self.emit(op);
        Ok(())
    }
}
