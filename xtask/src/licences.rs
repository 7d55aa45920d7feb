//! `cargo xtask licences`: every dependency may be used in an Apache-2.0 program, and there is one crypto library.

use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Licences that suit Apache-2.0.
const ALLOWED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-1-Clause",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Crates that must not be there, with the reason.
const REFUSED: &[(&str, &str)] = &[
    ("aws-lc-rs", "ring is the only crypto provider: two of them double the binary and need cmake"),
    ("openssl", "TLS is rustls on ring"),
    ("protobuf", "its 2.x overflows the stack on hostile input; ours is prost"),
];

/// Fails with every dependency that may not be there.
pub(crate) fn check() -> Result<()> {
    let output = Command::new("cargo").args(["metadata", "--format-version=1", "--locked"]).output();
    let output = output.context("cannot run cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    }
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().context("cargo metadata lists packages")?;
    let mut wrong = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let licence = package["license"].as_str().unwrap_or("none stated");
        if !is_allowed(licence) {
            wrong.push(format!("{name}: licence {licence}"));
        }
        if let Some((_, why)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
            wrong.push(format!("{name}: {why}"));
        }
    }
    if !wrong.is_empty() {
        bail!("these dependencies may not be used:\n{}", wrong.join("\n"));
    }
    println!("{} packages, all with licences that suit Apache-2.0", packages.len());
    Ok(())
}

/// Whether an SPDX expression can be met with allowed licences alone. (Parentheses only group `OR`s.)
fn is_allowed(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ");
    split(&expression, " AND ").iter().all(|part| {
        let part = part.trim().trim_start_matches('(').trim_end_matches(')');
        part.split(" OR ").any(|one| ALLOWED.contains(&one.trim().trim_matches(['(', ')'])))
    })
}

/// Splits at `separator` outside parentheses.
fn split<'a>(text: &'a str, separator: &str) -> Vec<&'a str> {
    let (mut parts, mut depth, mut begin) = (Vec::new(), 0, 0);
    for (at, letter) in text.char_indices() {
        match letter {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ if depth == 0 && text[at..].starts_with(separator) => {
                parts.push(&text[begin..at]);
                begin = at + separator.len();
            }
            _ => {}
        }
    }
    parts.push(&text[begin..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_met_or_not() {
        let cases = [
            ("MIT", true),
            ("MIT OR Apache-2.0", true),
            ("MIT/Apache-2.0", true),
            ("GPL-3.0-or-later", false),
            ("GPL-2.0 OR MIT", true),
            ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
            ("MIT AND GPL-2.0", false),
            ("Apache-2.0 WITH LLVM-exception OR MIT", true),
            ("none stated", false),
        ];
        for (expression, expected) in cases {
            assert_eq!(is_allowed(expression), expected, "{expression}");
        }
    }
}
