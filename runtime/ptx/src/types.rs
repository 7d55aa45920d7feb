//! The types of PTX, as an opcode names them.

/// How the bits of a value are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Bits,
    Unsigned,
    Signed,
    /// IEEE: f16, f32, f64.
    Float,
    Bfloat,
    Tf32,
    Predicate,
}

/// One type. `packed`: two values of half the bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Type {
    pub(crate) kind: Kind,
    pub(crate) bits: u32,
    pub(crate) packed: bool,
}

impl Type {
    pub(crate) const B32: Type = Type { kind: Kind::Bits, bits: 32, packed: false };
    pub(crate) const U32: Type = Type { kind: Kind::Unsigned, bits: 32, packed: false };
    pub(crate) const F32: Type = Type { kind: Kind::Float, bits: 32, packed: false };
    pub(crate) const F64: Type = Type { kind: Kind::Float, bits: 64, packed: false };
    pub(crate) const PREDICATE: Type = Type { kind: Kind::Predicate, bits: 1, packed: false };

    /// By its name without the dot.
    pub(crate) fn named(name: &str) -> Option<Type> {
        let (kind, bits, packed) = match name {
            "pred" => return Some(Type::PREDICATE),
            "f16" => (Kind::Float, 16, false),
            "f16x2" => (Kind::Float, 32, true),
            "f32" => (Kind::Float, 32, false),
            "f64" => (Kind::Float, 64, false),
            "bf16" => (Kind::Bfloat, 16, false),
            "bf16x2" => (Kind::Bfloat, 32, true),
            "tf32" => (Kind::Tf32, 32, false),
            _ => {
                let (kind, bits) = name.split_at_checked(1)?;
                let kind = match kind {
                    "b" => Kind::Bits,
                    "u" => Kind::Unsigned,
                    "s" => Kind::Signed,
                    _ => return None,
                };
                (kind, bits.parse().ok().filter(|bits| [8, 16, 32, 64].contains(bits))?, false)
            }
        };
        Some(Type { kind, bits, packed })
    }

    pub(crate) fn bytes(self) -> u32 {
        self.bits.div_ceil(8)
    }

    pub(crate) fn signed(self) -> bool {
        self.kind == Kind::Signed
    }

    pub(crate) fn floating(self) -> bool {
        matches!(self.kind, Kind::Float | Kind::Bfloat | Kind::Tf32)
    }

    /// Of a packed type, the type of each half.
    pub(crate) fn half(self) -> Type {
        Type { bits: self.bits / 2, packed: false, ..self }
    }

    /// Ones where the value is.
    pub(crate) fn mask(self) -> u64 {
        ones(self.bits)
    }
}

/// That many ones.
pub(crate) fn ones(bits: u32) -> u64 {
    if bits >= 64 { u64::MAX } else { (1 << bits) - 1 }
}
