//! What is taken in: bodies, requests, and the reading of them, each with a bound.
//!
//! What must hold: no more is held than there is room for; no origin has more than three quarters of a room, so that others
//! find the rest; a request is read on another thread only while so few others are that nobody waits for long.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::api::Refusal;

/// Most answers that are made or waited for at once.
pub(crate) const OPEN_MAX: usize = 256;
/// Requests that are parsed and tokenized at once; others wait, each with its place among the open ones.
const READERS_MAX: usize = 8;

/// The rooms of a server.
#[derive(Debug)]
pub(crate) struct Intake {
    /// Bytes of bodies.
    pub(crate) bodies: Room,
    /// Answers that are open.
    pub(crate) open: Room,
    /// Connections.
    pub(crate) connections: Room,
    readers: Arc<Semaphore>,
}

impl Intake {
    pub(crate) fn new(bodies_bytes_max: usize, connections_max: usize) -> Self {
        Self {
            bodies: Room::new(bodies_bytes_max, "as many bytes of requests are held as may"),
            open: Room::new(OPEN_MAX, "as many requests wait as may"),
            connections: Room::new(connections_max, "as many connections are open as may"),
            readers: Arc::new(Semaphore::new(READERS_MAX)),
        }
    }

    /// Reads a request, which takes its time, on another thread when it is its turn. Whoever stops waiting before that is
    /// not read at all.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let turn = self.readers.clone().acquire_owned().await.expect("it is never closed");
        let work = move || {
            let _turn = turn;
            read()
        };
        let failed = |error| Refusal::plain(500, format!("reading the request: {error}"));
        tokio::task::spawn_blocking(work).await.map_err(failed)?
    }
}

/// So much of something, for all origins together. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Room {
    most: usize,
    /// What is said when there is no more.
    full: &'static str,
    /// Held for a moment, to take a part or to give it back.
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    /// By origin; none has nothing.
    by: HashMap<String, usize>,
}

/// What a request has of a room, until this is dropped.
#[derive(Debug)]
pub(crate) struct Part {
    room: Room,
    origin: String,
    amount: usize,
}

impl Room {
    fn new(most: usize, full: &'static str) -> Self {
        Self { most, full, taken: Arc::default() }
    }

    /// A part with nothing in it yet.
    pub(crate) fn part(&self, origin: &str) -> Part {
        Part { room: self.clone(), origin: origin.to_owned(), amount: 0 }
    }
}

/// What one origin may have of a room: never nothing.
pub(crate) const fn origin_max(most: usize) -> usize {
    most - most / 4
}

impl Part {
    /// Takes so much more, or nothing and says why.
    pub(crate) fn take(&mut self, more: usize) -> Result<(), Refusal> {
        let mut taken = self.room.taken.lock();
        let of_origin = taken.by.get(&self.origin).copied().unwrap_or(0) + more;
        let full = |whose: &str| Err(Refusal::plain(429, format!("{}{whose}; try again", self.room.full)));
        if taken.all + more > self.room.most {
            return full("");
        }
        if of_origin > origin_max(self.room.most) {
            return full(" of one client");
        }
        taken.all += more;
        taken.by.insert(self.origin.clone(), of_origin);
        self.amount += more;
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let mut taken = self.room.taken.lock();
        taken.all -= self.amount;
        if let Some(left) = taken.by.get_mut(&self.origin) {
            *left -= self.amount;
            if *left == 0 {
                taken.by.remove(&self.origin);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_origin_leaves_room_for_others_and_what_is_dropped_is_there_again() {
        let room = Room::new(8, "full");
        let (mut one, mut more, mut other) = (room.part("one"), room.part("one"), room.part("other"));
        one.take(5).unwrap();
        assert_eq!(more.take(2), Err(Refusal::plain(429, "full of one client; try again")), "three quarters");
        more.take(1).unwrap();
        other.take(2).unwrap();
        assert_eq!(other.take(1), Err(Refusal::plain(429, "full; try again")), "all of it");
        drop(one);
        other.take(4).unwrap();
        assert!(other.take(1).is_err(), "three quarters of whoever it is");
        drop((more, other));
        let taken = room.taken.lock();
        assert_eq!((taken.all, taken.by.len()), (0, 0));
    }

    #[tokio::test]
    async fn whoever_leaves_before_its_turn_is_not_read() {
        let intake = Arc::new(Intake::new(0, 0));
        let (go, going) = std::sync::mpsc::channel::<()>();
        let going = Arc::new(Mutex::new(going));
        let read = |say: &'static str| {
            let (intake, going) = (intake.clone(), going.clone());
            let wait = move || {
                let _ = going.lock().recv();
                Err::<(), _>(Refusal::plain(400, say))
            };
            tokio::spawn(async move { intake.read(wait).await })
        };
        let all: Vec<_> = (0..READERS_MAX).map(|_| read("read")).collect();
        while intake.readers.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let leaves = read("read in vain");
        tokio::task::yield_now().await;
        leaves.abort();
        assert!(leaves.await.unwrap_err().is_cancelled());
        drop(go);
        for read in all {
            assert_eq!(read.await.unwrap().unwrap_err().reason, "read");
        }
        assert_eq!(intake.readers.available_permits(), READERS_MAX);
    }
}
