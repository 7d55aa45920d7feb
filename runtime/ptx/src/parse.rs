//! Tokens to statements: what is declared and what is written, names not yet resolved.

use crate::Error;
use crate::lex::{Kind, Token, tokens};
use crate::types::{self, Type};

/// A whole module as it is written.
#[derive(Debug, Default)]
pub(crate) struct Source {
    /// The number in `.target sm_80`.
    pub(crate) target: u32,
    pub(crate) variables: Vec<Variable>,
    pub(crate) functions: Vec<Function>,
}

/// Where a variable lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    Global,
    Constant,
    Shared,
    Local,
    Param,
}

/// A variable that is memory.
#[derive(Clone, Debug)]
pub(crate) struct Variable {
    pub(crate) space: Space,
    pub(crate) name: String,
    pub(crate) align: u32,
    /// In bytes; nothing where the launch says it (`.extern .shared x[]`).
    pub(crate) size: Option<u32>,
    /// Its first bytes; the rest is zero.
    pub(crate) values: Vec<u8>,
}

/// A kernel (`entry`) or a function of the device.
#[derive(Debug)]
pub(crate) struct Function {
    pub(crate) entry: bool,
    pub(crate) name: String,
    pub(crate) returns: Vec<Variable>,
    pub(crate) params: Vec<Variable>,
    /// Nothing for a mere declaration.
    pub(crate) body: Option<Vec<Statement>>,
    pub(crate) max_threads: Option<[u32; 3]>,
    pub(crate) required_threads: Option<[u32; 3]>,
}

#[derive(Debug)]
pub(crate) enum Statement {
    Open,
    Close,
    /// `.reg .b32 %r<3>, x`: names, with the count of those that are numbered.
    Registers(Type, Vec<(String, Option<u32>)>),
    Variable(Variable),
    Label(String),
    /// `label: .branchtargets a, b;`
    Targets(String, Vec<String>),
    Instruction(Instruction),
}

/// One instruction; `operands` in the order they are written.
#[derive(Clone, Debug)]
pub(crate) struct Instruction {
    pub(crate) line: u32,
    pub(crate) text: String,
    /// `@p` or `@!p` (true).
    pub(crate) guard: Option<(String, bool)>,
    pub(crate) opcode: String,
    pub(crate) operands: Vec<Operand>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Operand {
    /// A register, variable, label or function.
    Name(String),
    /// `!p`
    Not(String),
    /// `name+4`
    Sum(String, i64),
    Integer(u64),
    /// The bits of `0f…`.
    Single(u32),
    /// The bits of `0d…`, or of a decimal fraction.
    Double(u64),
    /// `[name+4]`
    Address(Box<Operand>, i64),
    /// `{a, b}`
    Vector(Vec<Operand>),
    /// `a|b`
    Pair(Box<Operand>, Box<Operand>),
    /// `(a, b)`
    List(Vec<Operand>),
}

/// Reads a module.
pub(crate) fn parse(text: &str) -> Result<Source, Error> {
    let mut parser = Parser { text, tokens: tokens(text), at: 0 };
    parser.module()
}

struct Parser<'a> {
    text: &'a str,
    tokens: Vec<Token<'a>>,
    at: usize,
}

type Parsed<T> = Result<T, Error>;

impl<'a> Parser<'a> {
    fn kind(&self) -> Option<Kind<'a>> {
        self.tokens.get(self.at).map(|token| token.kind)
    }

    fn next_kind(&self) -> Option<Kind<'a>> {
        self.tokens.get(self.at + 1).map(|token| token.kind)
    }

    fn is(&self, mark: char) -> bool {
        self.kind() == Some(Kind::Mark(mark))
    }

    fn take(&mut self, mark: char) -> bool {
        let found = self.is(mark);
        self.at += usize::from(found);
        found
    }

    fn take_word(&mut self, word: &str) -> bool {
        let found = self.kind() == Some(Kind::Word(word));
        self.at += usize::from(found);
        found
    }

    /// The statement around the token, for errors.
    fn wrong<T>(&self, reason: impl Into<String>) -> Parsed<T> {
        let at = self.at.min(self.tokens.len().saturating_sub(1));
        let ends = |token: &Token| matches!(token.kind, Kind::Mark(';' | '{' | '}'));
        let first = self.tokens[..at].iter().rposition(ends).map_or(0, |n| n + 1);
        let last = self.tokens[at..].iter().position(ends).map_or(self.tokens.len(), |n| at + n + 1);
        let line = self.tokens.get(at).map_or(1, |token| token.line);
        Err(Error::Parse { line, text: self.written(first, last.min(first + 60)), reason: reason.into() })
    }

    /// What the tokens say, white space joined.
    fn written(&self, first: usize, end: usize) -> String {
        let Some(tokens) = self.tokens.get(first..end).filter(|tokens| !tokens.is_empty()) else {
            return String::new();
        };
        let raw = &self.text[tokens[0].start..tokens[tokens.len() - 1].end];
        raw.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    fn expect(&mut self, mark: char) -> Parsed<()> {
        if self.take(mark) { Ok(()) } else { self.wrong(format!("expected `{mark}`")) }
    }

    fn word(&mut self) -> Parsed<&'a str> {
        match self.kind() {
            Some(Kind::Word(word)) => {
                self.at += 1;
                Ok(word)
            }
            _ => self.wrong("expected a word"),
        }
    }

    fn count(&mut self) -> Parsed<u32> {
        let word = self.word()?;
        match number(word) {
            Some(Operand::Integer(value)) if value <= u64::from(u32::MAX) => Ok(value as u32),
            _ => {
                self.at -= 1;
                self.wrong(format!("`{word}` is no count"))
            }
        }
    }

    fn skip_past(&mut self, mark: char) {
        while self.at < self.tokens.len() && !self.take(mark) {
            self.at += 1;
        }
    }

    fn module(&mut self) -> Parsed<Source> {
        let mut source = Source::default();
        while let Some(kind) = self.kind() {
            let Kind::Word(word) = kind else {
                return self.wrong("expected a directive");
            };
            match word {
                ".version" => {
                    self.at += 1;
                    self.word()?;
                }
                ".target" => {
                    self.at += 1;
                    let target = self.word()?;
                    let digits: String = target.chars().filter(char::is_ascii_digit).collect();
                    source.target = digits.parse().or_else(|_| self.wrong("no target"))?;
                    while self.take(',') {
                        self.word()?;
                    }
                }
                ".address_size" => {
                    self.at += 1;
                    if self.count()? != 64 {
                        return self.wrong("only addresses of 64 bits are supported");
                    }
                }
                ".visible" | ".extern" | ".weak" | ".common" => self.at += 1,
                ".entry" | ".func" => {
                    self.at += 1;
                    let function = self.function(word == ".entry")?;
                    source.functions.push(function);
                }
                ".section" => {
                    self.skip_past('{');
                    self.skip_past('}');
                }
                ".global" | ".const" | ".shared" => {
                    let mut variables = self.variables()?;
                    source.variables.append(&mut variables);
                    self.expect(';')?;
                }
                ".pragma" => self.skip_past(';'),
                _ => return self.wrong("unknown directive"),
            }
        }
        Ok(source)
    }

    fn function(&mut self, entry: bool) -> Parsed<Function> {
        let returns = if self.is('(') { self.params()? } else { Vec::new() };
        let name = self.word()?.to_owned();
        let params = if self.is('(') { self.params()? } else { Vec::new() };
        let mut function =
            Function { entry, name, returns, params, body: None, max_threads: None, required_threads: None };
        loop {
            match self.kind() {
                Some(Kind::Mark(';')) => {
                    self.at += 1;
                    return Ok(function);
                }
                Some(Kind::Mark('{')) => {
                    self.at += 1;
                    function.body = Some(self.body()?);
                    return Ok(function);
                }
                Some(Kind::Word(".maxntid")) => {
                    self.at += 1;
                    function.max_threads = Some(self.three()?);
                }
                Some(Kind::Word(".reqntid")) => {
                    self.at += 1;
                    function.required_threads = Some(self.three()?);
                }
                // How many blocks or registers a processor should hold: nothing that a program can see.
                Some(Kind::Word(".minnctapersm" | ".maxnctapersm" | ".maxnreg")) => {
                    self.at += 1;
                    self.count()?;
                }
                Some(Kind::Word(".noreturn")) => self.at += 1,
                _ => return self.wrong("unknown in the head of a function"),
            }
        }
    }

    fn three(&mut self) -> Parsed<[u32; 3]> {
        let mut counts = [self.count()?, 1, 1];
        for count in &mut counts[1..] {
            if self.take(',') {
                *count = self.count()?;
            }
        }
        Ok(counts)
    }

    fn params(&mut self) -> Parsed<Vec<Variable>> {
        self.expect('(')?;
        let mut params = Vec::new();
        while !self.take(')') {
            if self.kind() != Some(Kind::Word(".param")) {
                return self.wrong("only parameters in .param are supported");
            }
            params.append(&mut self.variable_group(true)?);
            if !self.is(')') {
                self.expect(',')?;
            }
        }
        Ok(params)
    }

    fn variables(&mut self) -> Parsed<Vec<Variable>> {
        self.variable_group(false)
    }

    /// `.space .align n .type name[size] = {...}, name, ...`; of a parameter only one.
    fn variable_group(&mut self, single: bool) -> Parsed<Vec<Variable>> {
        let space = match self.word()? {
            ".global" => Space::Global,
            ".const" => Space::Constant,
            ".shared" => Space::Shared,
            ".local" => Space::Local,
            _ => Space::Param,
        };
        let (mut align, mut element, mut times, mut pointer) = (None, None, 1, false);
        while let Some(Kind::Word(word)) = self.kind() {
            let Some(directive) = word.strip_prefix('.') else { break };
            self.at += 1;
            match directive {
                "align" if pointer => _ = self.count()?,
                "align" => align = Some(self.count()?),
                "ptr" => pointer = true,
                "global" | "const" | "shared" | "local" if pointer => {}
                "v2" => times = 2,
                "v4" => times = 4,
                _ => match Type::named(directive) {
                    Some(named) => element = Some(named),
                    None => {
                        self.at -= 1;
                        return self.wrong(format!("`{word}` is no type"));
                    }
                },
            }
        }
        let Some(element) = element else { return self.wrong("a variable without a type") };
        let bytes = element.bytes() * times;
        let align = align.unwrap_or(bytes);
        if !align.is_power_of_two() {
            return self.wrong("an alignment that is no power of two");
        }
        let mut variables = Vec::new();
        loop {
            let name = self.word()?.to_owned();
            let mut size = Some(bytes);
            while self.take('[') {
                if self.take(']') {
                    size = None;
                    continue;
                }
                let count = self.count()?;
                size = match size.map(|size| size.checked_mul(count)) {
                    Some(None) => return self.wrong("too large"),
                    size => size.flatten(),
                };
                self.expect(']')?;
            }
            let mut values = Vec::new();
            if self.take('=') {
                self.initial(element, &mut values)?;
                if values.len() as u64 > size.map_or(u64::MAX, u64::from) {
                    return self.wrong("more values than the variable has room for");
                }
                size = size.or(Some(values.len() as u32));
            }
            variables.push(Variable { space, name, align, size, values });
            if single || !self.take(',') {
                return Ok(variables);
            }
        }
    }

    fn initial(&mut self, element: Type, values: &mut Vec<u8>) -> Parsed<()> {
        if self.take('{') {
            while !self.take('}') {
                self.initial(element, values)?;
                if !self.is('}') {
                    self.expect(',')?;
                }
            }
            return Ok(());
        }
        let operand = self.operand()?;
        let Some(bits) = bits(&operand, element) else {
            return self.wrong("only numbers are supported as initial values");
        };
        values.extend_from_slice(&bits.to_le_bytes()[..element.bytes() as usize]);
        Ok(())
    }

    fn body(&mut self) -> Parsed<Vec<Statement>> {
        let mut statements = Vec::new();
        let mut depth = 0;
        loop {
            if self.take('{') {
                depth += 1;
                statements.push(Statement::Open);
            } else if self.take('}') {
                if depth == 0 {
                    return Ok(statements);
                }
                depth -= 1;
                statements.push(Statement::Close);
            } else if self.take(';') {
            } else {
                self.statement(&mut statements)?;
            }
        }
    }

    fn statement(&mut self, statements: &mut Vec<Statement>) -> Parsed<()> {
        match (self.kind(), self.next_kind()) {
            (Some(Kind::Word(label)), Some(Kind::Mark(':'))) => {
                self.at += 2;
                if self.take_word(".branchtargets") {
                    let mut targets = vec![self.word()?.to_owned()];
                    while self.take(',') {
                        targets.push(self.word()?.to_owned());
                    }
                    self.expect(';')?;
                    statements.push(Statement::Targets(label.to_owned(), targets));
                } else {
                    statements.push(Statement::Label(label.to_owned()));
                }
            }
            (Some(Kind::Word(".reg")), _) => {
                self.at += 1;
                let word = self.word()?;
                let Some(named) = word.strip_prefix('.').and_then(Type::named) else {
                    self.at -= 1;
                    return self.wrong("no type of a register");
                };
                let mut names = Vec::new();
                loop {
                    let name = self.word()?.to_owned();
                    let mut count = None;
                    if self.take('<') {
                        count = Some(self.count()?);
                        self.expect('>')?;
                    }
                    names.push((name, count));
                    if !self.take(',') {
                        break;
                    }
                }
                self.expect(';')?;
                statements.push(Statement::Registers(named, names));
            }
            (Some(Kind::Word(".shared" | ".local" | ".param" | ".const" | ".global")), _) => {
                let variables = self.variables()?;
                self.expect(';')?;
                statements.extend(variables.into_iter().map(Statement::Variable));
            }
            (Some(Kind::Word(".pragma")), _) => self.skip_past(';'),
            (Some(_), _) => {
                let instruction = self.instruction()?;
                statements.push(Statement::Instruction(instruction));
            }
            (None, _) => return self.wrong("the text ends inside of a function"),
        }
        Ok(())
    }

    fn instruction(&mut self) -> Parsed<Instruction> {
        let first = self.at;
        let mut guard = None;
        if self.take('@') {
            let negated = self.take('!');
            guard = Some((self.word()?.to_owned(), negated));
        }
        let opcode = self.word()?.to_owned();
        let line = self.tokens[self.at - 1].line;
        let mut operands = Vec::new();
        while !self.take(';') {
            operands.push(self.operand()?);
            if !self.is(';') {
                self.expect(',')?;
            }
        }
        Ok(Instruction { line, text: self.written(first, self.at), guard, opcode, operands })
    }

    fn operand(&mut self) -> Parsed<Operand> {
        if self.take('[') {
            let inner = self.operand()?;
            self.expect(']')?;
            return Ok(match inner {
                Operand::Sum(name, offset) => Operand::Address(Box::new(Operand::Name(name)), offset),
                other => Operand::Address(Box::new(other), 0),
            });
        }
        if self.take('{') {
            return Ok(Operand::Vector(self.operands_until('}')?));
        }
        if self.take('(') {
            return Ok(Operand::List(self.operands_until(')')?));
        }
        if self.take('!') {
            return Ok(Operand::Not(self.word()?.to_owned()));
        }
        let negative = self.take('-');
        let word = self.word()?;
        if let Some(value) = number(word) {
            return Ok(match value {
                Operand::Integer(value) if negative => Operand::Integer(value.wrapping_neg()),
                Operand::Double(bits) if negative => Operand::Double(bits ^ 1 << 63),
                Operand::Single(bits) if negative => Operand::Single(bits ^ 1 << 31),
                value => value,
            });
        }
        if negative {
            self.at -= 1;
            return self.wrong("a minus sign before what is no number");
        }
        let name = word.to_owned();
        if self.take('|') {
            let other = self.operand()?;
            return Ok(Operand::Pair(Box::new(Operand::Name(name)), Box::new(other)));
        }
        if self.is('+') || self.is('-') {
            let minus = self.is('-');
            self.at += 1;
            let Operand::Integer(offset) = self.operand()? else {
                return self.wrong("an offset that is no number");
            };
            let offset = offset as i64;
            return Ok(Operand::Sum(name, if minus { -offset } else { offset }));
        }
        Ok(Operand::Name(name))
    }

    fn operands_until(&mut self, mark: char) -> Parsed<Vec<Operand>> {
        let mut operands = Vec::new();
        while !self.take(mark) {
            operands.push(self.operand()?);
            if !self.is(mark) {
                self.expect(',')?;
            }
        }
        Ok(operands)
    }
}

/// A number as PTX writes it: decimal, `0x`, octal `0`, `0b`, bits of floats `0f` and `0d`, decimal fractions.
fn number(word: &str) -> Option<Operand> {
    if !word.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let digits = word.strip_suffix(['U', 'u']).unwrap_or(word);
    let prefix = word.get(..2).unwrap_or("").to_ascii_lowercase();
    match prefix.as_str() {
        "0f" => u32::from_str_radix(&word[2..], 16).ok().map(Operand::Single),
        "0d" => u64::from_str_radix(&word[2..], 16).ok().map(Operand::Double),
        "0x" => u64::from_str_radix(&digits[2..], 16).ok().map(Operand::Integer),
        "0b" => u64::from_str_radix(&digits[2..], 2).ok().map(Operand::Integer),
        _ if word.contains('.') || word.contains(['e', 'E']) => {
            word.parse::<f64>().ok().map(|value| Operand::Double(value.to_bits()))
        }
        _ if digits.len() > 1 && digits.starts_with('0') => u64::from_str_radix(digits, 8).ok().map(Operand::Integer),
        _ => digits.parse().ok().map(Operand::Integer),
    }
}

/// The bits of a number where a value of that type is expected.
pub(crate) fn bits(operand: &Operand, wanted: Type) -> Option<u64> {
    let single = wanted.kind == types::Kind::Float && wanted.bits == 32 && !wanted.packed;
    let double = wanted.kind == types::Kind::Float && wanted.bits == 64;
    Some(match *operand {
        Operand::Integer(value) if single => u64::from((value as i64 as f32).to_bits()),
        Operand::Integer(value) if double => (value as i64 as f64).to_bits(),
        Operand::Integer(value) => value,
        Operand::Single(bits) if double => f64::from(f32::from_bits(bits)).to_bits(),
        Operand::Single(bits) => u64::from(bits),
        Operand::Double(bits) if single => u64::from((f64::from_bits(bits) as f32).to_bits()),
        Operand::Double(bits) => bits,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        let cases = [
            ("12", Operand::Integer(12)),
            ("012", Operand::Integer(10)),
            ("0x1F", Operand::Integer(31)),
            ("4294967295U", Operand::Integer(u64::from(u32::MAX))),
            ("0f3F800000", Operand::Single(0x3f80_0000)),
            ("0d3FF0000000000000", Operand::Double(0x3ff0_0000_0000_0000)),
            ("0.5", Operand::Double(0.5f64.to_bits())),
        ];
        for (word, expected) in cases {
            assert_eq!(number(word), Some(expected), "{word}");
        }
        assert_eq!(number("%r1"), None);
    }

    #[test]
    fn a_function_with_scopes_and_operands_of_every_form() {
        let text = ".version 8.4 .target sm_80 .address_size 64
            .visible .entry k(.param .u64 .ptr .global .align 16 k_0, .param .align 8 .b8 k_1[24]) .maxntid 64, 2, 1 {
            .reg .b32 %r<3>; { .reg .pred p; @!p shfl.sync.up.b32 %r1|p, %r2, 1, -1, 0x1f; }
            L: .branchtargets A, B;
            A: st.shared.v2.b32 [%r1+-4], {%r1, _}; call (x), f, (y); B: ret; }";
        let source = parse(text).expect("parses");
        assert_eq!(source.target, 80);
        let function = &source.functions[0];
        assert_eq!(function.max_threads, Some([64, 2, 1]));
        assert_eq!(
            function.params.iter().map(|p| (p.align, p.size)).collect::<Vec<_>>(),
            [(8, Some(8)), (8, Some(24))]
        );
        let instructions: Vec<&Instruction> = function
            .body
            .iter()
            .flatten()
            .filter_map(|s| if let Statement::Instruction(i) = s { Some(i) } else { None })
            .collect();
        assert_eq!(instructions[0].guard, Some(("p".to_owned(), true)));
        assert_eq!(instructions[1].operands[0], Operand::Address(Box::new(Operand::Name("%r1".into())), -4));
        assert_eq!(instructions[1].text, "st.shared.v2.b32 [%r1+-4], {%r1, _};");
        assert_eq!(instructions[2].operands[0], Operand::List(vec![Operand::Name("x".into())]));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let head = ".version 8.4 .target sm_80 .address_size 64\n";
        for (text, reason) in [
            (".frob x;", "unknown directive"),
            (".entry k() { mov.b32 %r1 %r2; }", "expected `,`"),
            (".entry k() { ret;", "the text ends inside of a function"),
            (".global .u64 p = q;", "only numbers are supported as initial values"),
        ] {
            let error = parse(&format!("{head}{text}")).expect_err(text);
            assert!(matches!(&error, Error::Parse { line: 2, reason: got, .. } if got == reason), "{text}: {error}");
        }
    }
}
