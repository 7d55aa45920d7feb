//! Hands a batch of rules to the kernel by way of the program `nft`, as one transaction: all of it or nothing.

use std::io::{self, Write};
use std::process::{Command, Stdio};

use crate::{Namespace, NetworkError};

/// Applies `batch` (the language of `nft -f`) inside `namespace`.
pub async fn apply(namespace: &Namespace, batch: String) -> Result<(), NetworkError> {
    let namespace = namespace.clone();
    let task = tokio::task::spawn_blocking(move || namespace.run(|| run(&batch)));
    task.await.map_err(|e| NetworkError::Nft(format!("the task that runs it ended: {e}")))??
}

fn run(batch: &str) -> Result<(), NetworkError> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| NetworkError::Nft(format!("cannot start the program: {e} (package nftables)")))?;
    let mut input = child.stdin.take().expect("stdin was asked for");
    let written = input.write_all(batch.as_bytes());
    drop(input);
    let output = child.wait_with_output().map_err(|e| NetworkError::Nft(format!("wait for the program: {e}")))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(NetworkError::Nft(format!("{}: {}", output.status, first_lines(&said))));
    }
    // A program that read enough and closed is no fault; it said so by its status.
    written
        .or_else(|e| if e.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(e) })
        .map_err(|e| NetworkError::Nft(format!("write the batch: {e}")))
}

/// The complaint is in the first lines; a batch of thousands can draw thousands.
fn first_lines(said: &str) -> String {
    said.lines().take(6).map(str::trim).collect::<Vec<_>>().join("; ")
}
