//! On what a model computes: the device that is wanted, what there is, and why it is another.
//!
//! What must hold: whoever could have had a GPU and has none is told why, by the log and at `/metrics`.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use kedge_cuda::{Cuda, Reason};
use kedge_engine::{Backend, Capabilities, Cpu, Decoder, DecoderOptions, Encoder, EngineError, WithSpare};
use serde_json::{Value, json};

use crate::ServeError;
use crate::server::Model;

/// What shall compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The first NVIDIA device that takes the kernels, else the processor; which also goes on when the device is lost.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// An NVIDIA device, or nothing.
    Cuda,
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda),
            _ => Err("auto, cpu and cuda are the devices".into()),
        }
    }
}

/// On what a model computes.
#[derive(Clone, Debug, Default)]
pub struct Placement {
    /// What shall compute.
    pub device: Device,
    /// Threads; as many as the process may use when absent.
    pub threads: Option<usize>,
    /// Where weights in the order that a processor wants are kept for the next start; in memory when absent.
    pub cache_dir: Option<PathBuf>,
}

/// A model, open.
pub struct Opened {
    /// The model.
    pub model: Model,
    /// What it is on.
    pub on: Capabilities,
    /// Why it is not on a GPU, where one was wanted or would have been taken.
    pub no_gpu: Option<String>,
}

/// Opens what lies at `path`: an encoder where its settings say so, else a decoder, which is run as `options` say.
pub fn open(path: &Path, placement: &Placement, options: DecoderOptions) -> Result<Opened, ServeError> {
    let (backend, absent) = backend(placement)?;
    let model = if kedge_engine::is_encoder(path) {
        Model::Encoder(Arc::new(Encoder::open(path, &*backend)?))
    } else {
        let named = |error| match error {
            EngineError::Pages { .. } => ServeError::Flag { flag: "--kv-cache-memory", reason: error.to_string() },
            other => other.into(),
        };
        Model::Decoder(Arc::new(Decoder::open(path, &*backend, options).map_err(named)?))
    };
    // Most boxes have none, and know it.
    if let Some(reason @ Reason::NoDriver) = &absent {
        tracing::info!(%reason, "computing on the processor");
    }
    let (on, moved) = model.on();
    Ok(Opened { model, on, no_gpu: moved.or(absent.map(|reason| reason.to_string())) })
}

/// The backend that is wanted, and why it is no GPU.
fn backend(placement: &Placement) -> Result<(Box<dyn Backend>, Option<Reason>), ServeError> {
    let cpu =
        || -> Result<Cpu, ServeError> { Ok(Cpu::new(placement.threads)?.keep_packed(placement.cache_dir.clone())) };
    match placement.device {
        Device::Cpu => Ok((Box::new(cpu()?), None)),
        Device::Cuda => Ok((Box::new(Cuda::probe().map_err(|reason| ServeError::NoGpu(reason.to_string()))?), None)),
        Device::Auto => match Cuda::probe() {
            Ok(cuda) => Ok((Box::new(WithSpare::new(Box::new(cuda), Arc::new(cpu()?))), None)),
            Err(reason) => {
                if !matches!(reason, Reason::NoDriver) {
                    tracing::warn!(%reason, "the GPU cannot be used; computing on the processor");
                }
                Ok((Box::new(cpu()?), Some(reason)))
            }
        },
    }
}

/// One thing that could compute here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// `cuda` or `cpu`.
    pub device: &'static str,
    /// Whether it can be used.
    pub usable: bool,
    /// What it is, or why it cannot be used.
    pub description: String,
}

impl Candidate {
    /// As JSON.
    pub fn to_json(&self) -> Value {
        json!({ "device": self.device, "usable": self.usable, "description": self.description })
    }
}

/// What could compute here, the best first.
pub fn candidates() -> Result<Vec<Candidate>, ServeError> {
    let cuda = match Cuda::probe() {
        Ok(cuda) => Candidate { device: "cuda", usable: true, description: describe(&cuda) },
        Err(reason) => Candidate { device: "cuda", usable: false, description: reason.to_string() },
    };
    let Capabilities { features, threads, pinned, .. } = Cpu::new(None)?.capabilities();
    let places = if pinned { ", each on a processor of its own" } else { "" };
    let description = format!("{features}, {threads} threads{places}");
    Ok(vec![cuda, Candidate { device: "cpu", usable: true, description }])
}

fn describe(cuda: &Cuda) -> String {
    let facts = cuda.facts();
    let ((major, minor), driver) = (facts.capability, facts.driver);
    format!("{}, compute capability {major}.{minor}, driver for CUDA {}.{}", facts.name, driver.0, driver.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_used_says_why() {
        let all = candidates().unwrap();
        assert_eq!(all.iter().map(|one| one.device).collect::<Vec<_>>(), ["cuda", "cpu"]);
        assert!(all.iter().all(|one| !one.description.is_empty()) && all[1].usable);
        let wanted = Placement { device: Device::Cuda, ..Placement::default() };
        match backend(&wanted) {
            Ok(_) => assert!(all[0].usable),
            Err(error) => assert_eq!(error.to_string(), format!("no GPU can be used: {}", all[0].description)),
        }
    }
}
