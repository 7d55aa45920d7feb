//! Weights on their way to a device: one thread packs, another uploads what is ready.
//!
//! What must hold: memory of the host is bounded (what waits is no more than was said, or one piece alone), and a fault of
//! the device stops both. Not here: devices.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::Fault;

/// The way in, for who packs.
pub(crate) struct Feed<'a, K> {
    pieces: Sender<(K, Vec<u8>)>,
    gate: &'a Gate,
}

/// Bytes that wait or are uploaded, and what went wrong.
struct Gate {
    most: usize,
    state: Mutex<(usize, Option<Fault>)>,
    changed: Condvar,
}

impl Gate {
    fn state(&self) -> MutexGuard<'_, (usize, Option<Fault>)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K> Feed<'_, K> {
    /// Has bytes uploaded to some place, some time; waits until there is room for them among those that wait. A fault may be that of a
    /// piece before.
    pub(crate) fn send(&self, to: K, bytes: Vec<u8>) -> Result<(), Fault> {
        let full = |(waiting, fault): &mut (usize, Option<Fault>)| {
            fault.is_none() && *waiting > 0 && *waiting + bytes.len() > self.gate.most
        };
        let mut state = self.gate.changed.wait_while(self.gate.state(), full).unwrap_or_else(PoisonError::into_inner);
        if let Some(fault) = &state.1 {
            return Err(fault.clone());
        }
        state.0 += bytes.len();
        drop(state);
        // Whoever uploads is there until this is dropped; if it panics, that is a fault for the next piece, and all of this
        // panics in the end.
        let _ = self.pieces.send((to, bytes));
        Ok(())
    }
}

/// Who uploads. If an upload panics, nothing goes on waiting for it.
struct Uploads<'a>(&'a Gate);

impl Drop for Uploads<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let (step, code) = ("uploading weights".into(), "its thread panicked".into());
            self.0.state().1.get_or_insert(Fault::Failed { step, code });
            self.0.changed.notify_all();
        }
    }
}

/// Packs here and uploads on a thread of its own, with no more than so many bytes between the two.
pub(crate) fn feed<K: Send, T>(
    most: usize,
    upload: impl Fn(K, &[u8]) -> Result<(), Fault> + Send,
    pack: impl FnOnce(&Feed<'_, K>) -> Result<T, Fault>,
) -> Result<T, Fault> {
    let gate = Gate { most, state: Mutex::default(), changed: Condvar::new() };
    let (pieces, ready) = channel::<(K, Vec<u8>)>();
    let packed = std::thread::scope(|scope| {
        let gate = &gate;
        scope.spawn(move || {
            let _uploads = Uploads(gate);
            for (to, bytes) in ready {
                let is_sound = gate.state().1.is_none();
                let uploaded = if is_sound { upload(to, &bytes) } else { Ok(()) };
                let length = bytes.len();
                drop(bytes);
                let mut state = gate.state();
                state.0 -= length;
                if let Err(fault) = uploaded {
                    state.1 = Some(fault);
                }
                gate.changed.notify_all();
            }
        });
        // The way in goes before the scope waits for who uploads.
        pack(&Feed { pieces, gate })
    });
    match gate.state().1.take() {
        Some(fault) => Err(fault),
        None => packed,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    const SOON: Duration = Duration::from_secs(60);

    fn lost() -> Fault {
        Fault::Failed { step: "copying".into(), code: "lost".into() }
    }

    #[test]
    fn the_next_piece_is_packed_while_one_is_uploaded() {
        let (next, packed) = channel();
        let packed = Mutex::new(packed);
        let uploaded = Mutex::new(Vec::new());
        let upload = |to, bytes: &[u8]| {
            // The first upload ends only once the second piece was packed.
            if to == 1 {
                packed.lock().unwrap().recv_timeout(SOON).unwrap();
            }
            uploaded.lock().unwrap().push((to, bytes.to_vec()));
            Ok(())
        };
        let made = feed(10, upload, |feed| {
            feed.send(1, vec![1; 4])?;
            next.send(()).unwrap();
            feed.send(2, vec![2; 4])?;
            Ok(7)
        });
        assert_eq!(made, Ok(7));
        assert_eq!(*uploaded.lock().unwrap(), [(1, vec![1; 4]), (2, vec![2; 4])], "in order, and all of them");
    }

    #[test]
    fn what_waits_is_bounded() {
        let uploaded = AtomicUsize::new(0);
        let upload = |_, bytes: &[u8]| {
            std::thread::sleep(Duration::from_millis(1));
            uploaded.fetch_add(bytes.len(), Ordering::SeqCst);
            Ok(())
        };
        feed(10, upload, |feed| {
            let mut sent = 0;
            for length in [3, 4, 5, 6, 25, 1, 9, 10, 0, 2] {
                feed.send(0, vec![0; length])?;
                sent += length;
                // Not more than there were when it was let in.
                let now = sent - uploaded.load(Ordering::SeqCst);
                assert!(now <= 10 || now == length, "{now} after a piece of {length}; one may be larger, alone");
            }
            Ok(())
        })
        .unwrap();
    }

    /// What it was given keeps its room, which is why whoever packs would wait for ever.
    #[test]
    fn an_upload_that_panics_ends_both() {
        let (told, ended) = channel();
        let packing = std::thread::spawn(move || {
            let upload = |(), _: &[u8]| panic!("the driver is no more");
            feed(10, upload, |feed| {
                told.send((0..3).map(|_| feed.send((), vec![0; 6])).find(Result::is_err)).unwrap();
                Ok(())
            })
        });
        let fault = ended.recv_timeout(SOON).expect("nobody waits for ever");
        let expected = Fault::Failed { step: "uploading weights".into(), code: "its thread panicked".into() };
        assert_eq!(fault, Some(Err(expected)));
        assert!(packing.join().is_err(), "and the panic goes on");
    }

    #[test]
    fn a_fault_of_either_side_ends_both() {
        let uploads = AtomicUsize::new(0);
        let upload = |_, _: &[u8]| {
            uploads.fetch_add(1, Ordering::SeqCst);
            Err(lost())
        };
        let mut sent = 0;
        let endless = feed(10, upload, |feed| -> Result<(), Fault> {
            loop {
                feed.send(0, vec![0; 6])?;
                sent += 1;
            }
        });
        assert_eq!((endless, uploads.into_inner()), (Err(lost()), 1));
        assert!(sent <= 2, "{sent}");
        let none = Fault::OutOfMemory { asked_bytes: 1, free_bytes: 0 };
        assert_eq!(feed(10, |(), _| Ok(()), |_| Err::<(), _>(none.clone())), Err(none));
        let last = feed(10, |_, _| Err(lost()), |feed| feed.send(0, vec![1]));
        assert_eq!(last, Err(lost()), "also when packing was done");
    }
}
