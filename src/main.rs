//! `kedge`: one program, many verbs. This file reads the command line and hands over; each role builds its parts,
//! runs them and drains them in a file of its own.

mod cli;
mod folders;
mod images;
mod logs;
mod models;
mod node;
mod server;
mod settings;

use std::process::ExitCode;

use clap::Parser;
use kedge_runtimes::logger::LOGGER_VERB;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|verb| verb == LOGGER_VERB) {
        // Started by containerd, once a container: no command line for people, no runtime, little memory.
        let rest: Vec<_> = arguments.collect();
        return ended(kedge_runtimes::logger_main(&rest).map_err(Into::into));
    }
    ended(cli::run(cli::Cli::parse()))
}

fn ended(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line that says what was attempted and why it failed, down to the cause.
            eprintln!("kedge: {error:#}");
            ExitCode::FAILURE
        }
    }
}
