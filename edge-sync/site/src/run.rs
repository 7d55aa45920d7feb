//! Puts the site's part of a server together.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use kedge_client::Context;
use kedge_link::{Key, Report, Saved};
use kedge_models::{Digest, ModelStore};
use kedge_wire::Assignment;
use kedge_wire::report::ABOUT;
use kedge_world::World;
use tokio::sync::{mpsc, watch};

use crate::about::about;
use crate::identity::{IdentityError, SiteIdentity};
use crate::link::{Link, REPORTS_MAX, StateError, load};
use crate::models::Models;
use crate::pull::Puller;

/// What the site's part needs of the server.
#[derive(Clone)]
pub struct Site {
    /// The outside.
    pub world: World,
    /// The server's own copies, which its other controllers share.
    pub context: Context,
    /// Contents of models.
    pub store: ModelStore,
    /// Where the identity lies.
    pub data_dir: PathBuf,
}

/// Why the site's part does not run.
#[derive(Debug, thiserror::Error)]
pub enum SiteError {
    /// The identity cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// What is held cannot be read.
    #[error(transparent)]
    State(#[from] StateError),
}

/// Runs for as long as the cluster has the identity that it has now; returns at once when it has none. To be dropped
/// and called again when the identity changes.
pub async fn run(site: Site) -> Result<(), SiteError> {
    let Some(identity) = SiteIdentity::load(&*site.world.disk, &site.data_dir)? else { return Ok(()) };
    let saved = load(&site.world, &site.data_dir)?;
    let puller = Puller::new(site.world.clone(), site.store, &site.data_dir);
    puller.clean(&manifests(&saved)).map_err(IdentityError::from)?;
    let (held_sender, held) = watch::channel(Arc::new(saved.clone()));
    let (channel_sender, channel) = watch::channel(None);
    let (reports, waiting) = mpsc::channel(REPORTS_MAX);
    let models = Models {
        site: identity.site.clone(),
        signing_key: identity.signing_key.clone(),
        puller,
        held,
        channel,
        reports: reports.clone(),
        pulls: Models::pulls(),
        progress: Default::default(),
    };
    let link = Link::new(site.world, site.data_dir, identity, saved, held_sender, channel_sender, waiting);
    tokio::select! {
        () = link.run() => {}
        () = kedge_client::run(models, site.context.clone()) => {}
        () = tell_about(&site.context, reports) => {}
    }
    Ok(())
}

/// The manifests of what is held, as their files are named.
fn manifests(saved: &Saved) -> BTreeSet<String> {
    let assigned = saved.held.values().filter_map(|held| Assignment::unverified(&held.body));
    assigned.filter_map(|assigned| Some(Digest::parse(&assigned.digest)?.hex().to_owned())).collect()
}

/// Reports the site itself, whenever its nodes change.
async fn tell_about(context: &Context, reports: mpsc::Sender<(Key, Report)>) {
    let nodes = context.informers.of::<Node>();
    let mut changes = nodes.subscribe();
    nodes.synced().await;
    loop {
        while changes.try_recv().is_ok() {}
        let text = serde_json::to_string(&about(&nodes.list())).expect("plain data");
        if reports.send((Key::new(ABOUT), Some(text.into()))).await.is_err() || changes.recv().await.is_none() {
            return;
        }
    }
}
