//! `kedge`: one program, many verbs. This file reads the command line and hands over; each role builds its parts,
//! runs them and drains them in a file of its own.

mod cli;
mod server;
mod settings;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let arguments = cli::Cli::parse();
    match cli::run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line that says what was attempted and why it failed, down to the cause.
            eprintln!("kedge: {error:#}");
            ExitCode::FAILURE
        }
    }
}
