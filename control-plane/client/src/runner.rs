//! The loop around a reconciler: watch, queue, work, back off. A controller owns none of these.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::stream::{FuturesUnordered, StreamExt};
use k8s_openapi::api::core::v1::EventSource;
use kedge_world::World;
use tokio::sync::mpsc;

use crate::Key;
use crate::events::Recorder;
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
    /// Where whoever acts through this tells what happens. `component` is said to tell it; the first one asked for counts,
    /// since one context is one controller's.
    pub fn recorder(&self, component: &str) -> &Recorder {
        self.informers.recorder.get_or_init(|| {
            let source = EventSource { component: Some(component.to_owned()), host: None };
            Recorder::start(self.informers.client().clone(), self.world.clone(), source)
        })
    }

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

/// A future panicked; what it said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Panicked(pub String);

/// Runs `work`; a panic in it is a value. What `work` shares with others must bear that it stopped half-way.
pub async fn caught<T>(work: impl Future<Output = T>) -> Result<T, Panicked> {
    AssertUnwindSafe(work).catch_unwind().await.map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        Panicked(text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned()))
    })
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
                let result = caught(reconciler.reconcile(&context, &key)).await;
                (key, result.map(|result| result.map_err(|error| error.to_string())))
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
                let (key, result) = ended.expect("what a reconciliation does is caught, and nobody aborts it");
                match result {
                    Ok(Ok(next)) => queue.done(&key, match next {
                        Next::Change => None,
                        Next::After(wait) => Some(now.saturating_add(wait)),
                    }),
                    Ok(Err(error)) => {
                        let failures = queue.failed(&key, now);
                        let name = reconciler.name();
                        if failures >= FAILURES_WORTH_TELLING {
                            tracing::warn!(controller = name, %key, failures, error, "a reconciliation keeps failing");
                        } else {
                            tracing::debug!(controller = name, %key, failures, error, "a reconciliation failed");
                        }
                    }
                    // One object that nobody thought of must not end the work on all others.
                    Err(Panicked(text)) => {
                        let failures = queue.failed(&key, now);
                        tracing::error!(controller = reconciler.name(), %key, failures, panic = text, "a reconciliation panicked");
                    }
                }
            }
            () = timer => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::convert::Infallible;

    use parking_lot::Mutex;

    use super::*;

    /// Panics over one name, twice; notes what it was asked.
    struct Fragile(Arc<Mutex<BTreeMap<String, u32>>>);

    impl Reconcile for Fragile {
        type Error = Infallible;

        fn name(&self) -> &'static str {
            "fragile"
        }

        fn watch(&self, _: &Context, trigger: &Trigger) {
            let trigger = trigger.clone();
            tokio::spawn(async move {
                for name in ["bad", "good"] {
                    trigger.wake(Key::new("", name));
                }
                std::future::pending::<()>().await;
            });
        }

        async fn reconcile(&self, _: &Context, key: &Key) -> Result<Next, Infallible> {
            let times = {
                let mut asked = self.0.lock();
                let times = asked.entry(key.name.clone()).or_default();
                *times += 1;
                *times
            };
            assert!(key.name != "bad" || times > 2, "{key} is not thought of");
            Ok(Next::Change)
        }
    }

    #[tokio::test]
    async fn a_panic_is_a_failure_of_its_name_and_the_controller_goes_on() {
        let client = kube::Client::try_from(kube::Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap();
        let context = Context { informers: Informers::new(client), world: World::real() };
        let asked = Arc::new(Mutex::new(BTreeMap::new()));
        let running = tokio::spawn(run(Fragile(asked.clone()), context));
        let expected = BTreeMap::from([("bad".to_owned(), 3), ("good".to_owned(), 1)]);
        for _ in 0..500 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            if *asked.lock() == expected {
                break;
            }
        }
        assert_eq!(*asked.lock(), expected);
        assert!(!running.is_finished());
        running.abort();
    }

    #[tokio::test]
    async fn the_text_of_a_panic_is_kept() {
        let number = |n: u32| async move {
            assert!(n < 5, "{n} is too much");
            n
        };
        assert_eq!(caught(number(1)).await, Ok(1));
        assert_eq!(caught(number(7)).await, Err(Panicked("7 is too much".to_owned())));
    }
}
