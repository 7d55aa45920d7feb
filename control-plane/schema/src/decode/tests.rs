//! What Go reads, we read; what it refuses, we refuse in its words.

use proptest::prelude::*;
use serde_json::json as value;

use super::*;

#[test]
fn json_is_read_as_go_reads_it() {
    for (input, expected) in [
        (r#" {"a": [1, -2, 1.5, 1e3, true, null, "x"]} "#, value!({"a": [1, -2, 1.5, 1000.0, true, null, "x"]})),
        ("9223372036854775807", value!(i64::MAX)),
        ("9223372036854775808", value!(9223372036854775808.0)),
        ("-0", value!(0)),
        (r#""\u00e9\ud83d\ude00\ud800\n\/""#, value!("\u{e9}\u{1f600}\u{fffd}\n/")),
        ("{\"a\":1,\"a\":{\"b\":2}}", value!({"a": {"b": 2}})),
    ] {
        assert_eq!(json(input.as_bytes()).unwrap().value, expected, "{input}");
    }
    assert_eq!(json(b"\"a\xff\xc3b\"").unwrap().value, value!("a\u{fffd}\u{fffd}b"));
}

#[test]
fn json_is_refused_in_go_words() {
    for (input, expected) in [
        ("", "unexpected end of JSON input"),
        ("{", "unexpected end of JSON input"),
        ("nul", "unexpected end of JSON input"),
        ("nuk", "invalid character 'k' in literal null (expecting 'l')"),
        ("{a", "invalid character 'a' looking for beginning of object key string"),
        ("{\"a\" 1}", "invalid character '1' after object key"),
        ("{\"a\":1 2}", "invalid character '2' after object key:value pair"),
        ("[1 2]", "invalid character '2' after array element"),
        ("[1,]", "invalid character ']' looking for beginning of value"),
        ("{\"a\":1,}", "invalid character '}' looking for beginning of object key string"),
        ("1 1", "invalid character '1' after top-level value"),
        ("01", "invalid character '1' after top-level value"),
        ("-", "unexpected end of JSON input"),
        ("1.x", "invalid character 'x' after decimal point in numeric literal"),
        ("1ex", "invalid character 'x' in exponent of numeric literal"),
        ("\"\\q\"", "invalid character 'q' in string escape code"),
        ("\"\\u12g\"", "invalid character 'g' in \\u hexadecimal character escape"),
        ("\"\n\"", "invalid character '\\n' in string literal"),
        ("'a'", "invalid character '\\'' looking for beginning of value"),
        ("1e999", "json: cannot unmarshal number 1e999 into Go value of type float64"),
    ] {
        assert_eq!(json(input.as_bytes()).unwrap_err().to_string(), expected, "{input}");
    }
}

#[test]
fn depth_is_bounded() {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    assert!(json(nested(DEPTH_MAX).as_bytes()).is_ok());
    let error = json(nested(DEPTH_MAX + 1).as_bytes()).unwrap_err().to_string();
    assert!(error.contains("exceeded max depth"), "{error}");
    assert!(json("[".repeat(1 << 20).as_bytes()).is_err());
    assert!(yaml("[".repeat(1 << 20).as_bytes()).is_err());
    let mappings: String = (0..=DEPTH_MAX + 1).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
    assert!(yaml(mappings.as_bytes()).unwrap_err().to_string().contains("exceeded max depth"));
}

#[test]
fn duplicates_are_told_with_their_path() {
    let decoded = json(br#"{"a":1,"l":[{"b":{"c":1,"c":2,"c":3}}],"a":2}"#).unwrap();
    assert_eq!(decoded.problems, [FieldProblem::Duplicate("l[0].b.c".into()), FieldProblem::Duplicate("a".into())]);
    assert_eq!(
        strict_error(&decoded.problems),
        "strict decoding error: duplicate field \"l[0].b.c\", duplicate field \"a\""
    );
    let decoded = yaml(b"a: 1\nb:\n  c: 2\n  c: 3\n").unwrap();
    assert_eq!(decoded.value, value!({"a": 1, "b": {"c": 3}}));
    assert_eq!(decoded.problems[0].to_string(), "yaml: unmarshal errors:\n  line 4: key \"c\" already set in map");
}

#[test]
fn duplicates_below_unknown_fields_are_not_told() {
    let paths =
        |list: &[&str], kind: fn(String) -> FieldProblem| list.iter().map(|path| kind((*path).into())).collect();
    let told = all_problems(
        paths(&["a.b", "x", "x.y[0].z", "xy"], FieldProblem::Duplicate),
        paths(&["x"], FieldProblem::Unknown),
    );
    assert_eq!(
        strict_error(&told),
        "strict decoding error: duplicate field \"a.b\", duplicate field \"xy\", unknown field \"x\""
    );
}

#[test]
fn yaml_means_what_it_means_to_kubectl() {
    for (input, expected) in [
        ("", value!(null)),
        ("a: yes\nb: 'yes'\nc: off\nd: y", value!({"a": true, "b": "yes", "c": false, "d": true})),
        ("mode: 0644\nhex: 0x1f\nbig: 1_000\nbin: 0b11", value!({"mode": 420, "hex": 31, "big": 1000, "bin": 3})),
        ("v: 1.10\nw: \"1.10\"\nx: 1e3\ny1: .5", value!({"v": 1.1, "w": "1.10", "x": 1000.0, "y1": 0.5})),
        ("t: 2026-01-02\nu: 1.2.3\nk: 08", value!({"t": "2026-01-02", "u": "1.2.3", "k": 8.0})),
        ("1: a\ntrue: b", value!({"1": "a", "true": "b"})),
        ("base: &b {x: 1, z: 2}\nown:\n  <<: *b\n  z: 3", value!({"base": {"x": 1, "z": 2}, "own": {"x": 1, "z": 3}})),
        ("text: |\n  a\n  b\n", value!({"text": "a\nb\n"})),
        ("a: !!str 1\nb: !!int \"2\"\nc: ~", value!({"a": "1", "b": 2, "c": null})),
        ("---\na: 1\n---\nb: 2\n", value!({"a": 1})),
    ] {
        assert_eq!(yaml(input.as_bytes()).unwrap().value, expected, "{input}");
    }
}

#[test]
fn yaml_is_refused() {
    for (input, expected) in [
        ("a: [1", "yaml: line"),
        ("a: b: c", "yaml: line 1"),
        ("a: .inf", "yaml: line 1: JSON has no number `.inf`"),
        ("[1]: 2", "yaml: line 1: unsupported map key of type array"),
        ("a: *b", "yaml: line 1"),
        ("a: !!int x", "yaml: line 1: cannot decode `x` as a !!int"),
    ] {
        let error = yaml(input.as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{input}: {error}");
    }
    let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x]\n");
    for level in 1..10 {
        let before = level - 1;
        bomb.push_str(&format!("a{level}: &a{level} [{}*a{before}]\n", format!("*a{before},").repeat(8)));
    }
    assert_eq!(yaml(bomb.as_bytes()).unwrap_err().to_string(), "yaml: document contains excessive aliasing");
}

proptest! {
    #[test]
    fn reads_what_it_wrote(text in "\\PC*", number in any::<i64>(), float in -1e300f64..1e300) {
        let original = value!({"a": [text, number, float, {"b": null}]});
        prop_assert_eq!(&json(original.to_string().as_bytes()).unwrap().value, &original);
    }

    #[test]
    fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64), text in "[\\[\\]{}:,\"a1\\\\u .&*!<|>\n-]{0,40}") {
        let _ = (json(&bytes), yaml(&bytes), json(text.as_bytes()), yaml(text.as_bytes()));
    }
}
