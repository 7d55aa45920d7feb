//! Functions of one number, without a branch or a call, so that loops over them become vectors.

/// `a · b + c`, rounded once where `F` says that the machine does that in one instruction.
#[inline(always)]
pub(super) fn fused<const F: bool>(a: f32, b: f32, c: f32) -> f32 {
    if F { a.mul_add(b, c) } else { a * b + c }
}

pub(super) const ROUND: f32 = 12_582_912.0;

/// A polynomial, its coefficients from the highest power down. (A loop as plain as can be: an iterator's `fold` may stay a
/// call, of code for no level.)
#[inline(always)]
pub(super) fn polynomial<const F: bool, const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    let mut sum = coefficients[0];
    for coefficient in &coefficients[1..] {
        sum = fused::<F>(sum, x, *coefficient);
    }
    sum
}

/// `e^x` without a branch: `2^n · e^r` with `|r| ≤ ln 2 / 2` and a polynomial for `e^r` (the minimax coefficients of
/// Cephes' `expf`). Adding 1.5·2²³ rounds to a whole number and leaves it in the low bits.
#[inline(always)]
pub(super) fn exp<const F: bool>(x: f32) -> f32 {
    let x = x.clamp(-87.0, 88.0);
    let shifted = fused::<F>(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = fused::<F>(n, 2.121_944_4e-4, fused::<F>(n, -0.693_359_4, x));
    let p = polynomial::<F, 6>(r, [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5]);
    let power = (shifted.to_bits() as i32).wrapping_sub(0x4B40_0000).wrapping_add(127);
    (fused::<F>(p * r, r, r) + 1.0) * f32::from_bits((power << 23) as u32)
}

#[inline(always)]
pub(super) fn tanh<const F: bool>(x: f32) -> f32 {
    // Near zero the difference below has no digits left; there x is its own tanh but for a third of its cube.
    if x.abs() < 0.02 { x - x * x * x / 3.0 } else { 1.0 - 2.0 / (exp::<F>(2.0 * x) + 1.0) }
}

#[inline(always)]
pub(super) fn silu<const F: bool>(x: f32) -> f32 {
    x / (1.0 + exp::<F>(-x))
}

#[inline(always)]
pub(super) fn gelu_tanh<const F: bool>(x: f32) -> f32 {
    // x/2 · (1 + tanh(u)) = x / (1 + e^(−2u)).
    x / (1.0 + exp::<F>(-1.595_769 * (x + 0.044_715 * x * x * x)))
}

/// `x/2 · (1 + erf(x/√2))`. The error function is a quotient of polynomials to 5.3, from where on it is one: fitted to
/// the least largest error, 8e-9 before rounding.
#[inline(always)]
pub(super) fn gelu<const F: bool>(x: f32) -> f32 {
    let square = x * x;
    let above = polynomial::<F, 6>(
        square,
        [4.810_066e-8, 1.275_812_6e-5, 3.206_686e-4, 9.255_984e-3, 6.587_151_6e-2, 0.797_884_5],
    );
    let below =
        polynomial::<F, 6>(square, [1.237_169_3e-6, 7.135_227e-5, 1.836_570_3e-3, 2.813_881e-2, 0.249_223_93, 1.0]);
    let erf = if square < 5.3 * 5.3 { x * above / below } else { 1f32.copysign(x) };
    fused::<F>(0.5 * x, erf, 0.5 * x)
}

#[cfg(test)]
mod tests {
    use super::super::Simd;
    use super::super::tests::{close, numbers};
    use crate::graph::Activation;

    #[test]
    fn functions_are_near_the_exact_ones_at_every_level() {
        let x: Vec<f32> = numbers(333, 3).into_iter().map(|x| x * 12.0).chain([0.0, -30.0, 30.0, 1e-4]).collect();
        for level in Simd::available() {
            let mut gelu = x.clone();
            level.activate(Activation::Gelu, &mut gelu);
            let mut tanh = x.clone();
            level.activate(Activation::GeluTanh, &mut tanh);
            let mut silu = x.clone();
            level.activate(Activation::Silu, &mut silu);
            let mut cap = x.clone();
            level.softcap(5.0, &mut cap);
            for (i, x) in x.iter().map(|x| f64::from(*x)).enumerate() {
                use crate::backend::reference::erf;
                close(gelu[i], 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)), "gelu");
                let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                close(tanh[i], 0.5 * x * (1.0 + u.tanh()), "gelu tanh");
                close(silu[i], x / (1.0 + (-x).exp()), "silu");
                close(cap[i], 5.0 * (x / 5.0).tanh(), "softcap");
            }
        }
    }
}
