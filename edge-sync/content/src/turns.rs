//! One at a time for each digest: two who want the same contents do not write the same file.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::OwnedMutexGuard;

use crate::Digest;

type Turn = tokio::sync::Mutex<()>;

/// Whose turn it is, for each digest that somebody is busy with.
#[derive(Debug, Default)]
pub struct Turns(Mutex<HashMap<Digest, Weak<Turn>>>);

/// Others wait for these digests until it is dropped.
#[derive(Debug)]
pub struct Taken(#[expect(dead_code, reason = "held, not read")] Vec<OwnedMutexGuard<()>>);

impl Turns {
    /// Waits until nobody else is busy with any of `digests`. Taken in order, so that nobody waits for each other.
    pub async fn take(&self, digests: &BTreeSet<Digest>) -> Taken {
        let mut taken = Vec::with_capacity(digests.len());
        for digest in digests {
            let turn = self.of(digest);
            taken.push(turn.lock_owned().await);
        }
        Taken(taken)
    }

    fn of(&self, digest: &Digest) -> Arc<Turn> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, turn| turn.strong_count() > 0);
        let turn = all.get(digest).and_then(Weak::upgrade).unwrap_or_default();
        all.insert(digest.clone(), Arc::downgrade(&turn));
        turn
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn whoever_shares_a_digest_waits_and_nobody_waits_for_ever() {
        let turns = Arc::new(Turns::default());
        let busy: Arc<Vec<AtomicUsize>> = Arc::new((0..3).map(|_| AtomicUsize::new(0)).collect());
        let mut all = tokio::task::JoinSet::new();
        for index in 0..60 {
            let (turns, busy) = (turns.clone(), busy.clone());
            all.spawn(async move {
                let mine = [index % 3, (index * 2 + 1) % 3];
                let digests = mine.iter().map(|number| Digest::of(&[*number as u8])).collect();
                let _taken = turns.take(&digests).await;
                let mine: BTreeSet<usize> = mine.into_iter().collect();
                mine.iter().for_each(|number| assert_eq!(busy[*number].fetch_add(1, Ordering::SeqCst), 0));
                tokio::task::yield_now().await;
                mine.iter().for_each(|number| assert_eq!(busy[*number].fetch_sub(1, Ordering::SeqCst), 1));
            });
        }
        all.join_all().await;
        drop(turns.take(&BTreeSet::from([Digest::of(b"last")])).await);
        assert_eq!(turns.0.lock().unwrap().len(), 1, "who is not busy is forgotten");
    }
}
