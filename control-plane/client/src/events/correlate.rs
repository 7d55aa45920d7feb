//! Which of the events that are told get written, and how. No I/O, no clock.
//!
//! ```text
//! told ──> alike? ten messages of one reason within ten minutes become one event
//!      ──> known? the same again only counts
//!      ──> too many about one object? not written
//! ```
//! Rules and figures: `k8s.io/client-go/tools/record/events_cache.go` (`EventCorrelator`). What is remembered is bounded;
//! what was forgotten is a new event.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

/// Things remembered of each sort (`maxLruCacheEntries`).
const REMEMBERED_MAX: usize = 4096;
/// As many messages of one reason are told one by one (`defaultAggregateMaxEvents`).
const MESSAGES_MAX: usize = 10;
/// Messages further apart are not alike (`defaultAggregateIntervalInSeconds`).
const ALIKE_WITHIN: Duration = Duration::from_secs(600);
/// Events about one object that are written at once, and the time after which there may be one more
/// (`defaultSpamBurst`, `defaultSpamQPS`).
const BURST: u32 = 25;
const REFILL: Duration = Duration::from_secs(300);
/// The longest message (`NoteLengthLimit`).
const MESSAGE_BYTES_MAX: usize = 1024;
const CUT: &str = " ...";

/// Something that happened to an object.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    /// The object, and which part of it.
    pub about: ObjectReference,
    /// Whether it is a `Warning`, not `Normal`.
    pub warning: bool,
    /// In one word.
    pub reason: String,
    /// For people.
    pub message: String,
    /// What was attempted, where upstream names it.
    pub action: Option<String>,
}

/// An event to write.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Write {
    /// The whole of it, with its present count.
    pub(super) event: Event,
    /// It was written before, and only counts.
    pub(super) known: bool,
}

/// What the latest events were.
#[derive(Debug)]
pub(super) struct Correlator {
    source: EventSource,
    alike: Recent<Alike>,
    seen: Recent<Seen>,
    /// By object: when it may have a whole burst again.
    rested_at: Recent<Duration>,
    last_name: i128,
}

#[derive(Debug, Default)]
struct Alike {
    messages: BTreeSet<String>,
    last: Duration,
}

#[derive(Debug)]
struct Seen {
    name: String,
    count: i32,
    first: Timestamp,
}

impl Correlator {
    /// One that has seen nothing, for events of `source`.
    pub(super) fn new(source: EventSource) -> Self {
        let (alike, seen, rested_at) = (Recent::default(), Recent::default(), Recent::default());
        Self { source, alike, seen, rested_at, last_name: 0 }
    }

    /// What to write of something that happened at `wall`; `now` is monotonic.
    pub(super) fn take(&mut self, told: Told, wall: Timestamp, now: Duration) -> Option<Write> {
        let object = key_of(&told.about);
        let part = told.about.field_path.clone().unwrap_or_default();
        let mut message = cut(&told.message);
        // Parts of an object are alike, as upstream has it.
        let sort = format!("{object}\n{}\n{}", told.warning, told.reason);
        let alike = self.alike.of(&sort, Alike::default);
        if now.saturating_sub(alike.last) > ALIKE_WITHIN {
            alike.messages.clear();
        }
        alike.last = now;
        alike.messages.insert(message.clone());
        let key = if alike.messages.len() < MESSAGES_MAX {
            format!("{sort}\n{part}\n{message}")
        } else {
            alike.messages.pop_first();
            message = cut(&format!("(combined from similar events): {message}"));
            sort
        };
        let known = self.seen.contains(&key);
        if !known {
            self.last_name = wall.as_nanosecond().max(self.last_name + 1);
        }
        let name = format!("{}.{:x}", told.about.name.as_deref().unwrap_or_default(), self.last_name);
        let seen = self.seen.of(&key, || Seen { name, count: 0, first: wall });
        seen.count = seen.count.saturating_add(1);
        let event = event(&self.source, told, message, seen, wall);
        let rested_at = self.rested_at.of(&object, Duration::default);
        let next = (*rested_at).max(now) + REFILL;
        if next - now > REFILL * BURST {
            return None;
        }
        *rested_at = next;
        Some(Write { event, known })
    }
}

fn event(source: &EventSource, told: Told, message: String, seen: &Seen, wall: Timestamp) -> Event {
    let namespace = told.about.namespace.clone().filter(|namespace| !namespace.is_empty());
    Event {
        metadata: ObjectMeta {
            name: Some(seen.name.clone()),
            // What has no namespace is told in the default one (`record.makeEvent`).
            namespace: Some(namespace.unwrap_or_else(|| "default".to_owned())),
            ..ObjectMeta::default()
        },
        involved_object: told.about,
        type_: Some(if told.warning { "Warning" } else { "Normal" }.to_owned()),
        reason: Some(told.reason),
        message: Some(message),
        action: told.action,
        count: Some(seen.count),
        first_timestamp: Some(Time(seen.first)),
        last_timestamp: Some(Time(wall)),
        reporting_component: source.component.clone(),
        reporting_instance: Some(source.host.clone().unwrap_or_default()),
        source: Some(source.clone()),
        ..Event::default()
    }
}

fn key_of(about: &ObjectReference) -> String {
    let fields = [&about.api_version, &about.kind, &about.namespace, &about.name, &about.uid];
    fields.map(|field| field.as_deref().unwrap_or_default()).join("\n")
}

/// A message that fits, cut where a letter ends.
fn cut(message: &str) -> String {
    if message.len() <= MESSAGE_BYTES_MAX {
        return message.to_owned();
    }
    let mut end = MESSAGE_BYTES_MAX - CUT.len();
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{CUT}", &message[..end])
}

/// The things used last, as many as may be remembered.
#[derive(Debug)]
struct Recent<V> {
    of: HashMap<String, (u64, V)>,
    used: BTreeMap<u64, String>,
    uses: u64,
}

impl<V> Default for Recent<V> {
    fn default() -> Self {
        Self { of: HashMap::new(), used: BTreeMap::new(), uses: 0 }
    }
}

impl<V> Recent<V> {
    fn contains(&self, key: &str) -> bool {
        self.of.contains_key(key)
    }

    fn of(&mut self, key: &str, make: impl FnOnce() -> V) -> &mut V {
        self.uses += 1;
        if let Some((used, _)) = self.of.get(key) {
            self.used.remove(used);
        } else if self.of.len() >= REMEMBERED_MAX
            && let Some((_, oldest)) = self.used.pop_first()
        {
            self.of.remove(&oldest);
        }
        self.used.insert(self.uses, key.to_owned());
        let (used, value) = self.of.entry(key.to_owned()).or_insert_with(|| (0, make()));
        *used = self.uses;
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Run {
        correlator: Correlator,
        now: Duration,
    }

    impl Run {
        fn new() -> Self {
            let source = EventSource { component: Some("kubelet".into()), host: Some("n1".into()) };
            Self { correlator: Correlator::new(source), now: Duration::from_secs(1_000_000) }
        }

        /// Tells something of a pod; gives the count and the message of what is written.
        fn tell(&mut self, pod: &str, reason: &str, message: &str) -> Option<(bool, i32, String)> {
            let about = ObjectReference {
                kind: Some("Pod".into()),
                namespace: Some("ns".into()),
                name: Some(pod.into()),
                field_path: Some("spec.containers{c}".into()),
                ..ObjectReference::default()
            };
            let (reason, message) = (reason.to_owned(), message.to_owned());
            let told = Told { about, warning: true, reason, message, action: None };
            let wall = Timestamp::from_second(i64::try_from(self.now.as_secs()).unwrap()).unwrap();
            let write = self.correlator.take(told, wall, self.now)?;
            Some((write.known, write.event.count.unwrap(), write.event.message.unwrap()))
        }

        fn wait(&mut self, seconds: u64) {
            self.now += Duration::from_secs(seconds);
        }
    }

    #[test]
    fn the_same_again_counts() {
        let mut run = Run::new();
        assert_eq!(run.tell("p", "BackOff", "m"), Some((false, 1, "m".into())));
        run.wait(3600);
        assert_eq!(run.tell("p", "BackOff", "m"), Some((true, 2, "m".into())));
        assert_eq!(run.tell("p", "BackOff", "other"), Some((false, 1, "other".into())));
        assert_eq!(run.tell("q", "BackOff", "m"), Some((false, 1, "m".into())));
    }

    #[test]
    fn many_messages_of_one_reason_become_one_event() {
        let mut run = Run::new();
        for number in 0..9 {
            assert!(!run.tell("p", "Unhealthy", &format!("m{number}")).unwrap().0, "{number}");
        }
        assert_eq!(
            run.tell("p", "Unhealthy", "m9"),
            Some((false, 1, "(combined from similar events): m9".into())),
            "the tenth"
        );
        assert_eq!(run.tell("p", "Unhealthy", "m10").unwrap(), (true, 2, "(combined from similar events): m10".into()));
        run.wait(601);
        assert_eq!(run.tell("p", "Unhealthy", "m11"), Some((false, 1, "m11".into())), "a pause ends the likeness");
    }

    #[test]
    fn an_object_has_so_many_events_and_then_one_in_five_minutes() {
        let mut run = Run::new();
        let written = (0..40).filter(|_| run.tell("p", "BackOff", "m").is_some()).count();
        assert_eq!(written, 25);
        assert!(run.tell("q", "BackOff", "m").is_some(), "others are not held back");
        run.wait(299);
        assert_eq!(run.tell("p", "BackOff", "m"), None);
        run.wait(1);
        assert_eq!(run.tell("p", "BackOff", "m"), Some((true, 42, "m".into())), "what was not written is counted");
        assert_eq!(run.tell("p", "BackOff", "m"), None);
        run.wait(25 * 300);
        assert_eq!((0..40).filter(|_| run.tell("p", "BackOff", "m").is_some()).count(), 25);
    }

    #[test]
    fn events_have_names_of_their_own_and_say_who_tells() {
        let mut correlator =
            Correlator::new(EventSource { component: Some("kubelet".into()), host: Some("n1".into()) });
        let mut write = |message: &str| {
            let about = ObjectReference { kind: Some("Node".into()), name: Some("n1".into()), ..Default::default() };
            let (reason, message) = ("Starting".to_owned(), message.to_owned());
            let told = Told { about, warning: false, reason, message, action: None };
            correlator.take(told, Timestamp::UNIX_EPOCH, Duration::ZERO).unwrap().event
        };
        let (one, two) = (write("1"), write("2"));
        assert_ne!(one.metadata.name, two.metadata.name);
        assert_eq!(one.metadata.namespace.as_deref(), Some("default"));
        assert_eq!((one.type_.as_deref(), one.reporting_component.as_deref()), (Some("Normal"), Some("kubelet")));
        assert_eq!(one.reporting_instance.as_deref(), Some("n1"));
        let long = write(&"ä".repeat(600)).message.unwrap();
        assert!(long.len() <= MESSAGE_BYTES_MAX && long.ends_with("ä ..."), "{}", long.len());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut recent = Recent::default();
        for number in 0..=REMEMBERED_MAX {
            *recent.of(&number.to_string(), || 0) += 1;
            *recent.of("0", || 0) += 1;
        }
        assert_eq!((recent.of.len(), recent.used.len()), (REMEMBERED_MAX, REMEMBERED_MAX));
        assert!(recent.contains("0") && !recent.contains("1"), "what was not used for longest goes");
    }
}
