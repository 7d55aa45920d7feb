//! Models in a server: the controller that takes them in, and the image that serves them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use async_trait::async_trait;
use clap::Subcommand;
use kedge_client::Context as ClientContext;
use kedge_controllers::{Serving, ServingImage};
use kedge_engine::EngineError;
use kedge_fetch::Fetcher;
use kedge_formats::FormatError;
use kedge_images::OwnImage;
use kedge_models::{ModelController, ModelStore, SitesOfModels, Unfit};
use kedge_runtimes::Layout;
use tokio::sync::OnceCell;

use crate::node::RuntimeSlot;
use crate::output::say;

/// The repository that the image of this program is named in; nothing is ever pulled from there.
const REPOSITORY: &str = "kedge.dev/infer";

/// What can be asked about models without a server.
#[derive(Debug, Subcommand)]
pub(crate) enum ModelVerb {
    /// Print the digest of the model in a folder
    #[command(after_help = "Examples:\n  kedge model digest ./all-MiniLM-L6-v2")]
    Digest {
        /// The folder
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
}

/// Answers it.
pub(crate) fn run(verb: ModelVerb) -> Result<()> {
    match verb {
        ModelVerb::Digest { folder } => say!("{}", kedge_models::read_folder(&folder)?.digest())?,
    }
    Ok(())
}

/// Starts the controllers of `Model`.
pub(crate) fn start(context: &ClientContext, folders: &Layout) -> Result<()> {
    let world = &context.world;
    let store = ModelStore::open(&folders.data_dir, world.random.clone())?;
    store.clean().context("cannot clear what is left of models")?;
    let models = folders.data_dir.join("models");
    world.disk.create_dir_all(&models)?;
    let inspect = |path: &Path| kedge_engine::inspect(path).map_err(unfit);
    let controller = ModelController::new(store, models, Fetcher::new(world.net.clone()), Arc::new(inspect));
    tokio::spawn(kedge_client::run(controller, context.clone()));
    tokio::spawn(kedge_client::run(SitesOfModels, context.clone()));
    Ok(())
}

/// Whether files are broken, or of a kind that the engine does not have.
fn unfit(error: EngineError) -> Unfit {
    match error {
        EngineError::Read { path, source } | EngineError::Format(FormatError::Read { path, source }) => {
            Unfit::Broken(format!("{}: {source}", path.display()))
        }
        EngineError::File { .. } | EngineError::Format(FormatError::File { .. }) => Unfit::Broken(error.to_string()),
        other => Unfit::Unsupported(other.to_string()),
    }
}

/// How long a node takes to come up, mostly: so long nothing is said of it, since what was served before still is.
const NODE_START: Duration = Duration::from_secs(5);

/// What serves models on this node, if this server runs one.
pub(crate) fn serving(folders: &Layout, node: Option<RuntimeSlot>) -> Serving {
    let image = Image { node, made: OnceCell::new() };
    Serving { model_store: folders.data_dir.join("model-store"), image: Arc::new(image) }
}

/// The image of this program, made when first needed.
struct Image {
    node: Option<RuntimeSlot>,
    made: OnceCell<Arc<OwnImage>>,
}

#[async_trait]
impl ServingImage for Image {
    async fn ensure(&self) -> Result<String, String> {
        let node =
            self.node.as_ref().ok_or("this server runs no node (--disable-agent), and models are served on nodes")?;
        let runtime = node.within(NODE_START).await.ok_or("the node is not up yet")?;
        let make = || async {
            let made = tokio::task::spawn_blocking(|| OwnImage::of_this_program(REPOSITORY)).await;
            made.expect("reading this program does not panic").map(Arc::new).map_err(|error| error.to_string())
        };
        let image = self.made.get_or_try_init(make).await?;
        let failed = |error| format!("the image that serves models cannot be installed: {error}");
        if runtime.resolve_image(image.name()).await.map_err(failed)?.is_none() {
            runtime.install_image(image.plan(), image.clone()).await.map_err(failed)?;
        }
        Ok(image.name().to_owned())
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "the test writes model files")]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_cut_are_broken_and_not_of_another_kind() {
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("images/demo-decoder/model");
        for (file, kept) in
            [("model.safetensors", 5_000_000), ("model.safetensors", 4), ("demo-decoder-Q8_0.gguf", 3_000_000)]
        {
            let folder = tempfile::tempdir().unwrap();
            let is_gguf = file.ends_with(".gguf");
            for name in ["config.json", "tokenizer.json"].into_iter().filter(|_| !is_gguf) {
                std::fs::copy(demo.join(name), folder.path().join(name)).unwrap();
            }
            let bytes = std::fs::read(demo.join(file)).unwrap();
            std::fs::write(folder.path().join(file), &bytes[..kept]).unwrap();
            let told = kedge_engine::inspect(folder.path()).map_err(unfit);
            assert!(matches!(&told, Err(Unfit::Broken(reason)) if reason.contains(file)), "{told:?}");
        }
    }
}
