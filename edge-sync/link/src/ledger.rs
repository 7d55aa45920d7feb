//! What one site should hold, each thing under the number of its last change. Pure; one row a site.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Unreadable;
use crate::frame::{Epoch, Key, Limits, Position};

/// Runs that a ledger remembers. A site that was away for longer compares everything once.
const HISTORY_MAX: usize = 64;

/// More than one site can hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooMuch {
    /// Too many things.
    #[error("{count} things are assigned to the site and the link carries {}; assign fewer", Limits::KEYS_MAX)]
    Keys {
        /// How many were asked for.
        count: usize,
    },
    /// One of them is too large.
    #[error("{key} has {bytes} bytes and the link carries at most {}", Limits::BODY_BYTES_MAX)]
    Body {
        /// Which.
        key: Key,
        /// Its size.
        bytes: usize,
    },
    /// A name is too long.
    #[error("a key has {bytes} bytes and the link carries at most {}", Limits::KEY_BYTES_MAX)]
    Key {
        /// Its size.
        bytes: usize,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) seq: u64,
    /// None for what was deleted and not yet acknowledged.
    #[serde(with = "hex_hash")]
    pub(crate) hash: Option<[u8; 32]>,
}

/// What a site should hold, and the numbers given so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Oldest first; the last one is the run that gave the newest number.
    history: Vec<Epoch>,
    /// Deletions up to here are forgotten: a site that is further back compares instead.
    floor: u64,
    entries: BTreeMap<Key, Entry>,
    /// The entries by their numbers.
    order: BTreeMap<u64, Key>,
    /// How many of them are deletions.
    deletions: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    history: Vec<Epoch>,
    floor: u64,
    entries: BTreeMap<Key, Entry>,
}

impl Ledger {
    /// Reads what [`Ledger::to_bytes`] made.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Unreadable> {
        let Row { history, floor, entries } = serde_json::from_slice(bytes)?;
        let order = entries.iter().map(|(key, entry)| (entry.seq, key.clone())).collect();
        let deletions = entries.values().filter(|entry| entry.hash.is_none()).count();
        Ok(Self { history, floor, entries, order, deletions })
    }

    /// The row to keep.
    pub fn to_bytes(&self) -> Vec<u8> {
        let row = Row { history: self.history.clone(), floor: self.floor, entries: self.entries.clone() };
        serde_json::to_vec(&row).expect("a ledger is plain data")
    }

    /// The position of a site that holds all of it.
    pub fn position(&self) -> Position {
        self.history.last().map_or(Position::default(), |last| Position { epoch: last.epoch, seq: last.last_seq })
    }

    pub(crate) fn history(&self) -> &[Epoch] {
        &self.history
    }

    /// Whether a position is part of this ledger's past. The beginning of everything is part of any.
    pub(crate) fn knows(&self, position: Position) -> bool {
        position == Position::default()
            || self.history.iter().any(|run| run.epoch == position.epoch && position.seq <= run.last_seq)
    }

    /// Whether what changed after a position is still all here.
    pub(crate) fn can_resume(&self, position: Position) -> bool {
        self.knows(position) && position.seq >= self.floor
    }

    /// Takes over what the site should hold now, as hashes; `run` numbers what differs. Whether anything did.
    pub(crate) fn update(&mut self, run: u64, wanted: &BTreeMap<Key, [u8; 32]>) -> Result<bool, TooMuch> {
        if wanted.len() > Limits::KEYS_MAX {
            return Err(TooMuch::Keys { count: wanted.len() });
        }
        let gone: Vec<Key> = self
            .entries
            .iter()
            .filter(|(key, entry)| entry.hash.is_some() && !wanted.contains_key(*key))
            .map(|(key, _)| key.clone())
            .collect();
        let differs =
            |(key, hash): &(&Key, &[u8; 32])| self.entries.get(*key).is_none_or(|entry| entry.hash != Some(**hash));
        let changed: Vec<_> = wanted.iter().filter(differs).map(|(key, hash)| (key.clone(), *hash)).collect();
        let any = !gone.is_empty() || !changed.is_empty();
        for key in gone {
            self.put(run, key, None);
        }
        for (key, hash) in changed {
            self.put(run, key, Some(hash));
        }
        Ok(any)
    }

    /// Says that a site must drop `key`, also when this ledger never knew it.
    pub(crate) fn release(&mut self, run: u64, key: Key) {
        self.put(run, key, None);
    }

    fn put(&mut self, run: u64, key: Key, hash: Option<[u8; 32]>) {
        let seq = self.position().seq + 1;
        match self.history.last_mut() {
            Some(last) if last.epoch == run => last.last_seq = seq,
            _ => self.history.push(Epoch { epoch: run, last_seq: seq }),
        }
        if self.history.len() > HISTORY_MAX {
            self.history.remove(0);
        }
        self.deletions += usize::from(hash.is_none());
        if let Some(before) = self.entries.insert(key.clone(), Entry { seq, hash }) {
            self.order.remove(&before.seq);
            self.deletions -= usize::from(before.hash.is_none());
        }
        self.order.insert(seq, key);
        if self.deletions > Limits::KEYS_MAX {
            // A site that is away for that long compares instead.
            let oldest = self.order.iter().find(|(_, key)| self.entries[*key].hash.is_none()).map(|(seq, _)| *seq);
            oldest.into_iter().for_each(|seq| self.forget(seq));
        }
    }

    /// Forgets a deletion.
    fn forget(&mut self, seq: u64) {
        if let Some(key) = self.order.remove(&seq) {
            self.entries.remove(&key);
            self.deletions -= 1;
            self.floor = self.floor.max(seq);
        }
    }

    /// The entries after a number, in the order of theirs.
    pub(crate) fn after(&self, seq: u64) -> impl Iterator<Item = (&Key, &Entry)> {
        self.order.range(seq + 1..).map(|(_, key)| (key, &self.entries[key]))
    }

    /// Every entry, in the order of the keys.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&Key, &Entry)> {
        self.entries.iter()
    }

    pub(crate) fn get(&self, key: &Key) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// A site has saved everything up to `seq`: deletions up to there need not be told again.
    pub(crate) fn acknowledged(&mut self, seq: u64) {
        let deletion = |(_, key): &(&u64, &Key)| self.entries[*key].hash.is_none();
        let told: Vec<u64> = self.order.range(..=seq).filter(deletion).map(|(seq, _)| *seq).collect();
        told.into_iter().for_each(|seq| self.forget(seq));
    }
}

/// Hashes as hexadecimal text, so that a person can read a ledger.
mod hex_hash {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[allow(clippy::ref_option, reason = "serde gives a reference to the field")]
    pub(super) fn serialize<S: Serializer>(hash: &Option<[u8; 32]>, serializer: S) -> Result<S::Ok, S::Error> {
        hash.map(hex::encode).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<[u8; 32]>, D::Error> {
        let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
        let mut hash = [0; 32];
        hex::decode_to_slice(text, &mut hash).map_err(serde::de::Error::custom)?;
        Ok(Some(hash))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(things: &[(&str, u8)]) -> BTreeMap<Key, [u8; 32]> {
        things.iter().map(|(key, hash)| (Key::new(key), [*hash; 32])).collect()
    }

    fn after(ledger: &Ledger, seq: u64) -> Vec<(String, u64, bool)> {
        ledger.after(seq).map(|(key, entry)| (key.to_string(), entry.seq, entry.hash.is_some())).collect()
    }

    #[test]
    fn each_thing_waits_once_under_its_last_number() {
        let mut ledger = Ledger::default();
        assert!(ledger.update(7, &wanted(&[("a", 1), ("b", 1)])).unwrap());
        assert!(!ledger.update(7, &wanted(&[("a", 1), ("b", 1)])).unwrap());
        assert!(ledger.update(7, &wanted(&[("a", 2)])).unwrap());
        assert_eq!(after(&ledger, 0), [("b".into(), 3, false), ("a".into(), 4, true)]);
        assert_eq!(after(&ledger, 3), [("a".into(), 4, true)]);
        assert_eq!(ledger.position(), Position { epoch: 7, seq: 4 });
        assert_eq!(Ledger::from_bytes(&ledger.to_bytes()).unwrap(), ledger);
    }

    #[test]
    fn an_acknowledged_deletion_is_forgotten_and_who_missed_it_compares() {
        let mut ledger = Ledger::default();
        ledger.update(7, &wanted(&[("a", 1), ("b", 1)])).unwrap();
        ledger.update(7, &wanted(&[("b", 1)])).unwrap();
        assert!(ledger.can_resume(Position { epoch: 7, seq: 1 }));
        ledger.acknowledged(3);
        assert_eq!(after(&ledger, 0), [("b".into(), 2, true)]);
        assert!(!ledger.can_resume(Position { epoch: 7, seq: 1 }) && ledger.knows(Position { epoch: 7, seq: 1 }));
        assert!(ledger.can_resume(Position { epoch: 7, seq: 3 }));
    }

    #[test]
    fn a_ledger_from_an_older_backup_does_not_know_what_came_after_it() {
        let mut ledger = Ledger::default();
        ledger.update(1, &wanted(&[("a", 1)])).unwrap();
        let backup = ledger.to_bytes();
        ledger.update(2, &wanted(&[("a", 2)])).unwrap();
        let given = ledger.position();
        let mut restored = Ledger::from_bytes(&backup).unwrap();
        for change in 3..6 {
            restored.update(3, &wanted(&[("a", change)])).unwrap();
        }
        assert!(restored.position().seq > given.seq && !restored.knows(given) && ledger.knows(given));
    }

    #[test]
    fn deletions_do_not_pile_up_while_a_site_is_away() {
        let mut ledger = Ledger::default();
        for n in 0..Limits::KEYS_MAX + 50 {
            ledger.update(7, &wanted(&[(&format!("k{n}"), 1)])).unwrap();
        }
        ledger.update(7, &wanted(&[])).unwrap();
        assert_eq!((ledger.entries.len(), ledger.deletions), (Limits::KEYS_MAX, Limits::KEYS_MAX));
        assert!(!ledger.can_resume(Position { epoch: 7, seq: 1 }) && ledger.knows(Position { epoch: 7, seq: 1 }));
        assert_eq!(Ledger::from_bytes(&ledger.to_bytes()).unwrap(), ledger);
        ledger.acknowledged(ledger.position().seq);
        assert!(ledger.entries.is_empty() && ledger.order.is_empty() && ledger.deletions == 0);
    }

    #[test]
    fn history_is_bounded_and_too_much_is_refused_whole() {
        let mut ledger = Ledger::default();
        for run in 1..200 {
            ledger.update(run, &wanted(&[("a", run as u8)])).unwrap();
        }
        assert_eq!(ledger.history.len(), HISTORY_MAX);
        let before = ledger.clone();
        let many = (0..=Limits::KEYS_MAX).map(|n| (Key::new(&n.to_string()), [0; 32])).collect();
        assert!(matches!(ledger.update(1, &many), Err(TooMuch::Keys { .. })));
        assert_eq!(ledger, before);
        assert!(Ledger::from_bytes(b"{}").is_err());
    }
}
