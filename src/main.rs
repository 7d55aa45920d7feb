//! `kedge`: one program, many verbs. This file reads the command line and hands over; each role builds its parts,
//! runs them and drains them in a file of its own.

mod address;
mod check;
mod cli;
mod config;
mod folders;
mod gpu;
mod hub;
mod images;
mod infer;
mod killall;
mod lock;
mod logs;
mod models;
mod node;
mod notify;
mod output;
mod server;
mod service;
mod settings;
mod site;
mod uninstall;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use kedge_runtimes::logger::LOGGER_VERB;
use kedge_serve::TEMPLATE_VERB;
use kedge_world::World;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    // Started by containerd, once a container, and by who serves a model: no command line for people, no runtime, little
    // memory.
    match arguments.next() {
        Some(verb) if verb == LOGGER_VERB => {
            let rest: Vec<_> = arguments.collect();
            return ended(kedge_runtimes::logger_main(&rest).map_err(Into::into));
        }
        Some(verb) if verb == TEMPLATE_VERB => return ended(kedge_serve::template_main().map_err(Into::into)),
        _ => {}
    }
    let arguments = config::expand(&World::real(), std::env::args_os().collect());
    let done = arguments.and_then(|arguments| cli::run(cli::Cli::parse_from(arguments)));
    ended(done.and_then(|()| output::told()))
}

fn ended(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Where nobody can be told, the exit code still says it.
            let _ = writeln!(std::io::stderr(), "kedge: {}", in_one_line(&error));
            ExitCode::FAILURE
        }
    }
}

/// What was attempted and why it failed, down to the cause; a cause that the sentence before ends with is not repeated.
fn in_one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if line.is_empty() {
            line = cause;
        } else if !line.ends_with(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    #[test]
    fn a_cause_is_told_once() {
        let busy = std::io::Error::other("busy");
        let error = Err::<(), _>(anyhow::Error::new(busy).context("remove x: busy")).context("killall").unwrap_err();
        assert_eq!(super::in_one_line(&error), "killall: remove x: busy");
        assert_eq!(super::in_one_line(&anyhow!("a").context("b")), "b: a");
    }
}
