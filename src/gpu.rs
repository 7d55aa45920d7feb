//! Whether models can compute on a GPU of this machine, asked in a process of its own: a driver takes memory, and may
//! take the process that opened it with it.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use kedge_node::agent::Gpu;
use serde::Deserialize;
use tokio::process::Command;
use tokio::sync::watch;

/// A driver that wakes its devices takes seconds.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// One line of `kedge infer devices -o json`.
#[derive(Deserialize)]
struct Candidate {
    device: String,
    usable: bool,
    description: String,
}

/// Asks once; none until the answer is there.
pub(crate) fn look() -> watch::Receiver<Option<Gpu>> {
    let (sender, receiver) = watch::channel(None);
    tokio::spawn(async move {
        let gpu = match ask().await {
            Ok(gpu) => gpu,
            Err(error) => Gpu { usable: false, words: format!("kedge infer devices: {error:#}") },
        };
        tracing::info!(usable = gpu.usable, gpu = gpu.words, "looked for a GPU");
        // Nobody listens any more when the node has ended.
        let _ = sender.send(Some(gpu));
    });
    receiver
}

async fn ask() -> Result<Gpu> {
    let mut command = Command::new(std::env::current_exe().context("cannot tell which program this is")?);
    command.args(["infer", "devices", "-o", "json"]).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(ANSWER_MAX, command.output());
    let output = output.await.context("no answer within a minute")?.context("cannot be run")?;
    if !output.status.success() {
        bail!("ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    parse(&output.stdout)
}

fn parse(text: &[u8]) -> Result<Gpu> {
    let all: Vec<Candidate> = serde_json::from_slice(text).context("said what cannot be read")?;
    let gpu = all.into_iter().find(|candidate| candidate.device != "cpu").context("said nothing of a GPU")?;
    Ok(Gpu { usable: gpu.usable, words: gpu.description })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_a_gpu_is_found() {
        let said = br#"[{"device":"cuda","usable":false,"description":"no driver"},{"device":"cpu","usable":true,"description":"x"}]"#;
        assert_eq!(parse(said).unwrap(), Gpu { usable: false, words: "no driver".into() });
        assert!(parse(b"[]").is_err() && parse(b"{").is_err());
    }
}
