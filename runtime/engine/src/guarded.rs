//! Other people's code on what models say.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs what parses or runs a part of a model in a library of others, where a panic is what that library has instead of an
/// error (fuzzing found some in tokenizers and minijinja); its words are the error. What it may leave half done is dropped
/// or only read.
pub(crate) fn guarded<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        format!("the library that reads it gave up: {}", text.unwrap_or("no reason is known"))
    })
}
