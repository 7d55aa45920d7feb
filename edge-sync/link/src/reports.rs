//! The last state of each thing at the site, on its way to the hub. One entry a key, so that nothing piles up while
//! the hub is away.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::frame::{FromSite, Key, Limits};

/// Frames sent and not acknowledged.
const WINDOW_FRAMES: usize = 2;

/// The state of one thing; none when there is nothing to report any more.
pub type Report = Option<Arc<str>>;

/// What is to be reported, each key under the number of its last change.
#[derive(Debug, Default)]
pub(crate) struct Reports {
    seq: u64,
    latest: BTreeMap<Key, (u64, Report)>,
    order: BTreeMap<u64, Key>,
    sent: u64,
    in_flight: Vec<u64>,
    /// The next frame says that everything before is to be forgotten.
    reset: bool,
}

impl Reports {
    /// Takes over a state. One that is the same as before is no news.
    pub(crate) fn set(&mut self, key: Key, report: Report) {
        match self.latest.get(&key) {
            Some((_, before)) if *before == report => return,
            None if report.is_none() => return,
            Some((seq, _)) => drop(self.order.remove(seq)),
            None => {}
        }
        self.seq += 1;
        self.order.insert(self.seq, key.clone());
        self.latest.insert(key, (self.seq, report));
    }

    /// A connection begins; the hub has everything up to `seen`, or nothing.
    pub(crate) fn begin(&mut self, seen: u64) {
        self.in_flight.clear();
        // A number that was never given is no number of ours.
        let seen = if seen > self.seq { 0 } else { seen };
        self.reset = seen == 0;
        self.sent = seen;
    }

    /// The hub has everything up to `seq`.
    pub(crate) fn acknowledged(&mut self, seq: u64) {
        self.in_flight.retain(|sent| *sent > seq);
        let gone: Vec<(u64, Key)> = self
            .order
            .range(..=seq)
            .filter(|(_, key)| self.latest[*key].1.is_none())
            .map(|(seq, key)| (*seq, key.clone()))
            .collect();
        for (seq, key) in gone {
            self.order.remove(&seq);
            self.latest.remove(&key);
        }
    }

    /// The next frame, if there is something to say and the window has room.
    pub(crate) fn next(&mut self) -> Option<FromSite> {
        if self.in_flight.len() >= WINDOW_FRAMES {
            return None;
        }
        let (mut reports, mut to, mut bytes) = (Vec::new(), self.sent, 0);
        for (seq, key) in self.order.range(self.sent + 1..).take(Limits::BATCH_ENTRIES_MAX) {
            let report = self.latest[key].1.clone();
            bytes += key.bytes() + report.as_ref().map_or(0, |body| body.len());
            if bytes > Limits::BATCH_BYTES && !reports.is_empty() {
                break;
            }
            to = *seq;
            reports.push((key.clone(), report));
        }
        if reports.is_empty() && !self.reset {
            return None;
        }
        let from = std::mem::replace(&mut self.sent, to);
        self.in_flight.push(to);
        Some(FromSite::Reports { reset: std::mem::take(&mut self.reset), from, to, reports })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(reports: &mut Reports, key: &str, body: Option<&str>) {
        reports.set(Key::new(key), body.map(Into::into));
    }

    type Plain = (bool, u64, Vec<(String, Option<String>)>);

    fn next(reports: &mut Reports) -> Option<Plain> {
        match reports.next()? {
            FromSite::Reports { reset, to, reports, .. } => {
                let plain = |(key, body): &(Key, Report)| (key.to_string(), body.as_ref().map(ToString::to_string));
                Some((reset, to, reports.iter().map(plain).collect()))
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_the_last_state_is_sent_and_only_news() {
        let mut reports = Reports::default();
        set(&mut reports, "a", Some("1"));
        set(&mut reports, "a", Some("2"));
        reports.begin(0);
        assert_eq!(next(&mut reports), Some((true, 2, vec![("a".into(), Some("2".into()))])));
        set(&mut reports, "a", Some("2"));
        assert_eq!(next(&mut reports), None);
        reports.acknowledged(2);
        set(&mut reports, "a", None);
        // A cut: the hub has seen 2, and only what came after it is sent again.
        reports.begin(2);
        assert_eq!(next(&mut reports), Some((false, 3, vec![("a".into(), None)])));
        reports.acknowledged(3);
        assert!(reports.latest.is_empty() && reports.order.is_empty());
        // A hub that starts again has seen nothing, and hears that there is nothing.
        reports.begin(0);
        assert_eq!(next(&mut reports), Some((true, 0, vec![])));
    }

    #[test]
    fn the_window_holds_back_and_keys_do_not_pile_up() {
        let mut reports = Reports::default();
        reports.begin(0);
        for round in 0..50 {
            set(&mut reports, "a", Some(&round.to_string()));
            reports.next();
        }
        assert_eq!((reports.in_flight.len(), reports.order.len()), (WINDOW_FRAMES, 1));
    }
}
