//! The sites of a hub: a task for each `Site` object, told what the site should hold whenever that may have changed.

use std::collections::HashMap;
use std::sync::Arc;

use kedge_client::{Change, Context, Key, Next, Reconcile, Trigger};
use kedge_models::is_chosen;
use kedge_own::{Model, Site};
use kube::ResourceExt;
use parking_lot::Mutex;

use crate::assign::assignments;
use crate::site::{Event, Handle, Shared, start};

/// The tasks by the names of their sites, with the uid that each is for.
#[derive(Clone)]
pub(crate) struct Sites {
    shared: Shared,
    tasks: Arc<Mutex<HashMap<String, (String, Handle)>>>,
}

impl Sites {
    pub(crate) fn new(shared: Shared) -> Self {
        Self { shared, tasks: Arc::default() }
    }

    /// The task of a site; started when there is none, as for a site that joined a moment ago.
    pub(crate) fn of(&self, site: &Site) -> Handle {
        let (name, uid) = (site.name_any(), site.uid().unwrap_or_default());
        let mut tasks = self.tasks.lock();
        match tasks.get(&name) {
            Some((of, handle)) if *of == uid => handle.clone(),
            _ => {
                let handle = start(self.shared.clone(), site);
                if let Some((_, before)) = tasks.insert(name, (uid, handle.clone())) {
                    tokio::spawn(async move { before.tell(Event::Removed).await });
                }
                handle
            }
        }
    }

    async fn end(&self, name: &str) {
        let task = self.tasks.lock().remove(name);
        if let Some((_, handle)) = task {
            tracing::info!(site = name, "the site was removed");
            handle.tell(Event::Removed).await;
        }
    }
}

impl Reconcile for Sites {
    type Error = kube::Error;

    fn name(&self) -> &'static str {
        "site-controller"
    }

    fn watch(&self, context: &Context, trigger: &Trigger) {
        context.watch_self::<Site>(trigger);
        let sites = context.informers.of::<Site>();
        context.watch::<Model>(trigger, move |change| {
            let sites = sites.list();
            sites.iter().filter(|site| concerns(change, site)).map(|site| Key::of(&**site)).collect()
        });
    }

    async fn reconcile(&self, context: &Context, key: &Key) -> Result<Next, kube::Error> {
        let Some(site) = context.informers.of::<Site>().get(key) else {
            self.end(&key.name).await;
            return Ok(Next::Change);
        };
        let wanted = assignments(&site, &context.informers.of::<Model>().list());
        self.of(&site).tell(Event::Wanted(site, wanted)).await;
        Ok(Next::Change)
    }
}

/// Whether a change of a model may concern a site.
fn concerns(change: &Change<Model>, site: &Site) -> bool {
    change.old.iter().chain(&change.new).any(|model| is_chosen(model, site))
}
