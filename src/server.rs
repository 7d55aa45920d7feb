//! `kedge server`: builds the parts of a cluster, runs them, drains them.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use kedge_access::{Authority, Names, User};
use kedge_api::{Api, InProcess, Rbac, Settings, bootstrap, serve};
use kedge_client::{Context as ClientContext, Informers};
use kedge_store::engine::{Engine, RedbEngine, Reopening, SledEngine};
use kedge_store::{Store, Writer};
use kedge_world::World;

use crate::address;
use crate::check::check;
use crate::folders;
use crate::lock;
use crate::logs;
use crate::models;
use crate::node::{self, Node};
use crate::notify;
use crate::settings::{Datastore, ServerFlags};
use crate::site;

/// Runs until a signal says to stop.
pub(crate) fn run(flags: ServerFlags) -> Result<()> {
    logs::start();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.context("cannot start the runtime")?.block_on(serve_cluster(flags))
}

async fn serve_cluster(flags: ServerFlags) -> Result<()> {
    let world = World::real();
    check(&flags, &node::name(&flags)?)?;
    let folders = folders::resolve(&world, &flags.folders)?;
    let state = folders.data_dir.join("server");
    let data_dir = || format!("cannot use --data-dir {}", folders.data_dir.display());
    world.disk.create_dir_all(&state).with_context(data_dir)?;
    let _lock = lock::take(&folders.data_dir, lock::Role::Server)?;
    if !flags.disable_agent {
        folders::claim(&world, &folders)?;
    }
    folders::remember(&world, &folders)?;
    folders::remember_namespace(&world, &folders, flags.network_namespace.as_deref())?;
    let address = format!("127.0.0.1:{}", flags.https_listen_port);
    let listener =
        world.net.listen(&address).await.context("the API server's port; choose another with --https-listen-port")?;
    folders::remember_api(&world, &folders, &address)?;
    let writer = Writer::open(engine(&world, &state, flags.datastore)?)?;
    let store = Store::start(writer);
    let mut names = flags.tls_san.clone();
    let mut node_ip = None;
    if !flags.disable_agent {
        names.extend(address::api_names(&flags)?);
        node_ip = Some(address::follow(&flags).await?);
    }
    let authority = Arc::new(Authority::open(&world, &state.join("tls"), &Names(names))?);
    if let Some(node_ip) = &node_ip {
        tokio::spawn(address::certify(authority.clone(), node_ip.clone()));
    }
    let renewed = Arc::new(tokio::sync::Notify::new());
    let tls = authority.server_config(renewed.clone())?;
    let issuer = format!("https://kubernetes.default.svc.{}", flags.cluster_domain);
    let guard = Rbac::new(authority.token_signer()?, &issuer);
    let external_address = match &node_ip {
        None => address.clone(),
        Some(node_ip) => format!("{}:{}", *node_ip.borrow(), flags.https_listen_port),
    };
    let settings = Settings { service_cidr: flags.service_cidr.clone(), external_address, ..Settings::default() };
    let api = Api::new(world.clone(), store, settings, Box::new(guard));
    bootstrap(&api, kedge_own::definitions()).await?;
    // Feeds the shared copies and may do no more; whoever acts on them acts as somebody of its own.
    let informers = Informers::new(in_process(&api, "system:kube-controller-manager", &[]));
    let context = ClientContext { informers, world: world.clone() };
    let acting_as = |client: kube::Client| ClientContext {
        informers: context.informers.acting_through(client),
        world: world.clone(),
    };
    let runtime = node::RuntimeSlot::default();
    let serving = models::serving(&folders, (!flags.disable_agent).then(|| runtime.clone()));
    let acting = api.clone();
    let clients = kedge_controllers::Clients::new(move |user, groups| in_process(&acting, user, groups));
    let of_models = acting_as(clients.of("model-controller"));
    let settings = kedge_controllers::Settings { clients, root_ca: authority.server_ca_pem(), serving };
    let controllers = kedge_controllers::start(&context, &settings);
    let ended = move || controllers.ended().map_or(Ok(()), |name| Err(format!("{name} has ended")));
    api.attach_component("controller-manager", ended);
    models::start(&of_models, &folders)?;
    site::start(&acting_as(in_process(&api, "system:kedge-site", &[])), &folders)?;
    let scheduler = tokio::spawn(kedge_scheduler::run(acting_as(in_process(&api, "system:kube-scheduler", &[]))));
    let ended = move || if scheduler.is_finished() { Err("it has ended".to_owned()) } else { Ok(()) };
    api.attach_component("scheduler", ended);
    let node_name = node::name(&flags)?;
    if let Some(ip) = node_ip {
        let client = |user: &str, groups: &[&str]| in_process(&api, user, groups);
        let (node_client, proxy_client) =
            (client(&format!("system:node:{node_name}"), &["system:nodes"]), client("system:kube-proxy", &[]));
        let folders = Arc::new(folders);
        tokio::spawn(node::run(Node {
            api: api.clone(),
            client: node_client,
            proxy_client,
            tls: tls.clone(),
            world: world.clone(),
            name: node_name,
            folders,
            flags: flags.clone(),
            ip,
            runtime,
        }));
    }
    let server = format!("https://{address}");
    write_kubeconfig(&world, &flags.write_kubeconfig, &authority.kubeconfig(&server))?;
    let (kubeconfig, disk) = (flags.write_kubeconfig.clone(), world.clone());
    tokio::spawn(async move {
        loop {
            renewed.notified().await;
            let written = authority
                .reopen()
                .map_err(Into::into)
                .and_then(|authority| write_kubeconfig(&disk, &kubeconfig, &authority.kubeconfig(&server)));
            match written {
                Ok(()) => tracing::info!(kubeconfig = %kubeconfig.display(), "certificates were renewed"),
                Err(error) => tracing::warn!(%error, "the kubeconfig was not renewed; a restart tries again"),
            }
        }
    });
    tracing::info!(%address, kubeconfig = %flags.write_kubeconfig.display(), "the API server is ready");
    notify::ready();
    serve(api, listener, tls, stopped()).await;
    Ok(())
}

/// A client of the API without a network, acting as `user` in `groups`.
fn in_process(api: &Api, user: &str, groups: &[&str]) -> kube::Client {
    kube::Client::new(InProcess::new(api.clone(), User::new(user, groups)), "default")
}

fn engine(world: &World, folder: &Path, datastore: Datastore) -> Result<Box<dyn Engine>> {
    Ok(match datastore {
        Datastore::Redb => {
            let (disk, path) = (world.disk.clone(), folder.join("state.redb"));
            let engine = Reopening::new(move || Ok(Box::new(RedbEngine::open(&*disk, &path)?)))?;
            Box::new(engine.with_reserve(world.disk.clone()))
        }
        Datastore::Sled => {
            let path = folder.join("state.sled");
            let engine = Reopening::new(move || Ok(Box::new(SledEngine::open(&path)?)))?;
            Box::new(engine.with_reserve(world.disk.clone()))
        }
    })
}

fn write_kubeconfig(world: &World, path: &Path, text: &str) -> Result<()> {
    if let Some(folder) = path.parent() {
        world.disk.create_dir_all(folder)?;
    }
    world.disk.replace(path, text.as_bytes()).context("cannot write the kubeconfig (--write-kubeconfig)")
}

/// Resolves when the process is asked to end.
pub(crate) async fn stopped() {
    let mut terminate =
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).expect("the runtime handles signals");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}
