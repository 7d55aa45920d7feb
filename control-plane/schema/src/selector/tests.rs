//! Selectors as upstream parses, prints and matches them.

use std::borrow::Cow;

use proptest::prelude::*;
use serde_json::json;

use super::*;

#[test]
fn parses_and_prints() {
    for (input, expected) in [
        ("", Ok("")),
        ("a=b", Ok("a=b")),
        (" z==y , a!=b ", Ok("a!=b,z==y")),
        ("a in (c, b,b)", Ok("a in (b,c)")),
        ("a notin (x)", Ok("a notin (x)")),
        ("a,!b", Ok("a,!b")),
        ("a in ()", Ok("a in ()")),
        ("a in (,)", Ok("a in ()")),
        ("a in (b,,c)", Ok("a in (,b,c)")),
        ("a=", Ok("a=")),
        ("a=in", Ok("a=in")),
        ("in=a", Ok("in=a")),
        ("a>1,b<2", Ok("a>1,b<2")),
        ("a=b,", Err("found '', expected: identifier after ','")),
        (",a", Err("found ',', expected: !, identifier, or 'end of string'")),
        ("a b", Err("unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt")),
        ("a in b", Err("unable to parse requirement: found 'b' expected: '('")),
        ("a in (b", Err("unable to parse requirement: found '', expected: ',' or ')'")),
        ("a=b c", Err("found 'c', expected: ',' or 'end of string'")),
        ("!", Err("unable to parse requirement: found '', expected: identifier")),
        (
            "a>x",
            Err(
                "unable to parse requirement: values[0]: Invalid value: \"x\": for 'Gt', 'Lt' operators, the value must be an integer",
            ),
        ),
    ] {
        let actual = LabelSelector::parse(input).map(|selector| selector.to_string());
        assert_eq!(actual, expected.map(str::to_owned).map_err(|text| SelectorError(text.to_owned())), "{input}");
    }
    let error = LabelSelector::parse("-a=b").unwrap_err().to_string();
    assert!(error.starts_with("unable to parse requirement: <nil>: Invalid value: \"-a\": name part must"), "{error}");
}

#[test]
fn matches_labels() {
    let labels = json!({"app": "web", "n": "5"});
    for (selector, expected) in [
        ("", true),
        ("app=web", true),
        ("app!=web", false),
        ("other!=web", true),
        ("other notin (web)", true),
        ("app in (web,db)", true),
        ("other in (web)", false),
        ("app,!other", true),
        ("!app", false),
        ("n>4,n<6", true),
        ("n>5", false),
        ("app>1", false),
        ("other<1", false),
    ] {
        let parsed = LabelSelector::parse(selector).unwrap();
        assert_eq!(parsed.matches_labels(Some(&labels)), expected, "{selector}");
    }
}

#[test]
fn takes_the_object_form() {
    let check = |object: Value, expected: Result<&str, &str>| {
        let actual = LabelSelector::from_object(Some(&object)).map(|selector| selector.to_string());
        assert_eq!(actual, expected.map(str::to_owned).map_err(|text| SelectorError(text.to_owned())));
    };
    check(json!({}), Ok(""));
    check(
        json!({"matchLabels": {"b": "1"}, "matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["z", "y"]}]}),
        Ok("a notin (y,z),b=1"),
    );
    check(
        json!({"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]}),
        Err("\"Gt\" is not a valid label selector operator"),
    );
    check(
        json!({"matchExpressions": [{"key": "a", "operator": "In"}]}),
        Err("values: Invalid value: null: for 'in', 'notin' operators, values set can't be empty"),
    );
    assert_eq!(LabelSelector::from_object(None), Ok(LabelSelector::Nothing));
    assert!(!LabelSelector::Nothing.matches_labels(None) && LabelSelector::everything().matches_labels(None));
}

#[test]
fn all_faults_of_a_selector_are_told() {
    let selector = json!({
        "matchLabels": {"ok": "fine", "bad": "-"},
        "matchExpressions": [
            {"key": "a", "operator": "In"},
            {"key": "", "operator": "Exists", "values": ["x"]},
            {"key": "a", "operator": "Gt", "values": ["-"]},
        ],
    });
    let errors = validate_label_selector(Some(&selector), &Path::new("spec").child("selector"));
    let told: Vec<(&str, &str)> = errors.iter().map(|error| (error.field.as_str(), error.kind.reason())).collect();
    assert_eq!(
        told,
        [
            ("spec.selector.matchLabels", "FieldValueInvalid"),
            ("spec.selector.matchExpressions[0].values", "FieldValueRequired"),
            ("spec.selector.matchExpressions[1].values", "FieldValueForbidden"),
            ("spec.selector.matchExpressions[1].key", "FieldValueInvalid"),
            ("spec.selector.matchExpressions[1].key", "FieldValueInvalid"),
            ("spec.selector.matchExpressions[2].operator", "FieldValueInvalid"),
            ("spec.selector.matchExpressions[2].values[0]", "FieldValueInvalid"),
        ]
    );
    assert!(validate_label_selector(None, &Path::root()).is_empty());
}

#[test]
fn field_selectors() {
    for (input, expected) in [
        ("", Ok("")),
        ("b!=2,a==1", Ok("a=1,b!=2")),
        ("a=x\\,y\\=z", Ok("a=x\\,y\\=z")),
        (",,", Ok("")),
        ("a", Err("invalid selector: 'a'; can't understand 'a'")),
        ("a=b=c", Err("invalid field selector: unescaped character in value: 61")),
        ("a=\\q", Err("invalid field selector: invalid escape sequence: \\q")),
        ("=", Ok("")),
    ] {
        let actual = FieldSelector::parse(input).map(|selector| selector.to_string());
        assert_eq!(actual, expected.map(str::to_owned).map_err(|text| SelectorError(text.to_owned())), "{input}");
    }
    let selector = FieldSelector::parse("metadata.name=web,status.phase!=Failed").unwrap();
    assert_eq!(selector.exact("metadata.name"), Some("web"));
    assert_eq!(selector.exact("status.phase"), None);
    let lookup = |field: &str| Cow::Borrowed(if field == "metadata.name" { "web" } else { "" });
    assert!(selector.matches(lookup));
}

proptest! {
    #[test]
    fn never_panics_and_prints_what_it_parses(text in "[a-c=!(),<> in1/.\\-\\x00é]{0,20}") {
        if let Ok(selector) = LabelSelector::parse(&text) {
            let printed = selector.to_string();
            prop_assert_eq!(LabelSelector::parse(&printed), Ok(selector));
        }
        let _ = FieldSelector::parse(&text);
    }
}
