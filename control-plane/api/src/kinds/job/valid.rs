//! What is wrong with a job (`pkg/apis/batch/validation/validation.go`).

use kedge_schema::field::{FieldError, Path};
use kedge_schema::names;
use kedge_schema::selector::LabelSelector;
use serde_json::Value;

use super::{NAME_LABELS, UID_LABELS};
use crate::kinds::check::{self, Errors};
use crate::kinds::fill::{count, len, text};
use crate::kinds::pod_template;
use crate::object;

const INDEXED_PARALLELISM_MAX: i64 = 100_000;
const RULES_MAX: usize = 20;
const EXIT_CODES_MAX: usize = 255;

pub(super) fn validate(job: &Value) -> Errors {
    let (spec, path, mut errors) = (&job["spec"], Path::new("spec"), Errors::new());
    validate_spec(&mut errors, spec, &path);
    let at = path.child("selector");
    match spec["selector"].is_null() {
        true => errors.push(FieldError::required(&at, "")),
        false => check::selector(&mut errors, &at, &spec["selector"]),
    }
    if let Ok(selector) = LabelSelector::from_object(Some(&spec["selector"])) {
        pod_template::matches(&mut errors, &selector, spec, &path);
    }
    let last = count(&spec["completions"]) - 1;
    if spec["completionMode"] == "Indexed" && last >= 0 {
        let host = format!("{}-{last}", object::name(job));
        if !check::dns_label(&host).is_empty() {
            let why = format!("will not able to create pod with invalid DNS label: {host}");
            errors.push(FieldError::invalid(&Path::new("metadata").child("name"), object::name(job), why));
        }
    }
    errors
}

/// A job that selects by itself has the labels it gave itself.
pub(super) fn generated_selector(job: &Value) -> Errors {
    let mut errors = Errors::new();
    if job["spec"]["manualSelector"] == true || job["spec"]["selector"].is_null() {
        return errors;
    }
    let labels = &job["spec"]["template"]["metadata"]["labels"];
    let path = Path::new("spec").child("template").child("metadata").child("labels");
    for (keys, value) in [(UID_LABELS, object::uid(job)), (NAME_LABELS, object::name(job))] {
        for key in keys {
            match labels[key].as_str() {
                None => errors.push(FieldError::required(&path.key(key), format!("must be '{value}'"))),
                Some(other) if other != value => {
                    errors.push(FieldError::invalid(&path.key(key), labels.clone(), format!("must be '{value}'")));
                }
                Some(_) => {}
            }
        }
    }
    let own = |key: &str| match key {
        _ if UID_LABELS.contains(&key) => Some(object::uid(job)),
        _ if NAME_LABELS.contains(&key) => Some(object::name(job)),
        _ => None,
    };
    let selector = &job["spec"]["selector"];
    if LabelSelector::from_object(Some(selector)).is_ok_and(|selector| !selector.matches(own)) {
        let path = Path::new("spec").child("selector");
        errors.push(FieldError::invalid(&path, selector.clone(), "`selector` not auto-generated"));
    }
    errors
}

/// A job's specification, in a job as in a cron job's template.
pub(in crate::kinds) fn validate_spec(errors: &mut Errors, spec: &Value, path: &Path) {
    const NUMBERS: [&str; 7] = [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ];
    for key in NUMBERS {
        check::not_negative(errors, &path.child(key), &spec[key]);
    }
    if !spec["maxFailedIndexes"].is_null() && spec["backoffLimitPerIndex"].is_null() {
        let why = "when maxFailedIndexes is specified";
        errors.push(FieldError::required(&path.child("backoffLimitPerIndex"), why));
    }
    check::among(errors, &path.child("completionMode"), &spec["completionMode"], &["NonIndexed", "Indexed"]);
    match text(&spec["completionMode"]) {
        "Indexed" => indexed(errors, spec, path),
        "" | "NonIndexed" => {
            for key in ["backoffLimitPerIndex", "maxFailedIndexes", "successPolicy"] {
                if !spec[key].is_null() {
                    let why = "requires indexed completion mode";
                    errors.push(FieldError::invalid(&path.child(key), spec[key].clone(), why));
                }
            }
        }
        _ => {}
    }
    failure_policy(errors, spec, &path.child("podFailurePolicy").child("rules"));
    let replacement: &[&str] =
        if spec["podFailurePolicy"].is_null() { &["Failed", "TerminatingOrFailed"] } else { &["Failed"] };
    check::among(errors, &path.child("podReplacementPolicy"), &spec["podReplacementPolicy"], replacement);
    let at = path.child("template");
    pod_template::validate(errors, &spec["template"], &at);
    let at = at.child("spec").child("restartPolicy");
    match text(&spec["template"]["spec"]["restartPolicy"]) {
        "" | "Always" => errors.push(FieldError::required(&at, "valid values: \"OnFailure\", \"Never\"")),
        "Never" => {}
        "OnFailure" if spec["podFailurePolicy"].is_null() => {}
        "OnFailure" => {
            let why = "only \"Never\" is supported when podFailurePolicy is specified";
            errors.push(FieldError::invalid(&at, "OnFailure", why));
        }
        other => errors.push(FieldError::not_supported(&at, other, &["OnFailure", "Never"])),
    }
}

fn indexed(errors: &mut Errors, spec: &Value, path: &Path) {
    if spec["completions"].is_null() {
        errors.push(FieldError::required(&path.child("completions"), "when completion mode is Indexed"));
    }
    if count(&spec["parallelism"]) > INDEXED_PARALLELISM_MAX {
        let why = format!("must be less than or equal to {INDEXED_PARALLELISM_MAX} when completion mode is Indexed");
        errors.push(FieldError::invalid(&path.child("parallelism"), spec["parallelism"].clone(), why));
    }
    let (completions, failed) = (spec["completions"].as_i64(), spec["maxFailedIndexes"].as_i64());
    if let (Some(completions), Some(failed)) = (completions, failed)
        && failed > completions
    {
        let why = "must be less than or equal to completions";
        errors.push(FieldError::invalid(&path.child("maxFailedIndexes"), failed, why));
    }
    if !spec["successPolicy"].is_null() {
        let at = path.child("successPolicy").child("rules");
        let rules = len(&spec["successPolicy"]["rules"]);
        if rules == 0 {
            let why = "at least one rules must be specified when the successPolicy is specified";
            errors.push(FieldError::required(&at, why));
        } else if rules > RULES_MAX {
            errors.push(FieldError::too_many(&at, rules, RULES_MAX));
        }
        for (index, rule) in object::items(&spec["successPolicy"], "rules").enumerate() {
            success_rule(errors, rule, completions.unwrap_or(0), &at.index(index));
        }
    }
}

fn success_rule(errors: &mut Errors, rule: &Value, completions: i64, path: &Path) {
    let (wanted, indexes) = (&rule["succeededCount"], &rule["succeededIndexes"]);
    if wanted.is_null() && indexes.is_null() {
        let why = "at least one of succeededCount or succeededIndexes must be specified";
        errors.push(FieldError::required(path, why));
    }
    let mut total = None;
    if let Some(indexes) = indexes.as_str() {
        match count_indexes(indexes, completions) {
            Ok(number) => total = Some(number),
            Err(why) => {
                let why = format!("error parsing succeededIndexes: {why}");
                errors.push(FieldError::invalid(&path.child("succeededIndexes"), indexes, why));
            }
        }
    }
    let at = path.child("succeededCount");
    check::not_negative(errors, &at, wanted);
    if count(wanted) > completions {
        let why = format!("must be less than or equal to {completions} (the number of specified completions)");
        errors.push(FieldError::invalid(&at, wanted.clone(), why));
    }
    if let Some(total) = total.filter(|total| count(wanted) > *total) {
        let why = format!(
            "must be less than or equal to {total} (the number of indexes in the specified succeededIndexes field)"
        );
        errors.push(FieldError::invalid(&at, wanted.clone(), why));
    }
}

/// How many indexes `1,3-5` names.
fn count_indexes(text: &str, completions: i64) -> Result<i64, String> {
    let mut total = 0;
    let mut last = -1;
    for interval in text.split(',').filter(|_| !text.is_empty()) {
        let parts: Vec<&str> = interval.split('-').collect();
        let number = |part: &str| {
            part.parse::<i64>().map_err(|_| format!("cannot convert string to integer for index: {part:?}"))
        };
        let (first, end) = match parts[..] {
            [one] => (number(one)?, number(one)?),
            [first, end] => (number(first)?, number(end)?),
            _ => {
                return Err(format!(
                    "the fragment {interval:?} violates the requirement that an index interval can have at most two parts separated by '-'"
                ));
            }
        };
        if end >= completions {
            return Err(format!("too large index: {:?}", parts[parts.len() - 1]));
        }
        if first > end || parts.len() == 2 && first == end {
            return Err(format!("non-increasing order, previous: {first}, current: {end}"));
        }
        if first <= last {
            return Err(format!("non-increasing order, previous: {last}, current: {first}"));
        }
        total += end - first + 1;
        last = end;
    }
    Ok(total)
}

fn failure_policy(errors: &mut Errors, spec: &Value, at: &Path) {
    let policy = &spec["podFailurePolicy"];
    if len(&policy["rules"]) > RULES_MAX {
        errors.push(FieldError::too_many(at, len(&policy["rules"]), RULES_MAX));
    }
    for (index, rule) in object::items(policy, "rules").enumerate() {
        failure_rule(errors, spec, rule, &at.index(index));
    }
}

fn failure_rule(errors: &mut Errors, spec: &Value, rule: &Value, path: &Path) {
    const ACTIONS: &[&str] = &["Count", "FailIndex", "FailJob", "Ignore"];
    let at = path.child("action");
    match text(&rule["action"]) {
        "" => errors.push(FieldError::required(&at, format!("valid values: {ACTIONS:?}").replace(", ", " "))),
        "FailIndex" if spec["backoffLimitPerIndex"].is_null() => {
            errors.push(FieldError::invalid(&at, "FailIndex", "requires the backoffLimitPerIndex to be set"));
        }
        _ => check::among(errors, &at, &rule["action"], ACTIONS),
    }
    let (codes, conditions) = (rule["onExitCodes"].is_object(), len(&rule["onPodConditions"]) > 0);
    if codes {
        exit_codes(errors, spec, &rule["onExitCodes"], &path.child("onExitCodes"));
    }
    for (index, pattern) in object::items(rule, "onPodConditions").enumerate() {
        let path = path.child("onPodConditions").index(index);
        let kind = text(&pattern["type"]);
        check::problems(errors, &path.child("type"), kind, names::label_key(kind));
        check::among(errors, &path.child("status"), &pattern["status"], &["False", "True", "Unknown"]);
    }
    let why = match (codes, conditions) {
        (true, true) => "specifying both OnExitCodes and OnPodConditions is not supported",
        (false, false) => "specifying one of OnExitCodes and OnPodConditions is required",
        _ => return,
    };
    let mut error = FieldError::invalid(path, Value::Null, why);
    error.value = None;
    errors.push(error);
}

fn exit_codes(errors: &mut Errors, spec: &Value, codes: &Value, path: &Path) {
    let at = path.child("operator");
    match text(&codes["operator"]) {
        "" => errors.push(FieldError::required(&at, "valid values: [\"In\" \"NotIn\"]")),
        _ => check::among(errors, &at, &codes["operator"], &["In", "NotIn"]),
    }
    let template = &spec["template"]["spec"];
    let mut all = object::items(template, "containers").chain(object::items(template, "initContainers"));
    if let Some(name) = codes["containerName"].as_str()
        && !all.any(|container| container["name"] == name)
    {
        let why = "must be one of the container or initContainer names in the pod template";
        errors.push(FieldError::invalid(&path.child("containerName"), name, why));
    }
    let at = path.child("values");
    let values: Vec<i64> = object::items(codes, "values").map(count).collect();
    if values.is_empty() {
        errors.push(FieldError::invalid(&at, codes["values"].clone(), "at least one value is required"));
    } else if values.len() > EXIT_CODES_MAX {
        errors.push(FieldError::too_many(&at, values.len(), EXIT_CODES_MAX));
    }
    for (index, code) in values.iter().enumerate() {
        if *code == 0 && codes["operator"] == "In" {
            errors.push(FieldError::invalid(&at.index(index), 0, "must not be 0 for the In operator"));
        }
        if values[..index].contains(code) {
            errors.push(FieldError::duplicate(&at.index(index), *code));
        }
    }
    if !values.is_sorted() {
        errors.push(FieldError::invalid(&at, codes["values"].clone(), "must be ordered"));
    }
}

/// What is wrong with a change: a job that runs may be paused and paced, and little else.
pub(super) fn validate_update(new: &Value, old: &Value) -> Errors {
    let (is, was, path, mut errors) = (&new["spec"], &old["spec"], Path::new("spec"), Errors::new());
    let at = path.child("completions");
    if is["completionMode"] != "Indexed" || is["completions"].is_null() {
        check::immutable(&mut errors, &at, &is["completions"], &was["completions"]);
    } else if is["completions"] != was["completions"] && is["completions"] != is["parallelism"] {
        let why = "can only be modified in tandem with spec.parallelism";
        errors.push(FieldError::invalid(&at, is["completions"].clone(), why));
    }
    const FIXED: [&str; 6] =
        ["selector", "completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"];
    for key in FIXED {
        check::immutable(&mut errors, &path.child(key), &is[key], &was[key]);
    }
    // A suspended job that never started may still be told where its pods go (KEP-2926).
    let mut before = was["template"].clone();
    if was["suspend"] == true && old["status"]["startTime"].is_null() {
        for key in ["nodeSelector", "tolerations", "schedulingGates", "affinity"] {
            object::carry_over(&mut before["spec"], &is["template"]["spec"], key);
        }
        object::carry_over(&mut before, &is["template"], "metadata");
    }
    check::immutable(&mut errors, &path.child("template"), &is["template"], &before);
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_are_counted() {
        for (text, expected) in
            [("0", Ok(1)), ("0,2-4", Ok(4)), ("2-1", Err(())), ("1,1", Err(())), ("9", Err(())), ("a", Err(()))]
        {
            assert_eq!(count_indexes(text, 5).map_err(|_| ()), expected, "{text}");
        }
    }
}
