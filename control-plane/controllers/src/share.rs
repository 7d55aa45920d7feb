//! Numbers that users write, taken in without an end: shares of a whole, sums of sizes. Pure.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// Which way a fraction goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Round {
    Up,
    Down,
}

/// A number, or a percentage of `whole`. (`GetScaledValueFromIntOrPercent`, `k8s.io/apimachinery/pkg/util/intstr`.)
pub(crate) fn share(value: &IntOrString, whole: i32, round: Round) -> i32 {
    let percent: i64 = match value {
        IntOrString::Int(number) => return *number,
        IntOrString::String(text) => text.trim_end_matches('%').parse().unwrap_or(0),
    };
    let exact = i64::from(whole).saturating_mul(percent);
    let rounded = match round {
        Round::Up => exact.saturating_add(99) / 100,
        Round::Down => exact / 100,
    };
    i32::try_from(rounded).unwrap_or(i32::MAX)
}

/// The sum of sizes; what is more than a size can be is the largest size.
pub(crate) fn sum(sizes: impl IntoIterator<Item = i32>) -> i32 {
    sizes.into_iter().fold(0, i32::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_round_as_they_are_told_and_have_an_end() {
        let percent = |text: &str| IntOrString::String(text.to_owned());
        for (value, whole, up, down) in [
            (IntOrString::Int(7), 3, 7, 7),
            (percent("25%"), 10, 3, 2),
            (percent("100%"), 10, 10, 10),
            (percent("0%"), 10, 0, 0),
            (percent("x"), 10, 0, 0),
            (percent("9223372036854775807%"), i32::MAX, i32::MAX, i32::MAX),
        ] {
            assert_eq!(share(&value, whole, Round::Up), up, "{value:?} of {whole}, up");
            assert_eq!(share(&value, whole, Round::Down), down, "{value:?} of {whole}, down");
        }
        assert_eq!(sum([i32::MAX, 1, i32::MAX]), i32::MAX);
    }
}
