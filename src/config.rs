//! The configuration file: the flags of a role as YAML, as k3s has it (`pkg/configfilearg`). The command line wins.
//!
//! ```yaml
//! data-dir: /srv/kedge
//! tls-san: [shop-1.example.org, 192.0.2.7]
//! disable-agent: true
//! ```

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{ArgAction, Command, CommandFactory};
use kedge_world::World;
use serde_yaml_ng::Value;

use crate::cli::Cli;

/// Read when it exists and no other is named.
const USUAL: &str = "/etc/kedge/config.yaml";
/// Far above any list of flags.
const BYTES_MAX: usize = 1 << 20;

/// The arguments with those from the configuration file put before them, so that the command line's come last and win.
pub(crate) fn expand(world: &World, arguments: Vec<OsString>) -> Result<Vec<OsString>> {
    let Some(verb) = arguments.get(1).and_then(|verb| verb.to_str()).filter(|verb| *verb == "server") else {
        return Ok(arguments);
    };
    let path = match named(&arguments) {
        Some(path) => path,
        None if world.disk.open(Path::new(USUAL), false).is_ok() => PathBuf::from(USUAL),
        None => return Ok(arguments),
    };
    let text = world.disk.read(&path).context("cannot read the configuration (--config)")?;
    let command = Cli::command();
    let role = command.find_subcommand(verb).expect("the verb exists");
    let flags = flags(role, &text).with_context(|| format!("the configuration {}", path.display()))?;
    let mut all = arguments[..2].to_vec();
    all.extend(flags.into_iter().map(OsString::from));
    all.extend_from_slice(&arguments[2..]);
    Ok(all)
}

/// The value of `--config` on the command line.
fn named(arguments: &[OsString]) -> Option<PathBuf> {
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let text = argument.to_string_lossy();
        if text == "--config" {
            return rest.next().map(PathBuf::from);
        }
        if let Some(value) = text.strip_prefix("--config=") {
            return Some(PathBuf::from(value));
        }
    }
    None
}

/// The flags that a configuration stands for.
fn flags(role: &Command, text: &[u8]) -> Result<Vec<String>> {
    if text.len() > BYTES_MAX {
        bail!("is larger than {BYTES_MAX} bytes");
    }
    let value: Value = serde_yaml_ng::from_slice(text).context("is not YAML")?;
    let mapping = match value {
        Value::Null => return Ok(Vec::new()),
        Value::Mapping(mapping) => mapping,
        _ => bail!("is not a mapping of flags to values"),
    };
    let mut flags = Vec::new();
    for (key, value) in mapping {
        let Value::String(key) = key else { bail!("has the key {key:?}, which is no flag's name") };
        let argument = role.get_arguments().find(|argument| argument.get_long() == Some(key.as_str()));
        let Some(argument) = argument.filter(|_| key != "config" && key != "help") else {
            bail!("has the key {key:?}, which is no flag of {}", role.get_name());
        };
        let takes_value = argument.get_action().takes_values();
        match value {
            Value::Bool(on) if !takes_value => flags.extend(on.then(|| format!("--{key}"))),
            _ if !takes_value => bail!("{key}: must be true or false"),
            Value::Sequence(_) if !matches!(argument.get_action(), ArgAction::Append) => {
                bail!("{key}: takes one value, not a list")
            }
            Value::Sequence(items) => {
                for item in items {
                    flags.push(format!("--{key}={}", scalar(&key, &item)?));
                }
            }
            other => flags.push(format!("--{key}={}", scalar(&key, &other)?)),
        }
    }
    Ok(flags)
}

fn scalar(key: &str, value: &Value) -> Result<String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(on) => Ok(on.to_string()),
        _ => bail!("{key}: must be a text, a number, or a list of those"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<String>, String> {
        let command = Cli::command();
        flags(command.find_subcommand("server").unwrap(), text.as_bytes()).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn keys_are_flags() {
        let text = "data-dir: /d\nhttps-listen-port: 7443\ntls-san: [a, b]\ndisable-agent: true\n";
        let expected = ["--data-dir=/d", "--https-listen-port=7443", "--tls-san=a", "--tls-san=b", "--disable-agent"];
        assert_eq!(read(text).unwrap(), expected);
        assert_eq!(read("disable-agent: false").unwrap(), [""; 0]);
        assert_eq!(read("").unwrap(), [""; 0]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, named) in [
            ("no-such: 1", "no-such"),
            ("config: x", "config"),
            ("[a]", "mapping"),
            ("a: [", "YAML"),
            ("disable-agent: 1", "disable-agent"),
            ("data-dir: {a: b}", "data-dir"),
            ("data-dir: [a]", "not a list"),
            ("data-dir: a\ndata-dir: b", "data-dir"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn the_command_line_wins() {
        use clap::Parser;
        let arguments = ["kedge", "server", "--node-name=file", "--node-name", "line"];
        assert!(format!("{:?}", Cli::try_parse_from(arguments).unwrap()).contains("line"));
    }
}
