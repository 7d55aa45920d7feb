//! What is taken in: bodies, requests, and the reading of them, each with a bound.
//!
//! What must hold: no more is held than there is room for; no origin has more than three quarters of a room, so that others
//! find the rest; a request is read on another thread only while few others are, and then it is each origin's turn.

mod turns;

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use self::turns::Turns;
use crate::api::Refusal;

/// Most answers that are made or waited for at once.
pub(crate) const OPEN_MAX: usize = 256;
/// Requests that are parsed and tokenized at once; others wait, each with its place among the open ones.
const READERS_MAX: usize = 8;

/// The rooms of a server.
#[derive(Debug)]
pub(crate) struct Intake {
    /// Bytes of requests and of long answers.
    pub(crate) bodies: Room,
    /// Answers that are open.
    pub(crate) open: Room,
    /// Connections.
    pub(crate) connections: Room,
    readers: Readers,
}

impl Intake {
    pub(crate) fn new(bodies_bytes_max: usize, connections_max: usize) -> Self {
        Self {
            bodies: Room::new(bodies_bytes_max, "bytes of requests and answers"),
            open: Room::new(OPEN_MAX, "requests"),
            connections: Room::new(connections_max, "connections"),
            readers: Readers(Arc::new(Mutex::new(Turns::new(READERS_MAX, origin_max(READERS_MAX))))),
        }
    }

    /// Reads a request of that origin, which takes its time, on another thread when it is its turn. Whoever stops waiting
    /// before that is not read at all.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        origin: &str,
        read: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let turn = self.readers.turn(origin).await;
        let work = move || {
            let _turn = turn;
            read()
        };
        let failed = |error| Refusal::plain(500, format!("reading the request: {error}"));
        tokio::task::spawn_blocking(work).await.map_err(failed)?
    }
}

/// Those that read, and those that wait for that. Cheap to clone. The lock is held for a moment, to come, to go, and to call
/// the next.
#[derive(Clone, Debug)]
struct Readers(Arc<Mutex<Turns<oneshot::Sender<()>>>>);

/// One that waits for its turn or has it, until this is dropped.
struct Turn {
    readers: Readers,
    origin: String,
    number: u64,
}

impl Readers {
    async fn turn(&self, origin: &str) -> Turn {
        let (call, called) = oneshot::channel();
        let number = self.0.lock().wait(origin, call);
        let turn = Turn { readers: self.clone(), origin: origin.to_owned(), number };
        self.call();
        called.await.expect("it is in line until it is called");
        turn
    }

    /// Calls everybody whose turn it is.
    fn call(&self) {
        let mut turns = self.0.lock();
        while let Some(call) = turns.next() {
            // Whoever does not hear it any more is about to drop its turn.
            let _ = call.send(());
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.readers.0.lock().leave(&self.origin, self.number);
        self.readers.call();
    }
}

/// So much of something, for all origins together. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Room {
    most: usize,
    /// What it is for.
    things: &'static str,
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
    fn new(most: usize, things: &'static str) -> Self {
        Self { most, things, taken: Arc::default() }
    }

    /// The most that one origin may have.
    pub(crate) fn of_one(&self) -> usize {
        origin_max(self.most)
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
        let full = |whose: &str| Err(Refusal::plain(429, format!("too many {}{whose}; try again", self.room.things)));
        if taken.all + more > self.room.most {
            return full("");
        }
        if of_origin > origin_max(self.room.most) {
            return full(" from this client");
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
        let room = Room::new(8, "apples");
        let (mut one, mut more, mut other) = (room.part("one"), room.part("one"), room.part("other"));
        one.take(5).unwrap();
        assert_eq!(
            more.take(2),
            Err(Refusal::plain(429, "too many apples from this client; try again")),
            "three quarters"
        );
        more.take(1).unwrap();
        other.take(2).unwrap();
        assert_eq!(other.take(1), Err(Refusal::plain(429, "too many apples; try again")), "all of it");
        drop(one);
        other.take(4).unwrap();
        assert!(other.take(1).is_err(), "three quarters of whoever it is");
        drop((more, other));
        let taken = room.taken.lock();
        assert_eq!((taken.all, taken.by.len()), (0, 0));
    }

    #[tokio::test]
    async fn others_are_read_beside_a_long_line_and_whoever_leaves_it_is_not() {
        let intake = Arc::new(Intake::new(0, 0));
        let (go, going) = std::sync::mpsc::channel::<()>();
        let going = Arc::new(Mutex::new(going));
        let (began, mut begun) = tokio::sync::mpsc::unbounded_channel();
        let read = |origin: &'static str, waits: bool| {
            let (intake, going, began) = (intake.clone(), going.clone(), began.clone());
            let work = move || {
                began.send(origin).unwrap();
                if waits {
                    let _ = going.lock().recv();
                }
                Ok(origin)
            };
            tokio::spawn(async move { intake.read(origin, work).await })
        };
        let all: Vec<_> = (0..20).map(|_| read("many", true)).collect();
        for _ in 0..origin_max(READERS_MAX) {
            assert_eq!(begun.recv().await, Some("many"));
        }
        assert_eq!(read("other", false).await.unwrap(), Ok("other"), "with twenty in line");
        assert_eq!(begun.recv().await, Some("other"));
        assert!(begun.try_recv().is_err(), "no more of one client than its part");
        // Every other one leaves, of those that are read, too.
        let (stay, leave): (Vec<_>, Vec<_>) = all.into_iter().enumerate().partition(|(index, _)| index % 2 == 0);
        for (_, read) in leave {
            read.abort();
            assert!(read.await.unwrap_err().is_cancelled());
        }
        drop(go);
        for (_, read) in stay {
            assert_eq!(read.await.unwrap(), Ok("many"));
        }
        drop(began);
        let mut more = 0;
        while begun.recv().await.is_some() {
            more += 1;
        }
        assert_eq!(more, (20 - origin_max(READERS_MAX)) / 2, "those that stayed, and nobody else");
        while !intake.readers.0.lock().is_empty() {
            tokio::task::yield_now().await;
        }
    }
}
