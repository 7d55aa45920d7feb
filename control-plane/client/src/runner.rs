//! The loop around a reconciler: watch, queue, work, back off. A controller owns none of these.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::stream::{FuturesUnordered, StreamExt};
use kedge_world::World;
use tokio::sync::mpsc;

use crate::Key;
use crate::informer::{Change, Informers, Watched};
use crate::queue::Queue;

/// Names worked on at once, per controller (upstream's `--concurrent-*-syncs` are 5 for most).
const WORKERS: usize = 5;
/// A failure is worth a warning from this one in a row on: the first few are mostly races that end by themselves.
const FAILURES_WORTH_TELLING: u32 = 4;

/// What a reconciler may use.
#[derive(Clone)]
pub struct Context {
    /// The shared copies, and the client behind them.
    pub informers: Informers,
    /// Clock and randomness.
    pub world: World,
}

impl Context {
    /// Calls back into the queue whenever an object of kind `K` changes: `names` says which names that concerns.
    pub fn watch<K: Watched>(&self, trigger: &Trigger, names: impl Fn(&Change<K>) -> Vec<Key> + Send + 'static) {
        let mut changes = self.informers.of::<K>().subscribe();
        let trigger = trigger.clone();
        tokio::spawn(async move {
            while let Some(change) = changes.recv().await {
                for key in names(&change) {
                    if !trigger.wake(key) {
                        return;
                    }
                }
            }
        });
    }

    /// Watches `K` itself: each change concerns the object that changed.
    pub fn watch_self<K: Watched>(&self, trigger: &Trigger) {
        self.watch::<K>(trigger, |change| vec![Key::of(&**change.latest())]);
    }

    /// Watches what objects of kind `O` own: each change of a `K` concerns its controller.
    pub fn watch_owned<K: Watched, O: kube::Resource<DynamicType = ()>>(&self, trigger: &Trigger) {
        self.watch::<K>(trigger, |change| {
            let sides = change.old.iter().chain(&change.new);
            let mut owners: Vec<Key> = sides.filter_map(|object| controller::<K, O>(object)).collect();
            owners.dedup();
            owners
        });
    }
}

/// The name of an object's controller, if that is an `O`.
fn controller<K: kube::Resource, O: kube::Resource<DynamicType = ()>>(object: &K) -> Option<Key> {
    let meta = object.meta();
    let owner = meta.owner_references.as_ref()?.iter().find(|owner| owner.controller == Some(true))?;
    let fits = owner.kind == O::kind(&()) && owner.api_version == O::api_version(&());
    fits.then(|| Key::new(meta.namespace.as_deref().unwrap_or_default(), &owner.name))
}

/// Wakes a reconciler.
#[derive(Clone, Debug)]
pub struct Trigger(mpsc::UnboundedSender<Key>);

impl Trigger {
    /// Asks for `key` to be reconciled soon. False once nobody listens any more.
    pub fn wake(&self, key: Key) -> bool {
        self.0.send(key).is_ok()
    }
}

/// When a name wants to be looked at again, beyond what changes will cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// When something changes.
    Change,
    /// After this long, at the latest.
    After(Duration),
}

/// A reconciler: brings the world a step closer to what one object asks for.
pub trait Reconcile: Send + Sync + 'static {
    /// The error of an attempt; it is logged and the name tried again later.
    type Error: std::fmt::Display + Send;

    /// For logs and field ownership, such as `deployment-controller`.
    fn name(&self) -> &'static str;

    /// Names worked on at once; more where the work is mostly waiting for a network.
    fn concurrency(&self) -> usize {
        WORKERS
    }

    /// Subscribes to everything that could change this reconciler's mind. Every kind that it reads must be asked for
    /// here, so that its first list is complete before the first look.
    fn watch(&self, context: &Context, trigger: &Trigger);

    /// Looks at `key` and everything around it, and acts.
    fn reconcile(&self, context: &Context, key: &Key) -> impl Future<Output = Result<Next, Self::Error>> + Send;
}

/// Runs a reconciler until its task is dropped.
pub async fn run<R: Reconcile>(reconciler: R, context: Context) {
    let reconciler = Arc::new(reconciler);
    let (sender, mut wakes) = mpsc::unbounded_channel();
    reconciler.watch(&context, &Trigger(sender));
    context.informers.synced().await;
    let mut queue = Queue::default();
    let mut working = FuturesUnordered::new();
    loop {
        let now = context.world.clock.monotonic();
        while working.len() < reconciler.concurrency() {
            let Some(key) = queue.take(now) else { break };
            let (reconciler, context) = (reconciler.clone(), context.clone());
            let work = tokio::spawn(async move {
                let result = reconciler.reconcile(&context, &key).await.map_err(|error| error.to_string());
                (key, result)
            });
            working.push(work);
        }
        let due = if working.len() < reconciler.concurrency() { queue.next_due() } else { None };
        let timer = match due {
            Some(due) => tokio::time::sleep(due.saturating_sub(now)).left_future(),
            None => std::future::pending().right_future(),
        };
        tokio::select! {
            woken = wakes.recv() => match woken {
                Some(key) => {
                    queue.add(key, now);
                    while let Ok(key) = wakes.try_recv() {
                        queue.add(key, now);
                    }
                }
                None => return,
            },
            Some(ended) = working.next() => {
                let now = context.world.clock.monotonic();
                match ended {
                    Ok((key, Ok(next))) => queue.done(&key, match next {
                        Next::Change => None,
                        Next::After(wait) => Some(now + wait),
                    }),
                    Ok((key, Err(error))) => {
                        let failures = queue.failed(&key, now);
                        let name = reconciler.name();
                        if failures >= FAILURES_WORTH_TELLING {
                            tracing::warn!(controller = name, %key, failures, error, "a reconciliation keeps failing");
                        } else {
                            tracing::debug!(controller = name, %key, failures, error, "a reconciliation failed");
                        }
                    }
                    Err(panic) => std::panic::resume_unwind(panic.into_panic()),
                }
            }
            () = timer => {}
        }
    }
}
