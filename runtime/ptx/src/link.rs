//! From what is written to a [`Program`]: names become registers and addresses, labels become places in the code.

mod decode;

use std::collections::HashMap;

use crate::Error;
use crate::alu::{self, Slots};
use crate::flow::{self, Leads, NOWHERE};
use crate::parse::{self, Function, Operand, Source, Statement, Variable};
use crate::program::{Initial, Instruction, Op, Place, Program, SINK, Special};
use crate::space::Space;
use crate::types::Type;

/// Where the variables of a module lie: its globals in one block, its constants in another.
pub(crate) struct Layout {
    pub(crate) symbols: HashMap<String, Symbol>,
    pub(crate) globals: Vec<u8>,
    pub(crate) constants: Vec<u8>,
    /// Shared variables of the module, each given room by the kernels that name it.
    shared: HashMap<String, Variable>,
}

/// What a name stands for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Symbol {
    Register(u32, Type),
    Memory(Space, Initial),
}

/// Lays out what the module declares outside of functions.
pub(crate) fn layout(source: &Source) -> Layout {
    let mut layout =
        Layout { symbols: HashMap::new(), globals: Vec::new(), constants: Vec::new(), shared: HashMap::new() };
    for variable in &source.variables {
        let (bytes, space) = match variable.space {
            parse::Space::Constant => (&mut layout.constants, Space::Constant),
            parse::Space::Global => (&mut layout.globals, Space::Global),
            _ => {
                layout.shared.insert(variable.name.clone(), variable.clone());
                continue;
            }
        };
        let start = bytes.len().next_multiple_of(variable.align.max(16) as usize);
        bytes.resize(start, 0);
        bytes.extend_from_slice(&variable.values);
        bytes.resize(start + variable.size.unwrap_or(0) as usize, 0);
        let at = if space == Space::Global { Initial::Global(start as u64) } else { Initial::Value(start as u64) };
        layout.symbols.insert(variable.name.clone(), Symbol::Memory(space, at));
    }
    layout
}

/// Where a function finds its arguments and leaves its results, in the memory of the thread: start and length of each.
#[derive(Clone, Default)]
struct Frame {
    returns: Vec<(u32, u32)>,
    params: Vec<(u32, u32)>,
}

/// A branch, call or jump whose target is not known yet.
struct Open {
    at: usize,
    scope: usize,
    line: u32,
    labels: Vec<String>,
}

struct Linker<'a> {
    source: &'a Source,
    layout: &'a Layout,
    program: Program,
    /// Registers that hold the same from the beginning are one.
    constants: HashMap<Initial, u32>,
    shared: HashMap<String, Symbol>,
    frames: HashMap<String, Frame>,
    starts: HashMap<String, u32>,
    waiting: Vec<&'a Function>,
    calls: Vec<(usize, String)>,
    /// Inside of the function being linked.
    entry: bool,
    scopes: Vec<HashMap<String, Symbol>>,
    /// The scope each scope lies in; the last of `inside` is the current one.
    outer: Vec<Option<usize>>,
    inside: Vec<usize>,
    labels: HashMap<(usize, String), u32>,
    tables: HashMap<String, Vec<String>>,
    open: Vec<Open>,
    /// The end of the function, where `ret` leads.
    returns: Vec<usize>,
    instruction: parse::Instruction,
}

/// The kernel with everything it calls.
pub(crate) fn link(source: &Source, layout: &Layout, kernel: &Function) -> Result<Program, Error> {
    cycles(source, kernel)?;
    let mut linker = Linker {
        source,
        layout,
        program: Program {
            code: Vec::new(),
            registers: 1,
            initial: Vec::new(),
            shared_bytes: 0,
            dynamic_align: 16,
            local_bytes: 0,
            param_bytes: 0,
        },
        constants: HashMap::new(),
        shared: HashMap::new(),
        frames: HashMap::new(),
        starts: HashMap::new(),
        waiting: vec![kernel],
        calls: Vec::new(),
        entry: true,
        scopes: Vec::new(),
        outer: Vec::new(),
        inside: Vec::new(),
        labels: HashMap::new(),
        tables: HashMap::new(),
        open: Vec::new(),
        returns: Vec::new(),
        instruction: parse::Instruction {
            line: 0,
            text: String::new(),
            guard: None,
            opcode: String::new(),
            operands: Vec::new(),
        },
    };
    while let Some(function) = linker.waiting.pop() {
        linker.function(function)?;
    }
    for (at, name) in std::mem::take(&mut linker.calls) {
        linker.program.code[at].op = Op::Call { target: linker.starts[&name] };
    }
    Ok(linker.program)
}

/// Refuses functions that call themselves: their registers could not lie side by side.
fn cycles(source: &Source, kernel: &Function) -> Result<(), Error> {
    fn visit(source: &Source, function: &Function, path: &mut Vec<String>) -> Result<(), Error> {
        path.push(function.name.clone());
        for statement in function.body.iter().flatten() {
            let Statement::Instruction(instruction) = statement else { continue };
            if instruction.opcode.split('.').next() != Some("call") {
                continue;
            }
            let called = instruction.operands.iter().find_map(|operand| match operand {
                Operand::Name(name) => source.functions.iter().find(|f| f.name == *name && f.body.is_some()),
                _ => None,
            });
            let Some(called) = called else { continue };
            if path.contains(&called.name) {
                return Err(Error::Parse {
                    line: instruction.line,
                    text: instruction.text.clone(),
                    reason: format!("`{}` calls itself, which is not supported", called.name),
                });
            }
            visit(source, called, path)?;
        }
        path.pop();
        Ok(())
    }
    visit(source, kernel, &mut Vec::new())
}

fn place_in(bytes: &mut u32, variable: &Variable) -> u32 {
    let start = bytes.next_multiple_of(variable.align.max(1));
    *bytes = start + variable.size.unwrap_or(0);
    start
}

impl<'a> Linker<'a> {
    fn wrong<T>(&self, reason: impl Into<String>) -> Result<T, Error> {
        let parse::Instruction { line, text, .. } = &self.instruction;
        Err(Error::Parse { line: *line, text: text.clone(), reason: reason.into() })
    }

    fn function(&mut self, function: &'a Function) -> Result<(), Error> {
        self.entry = function.entry;
        self.scopes = vec![HashMap::new()];
        self.outer = vec![None];
        self.inside = vec![0];
        self.labels.clear();
        self.tables.clear();
        self.returns.clear();
        if function.entry {
            let mut bytes = 0;
            for param in &function.params {
                let start = place_in(&mut bytes, param);
                let place = Symbol::Memory(Space::Param, Initial::Value(u64::from(start)));
                self.scopes[0].insert(param.name.clone(), place);
            }
            self.program.param_bytes = bytes;
        } else {
            let frame = self.frame(function);
            let places = frame.returns.iter().chain(&frame.params);
            for (variable, &(start, _)) in function.returns.iter().chain(&function.params).zip(places) {
                let place = Symbol::Memory(Space::Local, Initial::Value(u64::from(start)));
                self.scopes[0].insert(variable.name.clone(), place);
            }
        }
        let start = self.program.code.len();
        self.starts.insert(function.name.clone(), start as u32);
        let body = function.body.as_deref().unwrap_or_default();
        // A branch may lead to a table that comes after it.
        for statement in body {
            if let Statement::Targets(label, targets) = statement {
                self.tables.insert(label.clone(), targets.clone());
            }
        }
        for statement in body {
            self.statement(statement)?;
        }
        self.instruction.text = format!("end of `{}`", function.name);
        self.instruction.guard = None;
        let end = self.program.code.len();
        self.emit(if function.entry { Op::Exit } else { Op::Return });
        for at in std::mem::take(&mut self.returns) {
            self.program.code[at].op = Op::Branch { target: end as u32, meeting: NOWHERE };
        }
        self.close()?;
        self.meet(start);
        Ok(())
    }

    /// Where a function's arguments lie, given when it is first named.
    fn frame(&mut self, function: &Function) -> Frame {
        if let Some(frame) = self.frames.get(&function.name) {
            return frame.clone();
        }
        let bytes = &mut self.program.local_bytes;
        let mut place = |variables: &[Variable]| {
            variables.iter().map(|v| (place_in(bytes, v), v.size.unwrap_or(0))).collect::<Vec<_>>()
        };
        let frame = Frame { returns: place(&function.returns), params: place(&function.params) };
        self.frames.insert(function.name.clone(), frame.clone());
        frame
    }

    fn statement(&mut self, statement: &'a Statement) -> Result<(), Error> {
        match statement {
            Statement::Open => {
                self.scopes.push(HashMap::new());
                self.outer.push(self.inside.last().copied());
                self.inside.push(self.outer.len() - 1);
            }
            Statement::Close => {
                self.scopes.pop();
                self.inside.pop();
            }
            Statement::Registers(of, names) => {
                for (name, count) in names {
                    match count {
                        None => self.declare(name.clone(), *of),
                        Some(count) => (0..*count).for_each(|n| self.declare(format!("{name}{n}"), *of)),
                    }
                }
            }
            Statement::Variable(variable) => {
                let symbol = match variable.space {
                    parse::Space::Shared => self.share(variable),
                    parse::Space::Local | parse::Space::Param => {
                        let start = place_in(&mut self.program.local_bytes, variable);
                        Symbol::Memory(Space::Local, Initial::Value(u64::from(start)))
                    }
                    _ => {
                        self.instruction.text.clone_from(&variable.name);
                        return self.wrong("constants and globals inside of a function are not supported");
                    }
                };
                self.scope().insert(variable.name.clone(), symbol);
            }
            Statement::Label(label) => {
                let scope = self.inside.last().copied().unwrap_or(0);
                self.labels.insert((scope, label.clone()), self.program.code.len() as u32);
            }
            Statement::Targets(..) => {}
            Statement::Instruction(instruction) => {
                self.instruction = instruction.clone();
                self.instruction()?;
            }
        }
        Ok(())
    }

    fn scope(&mut self) -> &mut HashMap<String, Symbol> {
        self.scopes.last_mut().expect("the scope of the function")
    }

    fn register(&mut self) -> u32 {
        self.program.registers += 1;
        self.program.registers as u32 - 1
    }

    fn declare(&mut self, name: String, of: Type) {
        let register = self.register();
        self.scope().insert(name, Symbol::Register(register, of));
    }

    fn share(&mut self, variable: &Variable) -> Symbol {
        let at = match variable.size {
            Some(_) => Initial::Value(u64::from(place_in(&mut self.program.shared_bytes, variable))),
            None => {
                self.program.dynamic_align = self.program.dynamic_align.max(variable.align);
                Initial::Dynamic(0)
            }
        };
        Symbol::Memory(Space::Shared, at)
    }

    fn symbol(&mut self, name: &str) -> Option<Symbol> {
        if let Some(&symbol) = self.scopes.iter().rev().find_map(|scope| scope.get(name)) {
            return Some(symbol);
        }
        if let Some(&symbol) = self.shared.get(name).or_else(|| self.layout.symbols.get(name)) {
            return Some(symbol);
        }
        let variable = self.layout.shared.get(name)?;
        let symbol = self.share(variable);
        self.shared.insert(name.to_owned(), symbol);
        Some(symbol)
    }

    /// A register that holds this from the beginning.
    fn constant(&mut self, initial: Initial) -> u32 {
        if let Some(&register) = self.constants.get(&initial) {
            return register;
        }
        let register = self.register();
        self.program.initial.push((register, initial));
        self.constants.insert(initial, register);
        register
    }

    /// Adds the instruction being linked, as this.
    fn emit(&mut self, op: Op) {
        let guard = self.instruction.guard.clone().and_then(|(name, negated)| match self.symbol(&name) {
            Some(Symbol::Register(register, _)) => Some((register, negated)),
            _ => None,
        });
        let parse::Instruction { line, text, .. } = &self.instruction;
        self.program.code.push(Instruction { op, guard, line: *line, text: text.as_str().into() });
    }

    /// The register of an operand that is read as that type.
    fn source(&mut self, operand: &Operand, of: Type) -> Result<u32, Error> {
        if let Some(bits) = parse::bits(operand, of) {
            return Ok(self.constant(Initial::Value(bits)));
        }
        match operand {
            Operand::Name(name) => match self.symbol(name) {
                Some(Symbol::Register(register, _)) => Ok(register),
                Some(Symbol::Memory(_, at)) => Ok(self.constant(at)),
                None if name == "WARP_SZ" => Ok(self.constant(Initial::Value(32))),
                None => match Special::named(name) {
                    Some(special) => Ok(self.constant(Initial::Special(special))),
                    None => self.wrong(format!("`{name}` is not known here")),
                },
            },
            Operand::Sum(name, offset) => match self.symbol(name) {
                Some(Symbol::Memory(_, at)) => Ok(self.constant(moved(at, *offset))),
                _ => self.wrong(format!("`{name}` is no variable")),
            },
            Operand::Not(name) => {
                let Some(Symbol::Register(register, _)) = self.symbol(name) else {
                    return self.wrong(format!("`{name}` is no predicate"));
                };
                let inverse = self.register();
                let run = alu::lanes(|[a]| u64::from(a == 0));
                let guard = self.instruction.guard.take();
                self.emit(Op::Alu(run, Slots { to: [inverse, SINK], from: [register, 0, 0, 0] }));
                self.instruction.guard = guard;
                Ok(inverse)
            }
            _ => self.wrong("an operand that cannot be read"),
        }
    }

    /// The register that an operand names to be written, with its width.
    fn target(&mut self, operand: &Operand) -> Result<(u32, Type), Error> {
        match operand {
            Operand::Name(name) if name == "_" => Ok((SINK, Type { bits: 64, ..Type::B32 })),
            Operand::Name(name) => match self.symbol(name) {
                Some(Symbol::Register(register, of)) => Ok((register, of)),
                _ => self.wrong(format!("`{name}` is no register")),
            },
            _ => self.wrong("an operand that cannot be written"),
        }
    }

    /// One register or the registers of a vector.
    fn targets(&mut self, operand: &Operand) -> Result<Vec<(u32, Type)>, Error> {
        match operand {
            Operand::Vector(parts) => parts.iter().map(|part| self.target(part)).collect(),
            one => Ok(vec![self.target(one)?]),
        }
    }

    fn sources(&mut self, operand: &Operand, of: Type) -> Result<Vec<u32>, Error> {
        match operand {
            Operand::Vector(parts) => parts.iter().map(|part| self.source(part, of)).collect(),
            one => Ok(vec![self.source(one, of)?]),
        }
    }

    /// What stands in brackets.
    fn place(&mut self, operand: &Operand, space: Space) -> Result<Place, Error> {
        let Operand::Address(base, offset) = operand else {
            return self.wrong("expected an address");
        };
        let Operand::Name(name) = &**base else {
            let base = self.source(base, Type { bits: 64, ..Type::B32 })?;
            return Ok(Place { space, base, offset: *offset });
        };
        match self.symbol(name) {
            Some(Symbol::Register(base, _)) => {
                let space = if space == Space::Param && !self.entry { Space::Local } else { space };
                Ok(Place { space, base, offset: *offset })
            }
            Some(Symbol::Memory(own, at)) => {
                // A variable is known by its own space, whatever the instruction says of it.
                let fits = match space {
                    Space::Generic => true,
                    Space::Param => matches!(own, Space::Param | Space::Local),
                    _ => own == space,
                };
                if !fits {
                    return self.wrong(format!("`{name}` lies in another space"));
                }
                let base = self.constant(at);
                Ok(Place { space: own, base, offset: *offset })
            }
            None => self.wrong(format!("`{name}` is not known here")),
        }
    }

    /// Notes that the instruction added next leads to labels.
    fn leads(&mut self, labels: Vec<String>) {
        self.open.push(Open {
            at: self.program.code.len(),
            scope: self.inside.last().copied().unwrap_or(0),
            line: self.instruction.line,
            labels,
        });
    }

    fn close(&mut self) -> Result<(), Error> {
        for Open { at, scope, line, labels } in std::mem::take(&mut self.open) {
            let mut places = Vec::new();
            for label in labels {
                let mut scope = Some(scope);
                let place = loop {
                    let Some(inside) = scope else {
                        let text = self.program.code[at].text.to_string();
                        return Err(Error::Parse { line, text, reason: format!("no label `{label}`") });
                    };
                    if let Some(&place) = self.labels.get(&(inside, label.clone())) {
                        break place;
                    }
                    scope = self.outer[inside];
                };
                places.push(place);
            }
            match &mut self.program.code[at].op {
                Op::Branch { target, .. } => *target = places[0],
                Op::Indexed { targets, .. } => *targets = places,
                _ => {}
            }
        }
        Ok(())
    }

    /// Finds where the branches of a function meet again.
    fn meet(&mut self, start: usize) {
        let code = &mut self.program.code[start..];
        let leads: Vec<Leads> = code
            .iter()
            .enumerate()
            .map(|(n, instruction)| {
                let mut leads = Leads::default();
                let guarded = instruction.guard.is_some();
                match &instruction.op {
                    Op::Branch { target, .. } => {
                        leads.next.push(target - start as u32);
                        if guarded {
                            leads.next.push(n as u32 + 1);
                        }
                    }
                    Op::Indexed { targets, .. } => {
                        leads.next.extend(targets.iter().map(|target| target - start as u32));
                    }
                    Op::Exit | Op::Return => {
                        leads.exits = true;
                        if guarded {
                            leads.next.push(n as u32 + 1);
                        }
                    }
                    _ => leads.next.push(n as u32 + 1),
                }
                leads
            })
            .collect();
        for (instruction, meeting) in code.iter_mut().zip(flow::meetings(&leads)) {
            let absolute = if meeting == NOWHERE { NOWHERE } else { meeting + start as u32 };
            match &mut instruction.op {
                Op::Branch { meeting, .. } | Op::Indexed { meeting, .. } => *meeting = absolute,
                _ => {}
            }
        }
    }
}

fn moved(at: Initial, by: i64) -> Initial {
    match at {
        Initial::Value(at) => Initial::Value(at.wrapping_add_signed(by)),
        Initial::Global(at) => Initial::Global(at.wrapping_add_signed(by)),
        Initial::Dynamic(at) => Initial::Dynamic(at.wrapping_add_signed(by)),
        special => special,
    }
}
