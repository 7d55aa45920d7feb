//! JSON patches (RFC 6902), one operation after the other and within bounds: copies of copies double, and a value moved
//! into its neighbour nests. Pure.
//! (`evanphx/json-patch` as the API server sets it up: `AccumulatedCopySizeLimit` is `JSONPatchMaxCopyBytes`.)

use std::io;

use json_patch::{Patch, PatchOperation};
use kedge_schema::decode::DEPTH_MAX;
use serde_json::Value;

use crate::error::ApiError;

/// More operations than this in one patch are refused (upstream's `maxJSONPatchOperations`).
const OPERATIONS_MAX: usize = 10_000;
/// What all copies of one patch may add, as JSON (upstream's `JSONPatchMaxCopyBytes`).
const COPY_BYTES_MAX: usize = 3 << 20;

/// Reads a patch.
pub(super) fn parse(patch: Value) -> Result<Patch, ApiError> {
    if let Some(count) = patch.as_array().map(Vec::len).filter(|count| *count > OPERATIONS_MAX) {
        let message = format!("The allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, got {count}");
        return Err(ApiError { message, ..ApiError::too_large(OPERATIONS_MAX) });
    }
    serde_json::from_value(patch).map_err(|error| ApiError::bad_request(format!("error decoding patch: {error}")))
}

/// Changes `object` as the patch says; when it is refused, `object` is of no use any more.
pub(super) fn apply(object: &mut Value, patch: &Patch) -> Result<(), ApiError> {
    let refused = |why: &dyn std::fmt::Display| {
        let error =
            ApiError::bad_request(format!("the server rejected our request due to an error in our request: {why}"));
        ApiError { code: 422, reason: "Invalid", ..error }
    };
    let mut copied = 0;
    // Never less than how deep the object nests; counted anew only when an operation may have gone too far.
    let mut depth = depth_of(object);
    for (index, operation) in patch.0.iter().enumerate() {
        if let PatchOperation::Copy(copy) = operation
            && let Some(source) = object.pointer(copy.from.as_str())
        {
            copied += json_bytes(source);
            if copied > COPY_BYTES_MAX {
                return Err(refused(&format!(
                    "Unable to complete the copy, the accumulated size increase of copy is {copied}, exceeding the \
                     limit {COPY_BYTES_MAX}"
                )));
            }
        }
        let inserted = match operation {
            PatchOperation::Add(add) => depth_of(&add.value),
            PatchOperation::Replace(replace) => depth_of(&replace.value),
            PatchOperation::Move(from) => depth.saturating_sub(from.from.count()),
            PatchOperation::Copy(from) => depth.saturating_sub(from.from.count()),
            PatchOperation::Remove(_) | PatchOperation::Test(_) => 0,
        };
        json_patch::patch_unsafe(object, std::slice::from_ref(operation)).map_err(|mut error| {
            error.operation = index;
            refused(&error)
        })?;
        depth = depth.max(operation.path().count() + inserted);
        if depth > DEPTH_MAX {
            depth = depth_of(object);
        }
        if depth > DEPTH_MAX {
            return Err(refused(&format!("operation {index} nests the object deeper than {DEPTH_MAX} levels")));
        }
    }
    Ok(())
}

/// How deep objects and lists nest: 0 for a scalar. What is looked at has at most twice the depth that is allowed.
fn depth_of(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth_of).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(depth_of).max().unwrap_or(0),
        _ => 0,
    }
}

/// The length of a value as JSON.
fn json_bytes(value: &Value) -> usize {
    struct Count(usize);
    impl io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    serde_json::to_writer(&mut count, value).expect("JSON values always encode");
    count.0
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(object: Value, patch: Value, expected: Result<Value, &str>) {
        let mut object = object;
        let found = parse(patch).and_then(|patch| apply(&mut object, &patch));
        match (found, expected) {
            (Ok(()), Ok(expected)) => assert_eq!(object, expected),
            (Err(error), Err(part)) => assert!(error.message.contains(part), "{error}"),
            (found, expected) => panic!("{found:?}, not {expected:?}"),
        }
    }

    #[test]
    fn operations_follow_each_other() {
        check(json!({"a": 1}), json!([{"op": "copy", "from": "/a", "path": "/b"}]), Ok(json!({"a": 1, "b": 1})));
        check(json!({"a": 1}), json!([{"op": "replace", "path": "", "value": [1]}]), Ok(json!([1])));
        let test = json!([{"op": "remove", "path": "/a"}, {"op": "test", "path": "/b", "value": 1}]);
        check(json!({"a": 1, "b": 2}), test, Err("operation '/1' failed at path '/b'"));
        check(json!({}), json!([{"op": "none", "path": "/a"}]), Err("error decoding patch"));
        let many = vec![json!({"op": "test", "path": "/a", "value": 1}); OPERATIONS_MAX + 1];
        check(json!({"a": 1}), many.into(), Err("maximum operations in a JSON patch is 10000, got 10001"));
    }

    #[test]
    fn copies_are_counted_together() {
        let double = json!({"op": "copy", "from": "/a", "path": "/a/-"});
        check(json!({"a": ["x".repeat(1000)]}), vec![double; 40].into(), Err("size increase of copy is"));
        let again = json!({"op": "copy", "from": "/a", "path": "/b"});
        check(json!({"a": "x".repeat(1 << 20)}), vec![again.clone(); 4].into(), Err("exceeding the limit 3145728"));
        let whole = json!({"a": "x".repeat(1 << 20), "b": "x".repeat(1 << 20)});
        check(json!({"a": "x".repeat(1 << 20)}), vec![again; 2].into(), Ok(whole));
    }

    #[test]
    fn nesting_is_bounded_whatever_nests() {
        let nested = |levels: usize| (0..levels).fold(json!(1), |inner, _| json!([inner]));
        // Each copy doubles the depth of what it copies.
        let into_itself = json!({"op": "copy", "from": "", "path": "/a"});
        check(json!({"a": {}}), vec![into_itself; 300].into(), Err("nests the object deeper than 256 levels"));
        let moves: Vec<Value> = (1..300)
            .map(|n| json!({"op": "move", "from": format!("/x{}", n - 1), "path": format!("/x{n}/in")}))
            .collect();
        let objects: serde_json::Map<String, Value> = (0..300).map(|n| (format!("x{n}"), json!({}))).collect();
        check(objects.into(), moves.into(), Err("nests the object deeper than 256 levels"));
        let add = |levels: usize| json!([{"op": "add", "path": "/a/-", "value": nested(levels)}]);
        check(json!({"a": []}), add(255), Err("operation 0 nests"));
        check(json!({"a": []}), add(254), Ok(json!({"a": [nested(254)]})));
        // What only looked deep is counted anew.
        let back_and_forth = vec![
            json!([{"op": "move", "from": "/a", "path": "/b/c/d"}, {"op": "move", "from": "/b/c/d", "path": "/a"}]);
            500
        ];
        let operations: Vec<Value> = back_and_forth.iter().flat_map(|pair| pair.as_array().unwrap().clone()).collect();
        let object = json!({"a": {"e": 1}, "b": {"c": {}}});
        check(object.clone(), operations.into(), Ok(object));
    }
}
