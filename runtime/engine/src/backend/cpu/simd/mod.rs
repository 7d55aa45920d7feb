//! Which vector instructions are used, and the loops over vectors: written once in plain Rust, compiled again for each
//! level.
//!
//! What must hold: all levels but the portable one exist only after the machine was asked, which is what makes calls
//! of functions compiled for them sound; all levels agree within the tolerances of the tests below, and each gives the
//! same bits for the same numbers every time. A closure that is handed to a function may stay a call, of code that is compiled
//! for no level: there a product that is added is a call of the C library's `fmaf`, and no vector is used. So numbers are
//! worked on in plain loops here, and by functions that are `inline(always)`.

#![allow(unsafe_code, reason = "vector instructions, and calls to functions compiled for them")]
#![allow(clippy::needless_range_loop, reason = "iterators take closures")]

mod attention;
mod functions;
mod vectors;

#[cfg(target_arch = "x86_64")]
use std::sync::LazyLock;

#[cfg(target_arch = "x86_64")]
use super::amx::{self, Offer};
use super::attention::{LANES, Seen, Text};
use super::quant::Rounded;
use crate::graph::{Activation, PAGE_TOKENS};
use attention::{
    plain_largest, plain_look, plain_mix, plain_mix_for_four, plain_powers, plain_scores, plain_scores_of_four,
};
use vectors::{
    plain_activate, plain_add, plain_add_scaled, plain_copy, plain_dot, plain_gate, plain_layer_norm, plain_quantize,
    plain_rms_norm, plain_scale, plain_settle, plain_softcap, plain_widen,
};

/// Which instructions are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Simd {
    /// What the compiler may assume of every machine.
    Portable,
    /// AVX2, FMA and F16C; made by [`Simd::available`] only.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW, VL, DQ and VNNI; made by [`Simd::available`] only.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// All of AVX-512's, and tiles of bytes ([`super::amx`]) for products of many rows, with the same bits; made by
    /// [`Simd::available`] only.
    #[cfg(target_arch = "x86_64")]
    Amx,
}

/// Calls the build of a function for the level of this machine.
macro_rules! dispatch {
    ($level:expr, $plain:expr, $avx2:expr, $avx512:expr) => {
        match $level {
            $crate::backend::cpu::simd::Simd::Portable => $plain,
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Simd::Avx2` is only made when the machine has what the function is compiled for.
            $crate::backend::cpu::simd::Simd::Avx2 => unsafe { $avx2 },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: these are only made when the machine has what the function is compiled for.
            $crate::backend::cpu::simd::Simd::Avx512 | $crate::backend::cpu::simd::Simd::Amx => unsafe { $avx512 },
        }
    };
}
pub(crate) use dispatch;

impl Simd {
    /// All that this machine has, the best last.
    pub(crate) fn available() -> Vec<Self> {
        let mut levels = vec![Simd::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
                levels.push(Simd::Avx2);
                if ["f", "bw", "vl", "dq", "vnni"].into_iter().all(has_avx512) {
                    levels.push(Simd::Avx512);
                    if amx::offer() == Offer::Granted {
                        levels.push(Simd::Amx);
                    }
                }
            }
        }
        levels
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Simd::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Simd::Avx2 => "avx2,fma,f16c",
            #[cfg(target_arch = "x86_64")]
            Simd::Avx512 if amx::offer() == Offer::Refused => "avx512,vnni (the kernel refuses amx)",
            #[cfg(target_arch = "x86_64")]
            Simd::Avx512 => "avx512,vnni",
            #[cfg(target_arch = "x86_64")]
            Simd::Amx => "avx512,vnni,amx",
        }
    }
}

/// Whether weights are asked for before they are multiplied: Intel's processors guess too little of what comes next by
/// themselves, AMD's guess better than we ask.
#[cfg(target_arch = "x86_64")]
pub(crate) static ASKS: LazyLock<bool> = LazyLock::new(|| {
    let std::arch::x86_64::CpuidResult { ebx, ecx, edx, .. } = std::arch::x86_64::__cpuid(0);
    [ebx, edx, ecx].map(u32::to_le_bytes).concat() == b"GenuineIntel"
});

#[cfg(target_arch = "x86_64")]
fn has_avx512(part: &str) -> bool {
    match part {
        "f" => is_x86_feature_detected!("avx512f"),
        "bw" => is_x86_feature_detected!("avx512bw"),
        "vl" => is_x86_feature_detected!("avx512vl"),
        "dq" => is_x86_feature_detected!("avx512dq"),
        _ => is_x86_feature_detected!("avx512vnni"),
    }
}

/// Whether every machine that this was built for multiplies and adds in one instruction.
const FUSED: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));

/// Functions over vectors: a method of [`Simd`] for each, whose body is compiled for every level.
macro_rules! leveled {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),*) $(-> $result:ty)? = $plain:ident;)*) => {
        impl Simd {$(
            $(#[$doc])*
            pub(crate) fn $name(self, $($arg: $type),*) $(-> $result)? {
                dispatch!(self, $plain::<FUSED>($($arg),*), avx2::$name($($arg),*), avx512::$name($($arg),*))
            }
        )*}
        #[cfg(target_arch = "x86_64")]
        mod avx2 {
            use super::*;
            $(#[target_feature(enable = "avx2,fma,f16c")]
            pub(super) fn $name($($arg: $type),*) $(-> $result)? { super::$plain::<true>($($arg),*) })*
        }
        #[cfg(target_arch = "x86_64")]
        mod avx512 {
            use super::*;
            $(#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma,f16c")]
            pub(super) fn $name($($arg: $type),*) $(-> $result)? { super::$plain::<true>($($arg),*) })*
        }
    };
}

leveled! {
    /// The sum of the products.
    fn dot(a: &[f32], b: &[f32]) -> f32 = plain_dot;
    /// `to += factor · from`.
    fn add_scaled(to: &mut [f32], factor: f32, from: &[f32]) = plain_add_scaled;
    /// Copies a short vector without a call: its length is a few whole registers, mostly.
    fn copy(from: &[f32], to: &mut [f32]) = plain_copy;
    /// `out = factor · x`.
    fn scale(factor: f32, x: &[f32], out: &mut [f32]) = plain_scale;
    /// Adds what is to be added to each row of products (nothing where that is empty), and applies a function.
    fn settle(lanes: usize, bias: &[f32], activation: Option<Activation>, sums: &mut [f32]) = plain_settle;
    /// Lets queries look at the keys of a text.
    fn look(text: Text<'_>, queries: &[[f32; LANES]], seen: &mut Seen) = plain_look;
    /// `out = a + b`.
    fn add(a: &[f32], b: &[f32], out: &mut [f32]) = plain_add;
    /// See [`crate::graph::Norm::Layer`].
    fn layer_norm(x: &[f32], gamma: &[f32], beta: &[f32], epsilon: f32, out: &mut [f32]) = plain_layer_norm;
    /// See [`crate::graph::Norm::Rms`]; `more` is added to the scale.
    fn rms_norm(x: &[f32], gamma: &[f32], more: f32, epsilon: f32, out: &mut [f32]) = plain_rms_norm;
    /// Applies a function to each number.
    fn activate(activation: Activation, x: &mut [f32]) = plain_activate;
    /// `out = activation(gate) · up`.
    fn gate(activation: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) = plain_gate;
    /// `bound · tanh(x / bound)` of each.
    fn softcap(bound: f32, x: &mut [f32]) = plain_softcap;
    /// Products of a query with the keys of a page, which lie dimension by dimension.
    fn scores(query: &[f32], keys: &[f32], out: &mut [f32; PAGE_TOKENS]) = plain_scores;
    /// The same for four queries at once, each to the same bits.
    fn scores_of_four(queries: [&[f32]; 4], keys: &[f32], out: &mut [[f32; PAGE_TOKENS]; 4]) = plain_scores_of_four;
    /// Replaces scores by powers of e of their distance to `top`; their sum.
    fn powers(top: f32, scores: &mut [f32]) -> f32 = plain_powers;
    /// Adds vectors, one after the other in `values`, each multiplied by its weight.
    fn mix(weights: &[f32], values: &[f32], out: &mut [f32]) = plain_mix;
    /// The same for four weighings at once, each to the same bits.
    fn mix_for_four(weights: &[[f32; PAGE_TOKENS]; 4], values: &[f32], out: [&mut [f32]; 4]) = plain_mix_for_four;
    /// The largest, at least `top`.
    fn largest(top: f32, x: &[f32]) -> f32 = plain_largest;
    /// Numbers to signed bytes, and what there is to know of each block of 32.
    fn quantize(x: &[f32], bytes: &mut [i8], blocks: &mut [Rounded]) = plain_quantize;
    /// 16-bit floats to 32-bit ones.
    fn widen(from: &[u16], to: &mut [f32]) = plain_widen;
}

#[cfg(test)]
pub(crate) mod tests {

    /// Numbers between -1 and 1 from a fixed sequence.
    pub(crate) fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    pub(super) fn close(found: f32, expected: f64, what: &str) {
        let off = (f64::from(found) - expected).abs();
        assert!(off <= 2e-6 * expected.abs().max(1.0), "{what}: {found}, not {expected}");
    }
}
