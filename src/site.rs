//! `kedge site`: tokens at a hub, joining and leaving at a site; and the site's part of a server.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use clap::{Args, Subcommand};
use kedge_client::Context as ClientContext;
use kedge_hub::{HubKeys, Invitation};
use kedge_models::ModelStore;
use kedge_runtimes::Layout;
use kedge_schema::names::{label_key, label_value};
use kedge_site::{Joined, Site, SiteIdentity};
use kedge_world::World;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::sync::watch;

use crate::folders;
use crate::output::say;
use crate::settings::DATA_DIR;

/// What can be done about sites.
#[derive(Debug, Subcommand)]
pub(crate) enum SiteVerb {
    /// Tokens by which other clusters become sites of this one (at a hub)
    #[command(subcommand)]
    Token(TokenVerb),
    /// Become a site of a hub; the server of this data directory notices, or does so when it starts
    #[command(
        after_help = "Examples:\n  kedge site join --hub https://hub.example:6445 --token K10...\n\n  # The token not on the command line, where others see it\n  KEDGE_SITE_TOKEN=K10... kedge site join --hub https://hub.example:6445"
    )]
    Join(JoinFlags),
    /// Be a site no longer; models that came from the hub stay as they are
    #[command(after_help = "Examples:\n  kedge site leave\n  kedge site leave --data-dir /srv/try")]
    Leave {
        /// Data directory of this cluster's server
        #[arg(long, value_name = "DIR", default_value = DATA_DIR)]
        data_dir: PathBuf,
    },
}

/// What can be done with tokens.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenVerb {
    /// Make a token that one cluster can use once, and print it
    #[command(
        after_help = "Examples:\n  kedge site token create\n  kedge site token create --name shop-1 --label city=bonn --ttl 1h \\\n    --hub-url https://hub.example:6445"
    )]
    Create(TokenFlags),
}

/// Settings of `kedge site token create`.
#[derive(Args, Debug)]
pub(crate) struct TokenFlags {
    /// Name of the site (default: one that is made up)
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// A label that the Site begins with; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
    /// How long the token can be used
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = kedge_hub::parse_lasting)]
    ttl: kedge_hub::Lasting,
    /// Address at which the site reaches this hub, for the command that is shown
    #[arg(long, value_name = "URL", default_value = "https://HOST:6445", value_parser = hub_url)]
    hub_url: String,
    /// Data directory of the hub and its server
    #[arg(long, value_name = "DIR", default_value = DATA_DIR)]
    data_dir: PathBuf,
}

/// Settings of `kedge site join`.
#[derive(Args, Debug)]
pub(crate) struct JoinFlags {
    /// Address of the hub: https://HOST:PORT
    #[arg(long, value_name = "URL")]
    hub: String,
    /// The token that `kedge site token create` printed there
    #[arg(long, value_name = "TOKEN", env = "KEDGE_SITE_TOKEN", hide_env_values = true)]
    token: String,
    /// Data directory of this cluster's server
    #[arg(long, value_name = "DIR", default_value = DATA_DIR)]
    data_dir: PathBuf,
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is no label; write KEY=VALUE"))?;
    let wrong = label_key(key).into_iter().chain(label_value(value)).next();
    wrong.map_or(Ok((key.to_owned(), value.to_owned())), |why| Err(format!("{text:?} is no label: {why}")))
}

/// The address of a hub, as the site that joins will read it.
fn hub_url(text: &str) -> Result<String, String> {
    kedge_site::Address::parse(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

/// Does it.
pub(crate) async fn run(verb: SiteVerb) -> Result<()> {
    let world = World::real();
    match verb {
        SiteVerb::Token(TokenVerb::Create(flags)) => create_token(&world, flags).await,
        SiteVerb::Join(JoinFlags { hub, token, data_dir }) => {
            let data_dir = folders::absolute(&data_dir)?;
            kedge_site::Address::parse(&hub)?;
            // A token is worth one site: it is not spent on a directory that no cluster is in.
            folders::api(&world, &data_dir)?;
            match kedge_site::join(&world, &data_dir, &hub, &token).await? {
                Joined::Now(site) => say!("joined as site {site}")?,
                Joined::Before(site) => say!("already site {site} of this hub; the token was not used")?,
            }
            Ok(())
        }
        SiteVerb::Leave { data_dir } => {
            match kedge_site::leave(&world, &folders::absolute(&data_dir)?)? {
                Some(site) => say!("left the hub (site {site}); models that came from it stay")?,
                None => say!("this cluster is no site")?,
            }
            Ok(())
        }
    }
}

async fn create_token(world: &World, flags: TokenFlags) -> Result<()> {
    let data_dir = folders::absolute(&flags.data_dir)?;
    let api = folders::api(world, &data_dir)?;
    let authority = HubKeys::authority_hash_of(world, &kedge_hub::folder(&data_dir))?;
    let client = kedge_hub::connect(world, &data_dir, &api, kedge_hub::As::Administrator)?;
    let labels: BTreeMap<String, String> = flags.label.into_iter().collect();
    let invitation = Invitation { site: flags.name, labels, lasts: flags.ttl.0 };
    let (token, site) = kedge_hub::create_token(world, &client, authority, &invitation).await?;
    say!("{token}")?;
    eprintln!("A cluster becomes the site {site} with:\n  kedge site join --hub {} --token {token}", flags.hub_url);
    Ok(())
}

/// Starts the site's part of a server: nothing until the cluster joins a hub, then its connection.
pub(crate) fn start(context: &ClientContext, folders: &Layout) -> Result<()> {
    let world = context.world.clone();
    let store = ModelStore::open(&folders.data_dir, world.random.clone())?;
    let site = Site { world, context: context.clone(), store, data_dir: folders.data_dir.clone() };
    site.world.disk.create_dir_all(&kedge_site::folder(&site.data_dir))?;
    let changes = watch_folder(&kedge_site::folder(&site.data_dir))?;
    tokio::spawn(supervise(site, changes));
    Ok(())
}

/// Runs the site's part, and again whenever the cluster joins or leaves.
async fn supervise(site: Site, mut changes: watch::Receiver<()>) {
    loop {
        changes.mark_unchanged();
        let current = joined(&site);
        tokio::select! {
            ended = kedge_site::run(site.clone()) => {
                if let Err(error) = ended {
                    tracing::error!(error = format!("{:#}", anyhow!(error)), "the connection to the hub cannot be made");
                }
                // Nothing runs: whatever changes in the folder is a reason to look again.
                if changes.changed().await.is_err() {
                    return;
                }
            }
            () = becomes_another(&site, &current, changes.clone()) => tracing::info!("this cluster has joined or left a hub"),
        }
    }
}

/// Returns when the cluster is another site, or none any more. A certificate that is renewed changes the same file, and
/// is no change of who this is.
async fn becomes_another(site: &Site, current: &Option<(String, String)>, mut changes: watch::Receiver<()>) {
    while changes.changed().await.is_ok() {
        if joined(site) != *current {
            return;
        }
    }
    std::future::pending::<()>().await;
}

/// As which site of which hub; none when there is no identity, or none that can be read.
fn joined(site: &Site) -> Option<(String, String)> {
    let identity = SiteIdentity::load(&*site.world.disk, &site.data_dir).ok().flatten()?;
    Some((identity.uid, identity.hub.to_string()))
}

/// News of changes in a folder, told by the kernel.
fn watch_folder(folder: &Path) -> Result<watch::Receiver<()>> {
    let failed = || format!("cannot watch {}", folder.display());
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC).with_context(failed)?;
    let flags = AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_DELETE;
    inotify.add_watch(folder, flags).with_context(failed)?;
    let (sender, receiver) = watch::channel(());
    // Blocks until there is news, for as long as the process lives.
    std::thread::Builder::new()
        .name("site-folder".into())
        .spawn(move || {
            while inotify.read_events().is_ok() {
                if sender.send(()).is_err() {
                    return;
                }
            }
        })
        .with_context(failed)?;
    Ok(receiver)
}
