//! Where the address spaces lie in generic addresses. Global addresses are generic as they are.

pub(crate) const SHARED_WINDOW: u64 = 1 << 56;
pub(crate) const LOCAL_WINDOW: u64 = 2 << 56;
pub(crate) const CONSTANT_WINDOW: u64 = 3 << 56;
pub(crate) const PARAM_WINDOW: u64 = 4 << 56;
/// How long each window is.
pub(crate) const WINDOW_BYTES: u64 = 1 << 32;

/// The space an instruction names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    Generic,
    Global,
    Shared,
    Local,
    Constant,
    Param,
}

impl Space {
    /// A generic address as one of its space.
    pub(crate) fn resolve(self, address: u64) -> (Space, u64) {
        if self != Space::Generic || address < SHARED_WINDOW {
            return (if self == Space::Generic { Space::Global } else { self }, address);
        }
        for (space, start) in [
            (Space::Shared, SHARED_WINDOW),
            (Space::Local, LOCAL_WINDOW),
            (Space::Constant, CONSTANT_WINDOW),
            (Space::Param, PARAM_WINDOW),
        ] {
            if (start..start + WINDOW_BYTES).contains(&address) {
                return (space, address - start);
            }
        }
        (Space::Global, address)
    }
}
