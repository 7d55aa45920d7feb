//! Quantities as upstream reads and prints them.

use proptest::prelude::*;

use super::*;

#[test]
fn prints_as_upstream() {
    for (input, expected) in [
        ("0", "0"),
        ("0.0", "0"),
        ("00Ki", "0"),
        ("100m", "100m"),
        ("1.5", "1500m"),
        ("1500m", "1500m"),
        ("1000", "1k"),
        ("2Gi", "2Gi"),
        ("1024Ki", "1Mi"),
        ("1023", "1023"),
        ("512Mi", "512Mi"),
        ("0.5Ki", "512"),
        ("1.5Gi", "1536Mi"),
        ("0.1Ki", "102400m"),
        ("1e3", "1e3"),
        ("1e5", "100e3"),
        ("12E6", "12E6"),
        ("1E", "1E"),
        ("+5", "+5"),
        ("05", "05"),
        ("-5", "-5"),
        ("-1.5", "-1500m"),
        (".5", "500m"),
        ("5.", "5."),
        ("0.0000000001", "1n"),
        ("1n", "1n"),
        ("0.1n", "1n"),
        ("100000000000000000000", "100E"),
        ("9Ei", "9223372036854775807"),
        ("1000E", "1000E"),
        ("  7 ", "7"),
        ("-", "0"),
    ] {
        assert_eq!(Quantity::parse(input).map(|quantity| quantity.to_string()), Ok(expected.to_owned()), "{input}");
    }
}

#[test]
fn refuses_as_upstream() {
    for (input, expected) in [
        ("", QuantityError::Format),
        ("abc", QuantityError::Format),
        ("1.2.3", QuantityError::Format),
        ("1 Gi", QuantityError::Format),
        ("1K", QuantityError::Suffix),
        ("1e", QuantityError::Suffix),
        ("1mm", QuantityError::Suffix),
        ("1Ki5", QuantityError::Suffix),
        ("1e40", QuantityError::TooLarge),
    ] {
        assert_eq!(Quantity::parse(input), Err(expected), "{input}");
    }
}

#[test]
fn computes() {
    let quantity = |text: &str| Quantity::parse(text).unwrap();
    for (a, b, sum, difference) in [
        ("100m", "1", "1100m", "-900m"),
        ("1Gi", "1Mi", "1025Mi", "1023Mi"),
        ("0", "1Ki", "1Ki", "-1Ki"),
        ("1Ki", "1m", "1024001m", "1023999m"),
    ] {
        assert_eq!(quantity(a).add(&quantity(b)).to_string(), sum);
        assert_eq!(quantity(a).sub(&quantity(b)).to_string(), difference);
    }
    assert_eq!((quantity("1100m").value(), quantity("-1100m").value(), quantity("1u").milli_value()), (2, -2, 1));
    assert!(quantity("1Ki") > quantity("1k") && quantity("1000m") == quantity("1"));
    assert_eq!(quantity("1Gi").times(3).to_string(), "3Gi");
}

proptest! {
    #[test]
    fn canonical_text_means_the_same(text in "[+-]?[0-9]{0,22}(\\.[0-9]{0,12})?(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|e[+-]?[0-9]{1,2})?") {
        if let Ok(quantity) = Quantity::parse(&text) {
            let printed = Quantity { written: None, ..quantity }.to_string();
            let again = Quantity::parse(&printed).unwrap();
            prop_assert_eq!(&again, &quantity, "{} printed as {}", text, printed);
            prop_assert_eq!(Quantity { written: None, ..again }.to_string(), printed);
        }
    }

    #[test]
    fn never_panics(text in "\\PC{0,12}") {
        let _ = Quantity::parse(&text);
    }
}
