//! The one door for writes: propose, commit, apply, a group at a time.
//!
//! The writer has no thread of its own, so that a simulation can drive it step by step; [`crate::Store`] runs it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use parking_lot::RwLock;

use crate::engine::{Change, Engine, EngineError};
use crate::entry::{Entry, ObjectKey, Payload, ResourceId};
use crate::record;
use crate::state::State;

/// Revisions are reserved durably this many at a time, so that soft writes cost no disk and a crash skips at most
/// this many.
const RESERVED_REVISIONS: u64 = 10_000;

/// What must be true of the object for a write to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// It does not exist.
    Absent,
    /// It exists at this revision.
    Revision(u64),
}

/// What to do.
#[derive(Clone, Debug)]
pub enum Action {
    /// Create or replace.
    Put(Payload),
    /// Remove.
    Delete,
}

/// How long an acknowledged write must last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Over a power cut.
    Durable,
    /// As long as the process: for state that its owner renews anyway (renewals of node Leases).
    Soft,
}

/// One change to one object.
#[derive(Clone, Debug)]
pub struct Write {
    /// The collection.
    pub resource: ResourceId,
    /// The object.
    pub key: ObjectKey,
    /// The precondition.
    pub expect: Expect,
    /// The change.
    pub action: Action,
    /// How long it must last.
    pub durability: Durability,
}

/// What a write led to.
#[derive(Clone, Debug)]
pub struct Committed {
    /// The object after the write; for a deletion its last state under the deletion's revision.
    pub entry: Arc<Entry>,
}

/// Why a write did not happen. Nothing has changed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Refusal {
    /// [`Expect::Absent`] met an object.
    #[error("the object already exists")]
    Exists(Arc<Entry>),
    /// [`Expect::Revision`] met another revision.
    #[error("the object has been changed since it was read")]
    Changed(Arc<Entry>),
    /// [`Expect::Revision`] met nothing.
    #[error("the object does not exist")]
    Missing,
    /// The engine could not make it durable.
    #[error("cannot make the write durable: {0}")]
    Engine(Arc<EngineError>),
}

/// What became of one transaction: all its writes, or why none of them.
pub type Verdict = Result<Vec<Committed>, Refusal>;

/// An accepted write on its way.
struct Pending {
    resource: ResourceId,
    entry: Arc<Entry>,
    deleted: bool,
    durability: Durability,
}

/// Checks, orders, stores and publishes writes.
pub struct Writer {
    engine: Box<dyn Engine>,
    state: Arc<RwLock<State>>,
    /// Revisions up to here are reserved durably.
    ceiling: u64,
    /// What a failed group may have left on the disk; the next one puts it back to what memory says.
    doubtful: BTreeSet<(ResourceId, ObjectKey)>,
    /// The disk is full and what was kept for that is in use: what is there may change and go, nothing comes.
    tight: bool,
}

impl Writer {
    /// Reads everything the engine holds. Fails with the record at fault when one cannot be understood.
    pub fn open(mut engine: Box<dyn Engine>) -> Result<Self, EngineError> {
        let mut ceiling = 0;
        let mut loaded = Vec::new();
        engine.load(&mut |key, value| {
            let damaged = || EngineError::damaged(engine.location(), &String::from_utf8_lossy(key));
            if key == record::CEILING_KEY {
                ceiling = u64::from_le_bytes(value.try_into().map_err(|_| damaged())?);
                return Ok(());
            }
            let (resource, object) = record::parse_key(key).ok_or_else(damaged)?;
            loaded.push((resource, record::decode(object, value).ok_or_else(damaged)?));
            Ok(())
        })?;
        let mut state = State::new(ceiling);
        for (resource, entry) in loaded {
            if entry.revision > ceiling {
                return Err(EngineError::damaged(engine.location(), "revision counter"));
            }
            state.load(&resource, entry);
        }
        let tight = !engine.take_reserve();
        Ok(Self { engine, state: Arc::new(RwLock::new(state)), ceiling, doubtful: BTreeSet::new(), tight })
    }

    pub(crate) fn state(&self) -> &Arc<RwLock<State>> {
        &self.state
    }

    /// Carries out a group of transactions, each all or nothing, with one durable write for the group. When the disk is
    /// full, those that make nothing new are carried out all the same, as long as what was kept for that lasts.
    pub fn write(&mut self, group: Vec<Vec<Write>>) -> Vec<Verdict> {
        // Only for who would be refused: taking it again costs as much as it holds.
        if self.tight && group.iter().any(|transaction| is_new(transaction)) {
            self.tight = !self.engine.take_reserve();
        }
        let again = (!self.tight).then(|| group.clone());
        match (self.try_write(group), again) {
            (Err((_, error)), Some(again)) if is_full(&error) && self.engine.give_up_reserve() => {
                self.tight = true;
                self.try_write(again).unwrap_or_else(|(verdicts, error)| refused(verdicts, error))
            }
            (done, _) => done.unwrap_or_else(|(verdicts, error)| refused(verdicts, error)),
        }
    }

    fn try_write(&mut self, group: Vec<Vec<Write>>) -> Result<Vec<Verdict>, (Vec<Verdict>, EngineError)> {
        let (verdicts, accepted, revision) = self.propose(group);
        if let Err(error) = self.commit(&accepted, revision) {
            self.doubtful.extend(accepted.iter().map(|pending| (pending.resource.clone(), pending.entry.key.clone())));
            return Err((verdicts, error));
        }
        self.apply(accepted);
        Ok(verdicts)
    }

    /// Gives every transaction that may happen its revisions; later ones see earlier ones.
    fn propose(&self, group: Vec<Vec<Write>>) -> (Vec<Verdict>, Vec<Pending>, u64) {
        let state = self.state.read();
        let mut revision = state.revision;
        let mut accepted: Vec<Pending> = Vec::new();
        // What the group has already changed, over what memory says.
        let mut overlay: HashMap<(ResourceId, ObjectKey), Option<Arc<Entry>>> = HashMap::new();
        let verdicts = group.into_iter().map(|transaction| {
            if self.tight && is_new(&transaction) {
                let full = EngineError::Full { location: self.engine.location().to_owned() };
                return Err(Refusal::Engine(Arc::new(full)));
            }
            let mut steps = Vec::with_capacity(transaction.len());
            let mut undo = Vec::new();
            for write in transaction {
                let at = (write.resource.clone(), write.key.clone());
                let current = match overlay.get(&at) {
                    Some(changed) => changed.clone(),
                    None => state.get(&write.resource, &write.key).cloned(),
                };
                let step = check(write.expect, current.as_ref())
                    .map(|()| seal(write, current.as_deref(), revision + 1 + steps.len() as u64));
                match step {
                    Ok(pending) => {
                        let now = (!pending.deleted).then(|| pending.entry.clone());
                        undo.push((at.clone(), overlay.insert(at, now)));
                        steps.push(pending);
                    }
                    Err(refusal) => {
                        for (at, before) in undo.into_iter().rev() {
                            match before {
                                Some(before) => overlay.insert(at, before),
                                None => overlay.remove(&at),
                            };
                        }
                        return Err(refusal);
                    }
                }
            }
            revision += steps.len() as u64;
            let committed = steps.iter().map(|step| Committed { entry: step.entry.clone() }).collect();
            accepted.extend(steps);
            Ok(committed)
        });
        let verdicts = verdicts.collect();
        (verdicts, accepted, revision)
    }

    /// Makes the group durable, and with it the revisions it used.
    fn commit(&mut self, accepted: &[Pending], revision: u64) -> Result<(), EngineError> {
        let mut changes = self.settled();
        changes.extend(accepted.iter().filter(|pending| pending.durability == Durability::Durable).map(|pending| {
            Change {
                key: record::object_key(&pending.resource, &pending.entry.key),
                value: (!pending.deleted).then(|| record::encode(&pending.entry)),
            }
        }));
        let ceiling = if revision > self.ceiling { revision + RESERVED_REVISIONS } else { self.ceiling };
        if ceiling > self.ceiling {
            let value = Some(ceiling.to_le_bytes().to_vec());
            changes.push(Change { key: record::CEILING_KEY.to_vec(), value });
        }
        if !changes.is_empty() {
            self.engine.commit(&changes)?;
        }
        self.doubtful.clear();
        self.ceiling = ceiling;
        Ok(())
    }

    /// What puts the disk right where a failed group left it in doubt; the group's own changes come after it.
    fn settled(&self) -> Vec<Change> {
        let state = self.state.read();
        let change = |(resource, key): &(ResourceId, ObjectKey)| Change {
            key: record::object_key(resource, key),
            value: state.get(resource, key).map(|entry| record::encode(entry)),
        };
        self.doubtful.iter().map(change).collect()
    }

    fn apply(&self, accepted: Vec<Pending>) {
        let mut state = self.state.write();
        for pending in accepted {
            state.apply(&pending.resource, pending.entry, pending.deleted);
        }
    }
}

fn refused(verdicts: Vec<Verdict>, error: EngineError) -> Vec<Verdict> {
    let error = Arc::new(error);
    verdicts.into_iter().map(|verdict| verdict.and(Err(Refusal::Engine(error.clone())))).collect()
}

fn is_full(error: &EngineError) -> bool {
    matches!(error, EngineError::Full { .. })
}

/// Whether a transaction makes something durable that was not there.
fn is_new(transaction: &[Write]) -> bool {
    transaction.iter().any(|write| write.expect == Expect::Absent && write.durability == Durability::Durable)
}

fn check(expect: Expect, current: Option<&Arc<Entry>>) -> Result<(), Refusal> {
    match (expect, current) {
        (Expect::Absent, None) => Ok(()),
        (Expect::Absent, Some(entry)) => Err(Refusal::Exists(entry.clone())),
        (Expect::Revision(revision), Some(entry)) if entry.revision == revision => Ok(()),
        (Expect::Revision(_), Some(entry)) => Err(Refusal::Changed(entry.clone())),
        (Expect::Revision(_), None) => Err(Refusal::Missing),
    }
}

fn seal(write: Write, current: Option<&Entry>, revision: u64) -> Pending {
    let Write { resource, key, action, durability, .. } = write;
    let (entry, deleted) = match action {
        Action::Put(payload) => (payload.seal(key, revision), false),
        Action::Delete => (tombstone(current.expect("checked: a deletion expects a revision"), revision), true),
    };
    Pending { resource, entry: Arc::new(entry), deleted, durability }
}

/// The last state of a deleted object, carrying the revision of the deletion as upstream's watch does.
fn tombstone(last: &Entry, revision: u64) -> Entry {
    let old = format!("\"resourceVersion\":\"{}\"", last.revision);
    let new = format!("\"resourceVersion\":\"{revision}\"");
    let text = &last.bytes[..];
    let at = text.windows(old.len()).position(|part| part == old.as_bytes());
    let bytes = match at {
        Some(at) => [&text[..at], new.as_bytes(), &text[at + old.len()..]].concat().into(),
        None => last.bytes.clone(),
    };
    Entry { key: last.key.clone(), revision, bytes, facets: last.facets.clone() }
}
