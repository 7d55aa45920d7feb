//! `kedge infer` as people call it: talks, pipes, figures.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::harness::assert_has;

/// The decoder that comes with the repository.
pub(crate) fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("images/demo-decoder/model")
}

/// A script of `tests/e2e/python`.
pub(crate) fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/python").join(name)
}

/// `kedge infer` with those arguments and that standard input: whether it was a success, its output and its errors.
fn infer(arguments: &[&str], input: &str) -> (bool, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kedge"));
    command.arg("infer").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // Who has read enough, or nothing, may have ended.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_prompt_is_answered_once_from_an_argument_and_from_a_pipe() {
    let demo = demo();
    let model = demo.to_str().unwrap();
    let (ok, piped, errors) = infer(&["run", model, "--temperature", "0", "--verbose"], "What is a pod?\n");
    assert!(ok && piped.ends_with(".\n"), "{piped}{errors}");
    assert_has(&piped, "smallest thing Kubernetes runs");
    assert_has(&errors, "tokens/s");
    let (ok, told, errors) = infer(&["run", "--temperature", "0", model, "What", "is a pod?"], "not read");
    assert_eq!((ok, told, errors.as_str()), (true, piped, ""));

    for (arguments, input, says) in [
        (&["run", model][..], "  \n", "the prompt is empty"),
        (&["run", model, "hi", "--temperature", "9"], "", "--temperature: must be from 0 to 2"),
        (&["run", "/nowhere", "hi"], "", "/nowhere"),
        (&["run"], "", "<MODEL>"),
        (&["bench", "--model", model, "--prompt-tokens", "5000"], "", "--prompt-tokens"),
        (&["bench", "--model", model, "--streams", "0"], "", "--streams: must be at least 1"),
        (&["--model", model], "", "--name"),
        (&["--name", "x", "run", model], "", "cannot be used with"),
    ] {
        let (ok, _, errors) = infer(arguments, input);
        assert!(!ok && errors.contains(says), "{arguments:?}: {errors}");
    }
}

#[test]
fn a_talk_on_a_terminal_goes_on_until_bye() {
    if !crate::harness::exists(Path::new("/usr/bin/python3")) {
        println!("skipped: this machine lacks python3");
        return;
    }
    let mut talk = Command::new("/usr/bin/python3");
    let output = talk.arg(script("talk.py")).arg(env!("CARGO_BIN_EXE_kedge")).arg(demo()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("everything was as it should be"), "{text}");
}

#[test]
fn figures_are_told_as_a_table_and_as_json() {
    let demo = demo();
    let bench = ["bench", "--model", demo.to_str().unwrap(), "--requests", "3", "--streams", "2"];
    let (ok, table, errors) = infer(&bench, "");
    assert!(ok && table.lines().count() == 10, "{table}{errors}");
    assert_has(&table, "FIRST TOKEN P99");
    let (_, json, errors) = infer(&[&bench[..], &["-o", "json"]].concat(), "");
    let found: Value = serde_json::from_str(&json).unwrap_or_else(|error| panic!("{error}: {json}{errors}"));
    assert_eq!((&found["requests"], &found["requests_cut"]), (&Value::from(3), &Value::from(0)));
    for figure in ["tokens_per_second", "prefill_tokens_per_second", "time_to_first_token_p99_seconds"] {
        assert!(found[figure].as_f64().unwrap() > 0.0, "{figure}: {json}");
    }
    assert!(found["memory_peak_bytes"].as_u64().unwrap() > 1 << 20);
}
