//! Amounts such as `100m`, `2Gi` or `1e3`: parsing, canonical text, arithmetic.
//!
//! The rules are those of `apimachinery/pkg/api/resource`: at most nine decimals, rounded away from zero; a
//! quantity is printed as it was written where that was canonical already. An amount is held as a whole number of
//! billionths in 128 bits, so amounts from 1.7e29 on are refused (upstream takes them), and `1000E` prints as
//! such rather than as upstream's `1`.

#[cfg(test)]
mod tests;

use std::cmp::Ordering;
use std::fmt;

/// Billionths in one.
const NANO: i128 = 1_000_000_000;

/// An amount of something.
#[derive(Clone, Debug)]
pub struct Quantity {
    /// The amount in billionths.
    nanos: i128,
    format: Format,
    /// The text as written, kept where it was canonical.
    written: Option<Box<str>>,
}

/// Which suffixes a quantity is printed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `n`, `u`, `m`, none, `k`, `M`, `G`, `T`, `P`, `E`.
    DecimalSi,
    /// `Ki`, `Mi`, `Gi`, `Ti`, `Pi`, `Ei`.
    BinarySi,
    /// `e3`
    DecimalExponent,
}

/// Why a text is no quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not of the form at all.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    /// The number cannot be read.
    #[error("unable to parse numeric part of quantity")]
    Number,
    /// The suffix is none of the known ones.
    #[error("unable to parse quantity's suffix")]
    Suffix,
    /// Beyond what 128 bits of billionths hold.
    #[error("quantity is too large: amounts must be below 1.7e29")]
    TooLarge,
}

impl Quantity {
    /// Reads a quantity; the text is trimmed, as upstream's JSON decoder does.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        parse(text.trim())
    }

    /// A whole number.
    pub fn new(value: i64, format: Format) -> Self {
        Self { nanos: i128::from(value) * NANO, format, written: None }
    }

    /// Thousandths.
    pub fn from_milli(value: i64, format: Format) -> Self {
        Self { nanos: i128::from(value) * (NANO / 1000), format, written: None }
    }

    /// The amount, rounded away from zero to a whole number, and bounded to 64 bits.
    pub fn value(&self) -> i64 {
        self.scaled(NANO)
    }

    /// The amount in thousandths, rounded away from zero, and bounded to 64 bits.
    pub fn milli_value(&self) -> i64 {
        self.scaled(NANO / 1000)
    }

    fn scaled(&self, unit: i128) -> i64 {
        let (whole, rest) = (self.nanos / unit, self.nanos % unit);
        let rounded = whole + rest.signum();
        rounded.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
    }

    /// Whether it is nothing.
    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// -1, 0 or 1.
    pub fn sign(&self) -> i32 {
        self.nanos.signum() as i32
    }

    /// Whether it is a whole number.
    pub fn is_integer(&self) -> bool {
        self.nanos % NANO == 0
    }

    /// How it is printed.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The sum; bounded rather than wrapped at the ends of the range. Nothing takes on the other's format.
    pub fn add(&self, other: &Self) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        Self { nanos: self.nanos.saturating_add(other.nanos), format, written: None }
    }

    /// The difference; bounded rather than wrapped at the ends of the range.
    pub fn sub(&self, other: &Self) -> Self {
        self.add(&other.negated())
    }

    /// The amount with the other sign.
    pub fn negated(&self) -> Self {
        Self { nanos: self.nanos.saturating_neg(), format: self.format, written: None }
    }

    /// The amount several times over; bounded rather than wrapped.
    pub fn times(&self, factor: i64) -> Self {
        Self { nanos: self.nanos.saturating_mul(factor.into()), format: self.format, written: None }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(written) = &self.written {
            return f.write_str(written);
        }
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let small = self.nanos.abs() < 1024 * NANO;
        match self.format {
            Format::BinarySi if !small && self.is_integer() => self.write_binary(f),
            Format::DecimalExponent => self.write_decimal(f, true),
            _ => self.write_decimal(f, false),
        }
    }
}

impl Quantity {
    fn write_binary(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut number = self.nanos / NANO;
        let mut suffix = 0;
        while number % 1024 == 0 && suffix < 6 {
            number /= 1024;
            suffix += 1;
        }
        write!(f, "{number}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][suffix])
    }

    fn write_decimal(&self, f: &mut fmt::Formatter<'_>, as_exponent: bool) -> fmt::Result {
        let (mut number, mut exponent) = (self.nanos, -9);
        let exponent_max = if as_exponent { i32::MAX } else { 18 };
        while number % 1000 == 0 && exponent < exponent_max {
            number /= 1000;
            exponent += 3;
        }
        match exponent {
            0 => write!(f, "{number}"),
            _ if as_exponent => write!(f, "{number}e{exponent}"),
            _ => {
                let suffixes = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
                write!(f, "{number}{}", suffixes[((exponent + 9) / 3) as usize])
            }
        }
    }
}

/// The pieces of a quantity's text. Leading zeros are not part of `whole`.
struct Pieces<'a> {
    negative: bool,
    whole: &'a str,
    fraction: &'a str,
    has_digits: bool,
    suffix: &'a str,
}

fn split(text: &str) -> Result<Pieces<'_>, QuantityError> {
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let negative = text.starts_with('-');
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (number, rest) = unsigned.split_at(digits(unsigned));
    let whole = number.trim_start_matches('0');
    let (fraction, suffix) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(digits(rest)),
        None => ("", rest),
    };
    let letters = suffix.bytes().take_while(|byte| b"eEinumkKMGTP".contains(byte)).count();
    let tail = &suffix[letters..];
    let tail = tail.strip_prefix(['-', '+']).unwrap_or(tail);
    if digits(tail) != tail.len() {
        return Err(QuantityError::Format);
    }
    Ok(Pieces { negative, whole, fraction, has_digits: !(number.is_empty() && fraction.is_empty()), suffix })
}

/// Base, exponent and format that a suffix stands for.
fn suffix_meaning(suffix: &str) -> Result<(Format, i32), QuantityError> {
    let decimal = |exponent| Ok((Format::DecimalSi, exponent));
    let binary = |exponent| Ok((Format::BinarySi, exponent));
    match suffix {
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        _ => {
            let digits = suffix.strip_prefix(['e', 'E']).ok_or(QuantityError::Suffix)?;
            let exponent: i64 = digits.parse().map_err(|_| QuantityError::Suffix)?;
            Ok((Format::DecimalExponent, exponent.clamp(-1000, 1000) as i32))
        }
    }
}

fn parse(text: &str) -> Result<Quantity, QuantityError> {
    if text.is_empty() {
        return Err(QuantityError::Format);
    }
    if text == "0" {
        return Ok(Quantity { nanos: 0, format: Format::DecimalSi, written: Some("0".into()) });
    }
    let pieces = split(text)?;
    let (mut format, exponent) = suffix_meaning(pieces.suffix)?;
    let fast = fits_fast_path(&pieces, format, exponent);
    if !pieces.has_digits && !fast {
        return Err(QuantityError::Number);
    }
    let mut nanos = amount(&pieces, format, exponent)?;
    if format == Format::BinarySi {
        nanos = nanos.min(i128::from(i64::MAX) * NANO);
        if !fast && 0 < nanos && nanos < NANO {
            format = Format::DecimalSi;
        }
    }
    let nanos = if pieces.negative { -nanos } else { nanos };
    let written = (fast && is_canonical(&pieces, format, exponent)).then(|| text.into());
    Ok(Quantity { nanos, format, written })
}

/// Upstream keeps the text as written only of numbers that fit 64 bits with room to spare.
fn fits_fast_path(pieces: &Pieces<'_>, format: Format, exponent: i32) -> bool {
    let whole = pieces.whole.len().max(1) as i32;
    let fraction = pieces.fraction.len() as i32;
    match format {
        Format::BinarySi => fraction == 0 && 15 - whole - exponent * 3 / 10 > 0,
        _ => whole + fraction <= 18 && exponent - fraction >= -9,
    }
}

/// Whether the text is already as upstream would print it, going by its rough test.
fn is_canonical(pieces: &Pieces<'_>, format: Format, exponent: i32) -> bool {
    let shifted = format!("{}{}", if pieces.whole.is_empty() { "0" } else { pieces.whole }, pieces.fraction);
    match format {
        Format::BinarySi => shifted.parse::<i64>().is_ok_and(|number| number & 7 != 0),
        _ => {
            (exponent - pieces.fraction.len() as i32) % 3 == 0 && !shifted.ends_with("000") && !shifted.starts_with('0')
        }
    }
}

/// The amount without its sign, in billionths, rounded up.
fn amount(pieces: &Pieces<'_>, format: Format, exponent: i32) -> Result<i128, QuantityError> {
    let fraction = pieces.fraction.trim_end_matches('0');
    let digits = format!("{}{fraction}", pieces.whole);
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return Ok(0);
    }
    let mut decimals = fraction.len() as i32;
    let mut factor: i128 = 1;
    match format {
        Format::BinarySi => factor <<= exponent,
        _ => decimals -= exponent,
    }
    // Digits too far behind the point only matter for rounding up.
    let shift = 9 - decimals;
    if format == Format::BinarySi && digits.len() > 39 && shift >= 0 {
        return Ok(i128::from(i64::MAX) * NANO); // Upstream caps binary amounts.
    }
    if shift >= 0 {
        let number: i128 = digits.parse().map_err(|_| QuantityError::TooLarge)?;
        let product = 10i128
            .checked_pow(shift as u32)
            .and_then(|power| number.checked_mul(power))
            .and_then(|number| number.checked_mul(factor));
        return match (product, format) {
            (Some(product), _) => Ok(product),
            (None, Format::BinarySi) => Ok(i128::from(i64::MAX) * NANO),
            (None, _) => Err(QuantityError::TooLarge),
        };
    }
    let cut = digits.len().saturating_sub(shift.unsigned_abs() as usize);
    if factor == 1 {
        let kept: i128 = if cut == 0 { 0 } else { digits[..cut].parse().map_err(|_| QuantityError::TooLarge)? };
        return Ok(kept + 1); // Trailing zeros are trimmed, so what is cut off is never nothing.
    }
    binary_with_long_fraction(digits, shift.unsigned_abs(), factor)
}

/// `0.12345678901Ki`: multiply digit by digit, as the product may need more than 128 bits.
fn binary_with_long_fraction(digits: &str, cut: u32, factor: i128) -> Result<i128, QuantityError> {
    // Schoolbook: digits times factor as a decimal text, then drop the last `cut` digits, rounding up.
    let mut product: Vec<u8> = Vec::with_capacity(digits.len() + 20);
    let mut carry: i128 = 0;
    for digit in digits.bytes().rev() {
        carry += i128::from(digit - b'0') * factor;
        product.push((carry % 10) as u8);
        carry /= 10;
    }
    while carry > 0 {
        product.push((carry % 10) as u8);
        carry /= 10;
    }
    let cut = (cut as usize).min(product.len());
    let (dropped, kept) = product.split_at(cut);
    let mut number: i128 = 0;
    for digit in kept.iter().rev() {
        let Some(next) = number.checked_mul(10).and_then(|number| number.checked_add(i128::from(*digit))) else {
            return Ok(i128::from(i64::MAX) * NANO);
        };
        number = next;
    }
    Ok(number + i128::from(dropped.iter().any(|digit| *digit != 0)))
}
