//! What a verb finds, on standard output: a full disk or a reader that left is an error of the verb, with its exit code.

use std::fmt::Arguments;
use std::io::{self, Write};

use anyhow::{Context, Result};

/// Writes a line as `println!` does, and gives an error where that panics.
macro_rules! say {
    ($($text:tt)*) => {
        $crate::output::write(format_args!("{}\n", format_args!($($text)*)))
    };
}
pub(crate) use say;

/// Writes a text to standard output.
pub(crate) fn write(text: Arguments<'_>) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_fmt(text).and_then(|()| out.flush()).context("writing to standard output")
}
