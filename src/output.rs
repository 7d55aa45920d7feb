//! What a verb finds, on standard output: a full disk or a reader that left is an error of the verb, with its exit code.
//! One that takes things away goes on all the same, and ends with the error.

use std::fmt::Arguments;
use std::io::{self, Write};
use std::sync::OnceLock;

use anyhow::{Context, Result};

/// Writes a line as `println!` does, and gives an error where that panics.
macro_rules! say {
    ($($text:tt)*) => {
        $crate::output::write(format_args!("{}\n", format_args!($($text)*)))
    };
}
pub(crate) use say;

/// The same for work that is done whether or not somebody hears of it: the error comes out of [`told`].
macro_rules! tell {
    ($($text:tt)*) => {
        $crate::output::attempt(format_args!("{}\n", format_args!($($text)*)))
    };
}
pub(crate) use tell;

static UNTOLD: OnceLock<io::Error> = OnceLock::new();

/// See [`tell!`].
pub(crate) fn attempt(text: Arguments<'_>) {
    if let Err(error) = print(text) {
        // The first is enough.
        let _ = UNTOLD.set(error);
    }
}

/// The first error of [`tell!`], once all is done.
pub(crate) fn told() -> Result<()> {
    UNTOLD.get().map_or(Ok(()), |error| Err(io::Error::new(error.kind(), error.to_string())).context(WRITING))
}

const WRITING: &str = "writing to standard output";

/// Writes a text to standard output.
pub(crate) fn write(text: Arguments<'_>) -> Result<()> {
    print(text).context(WRITING)
}

fn print(text: Arguments<'_>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_fmt(text)?;
    out.flush()
}
