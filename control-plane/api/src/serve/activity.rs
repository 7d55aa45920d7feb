//! Whether a connection is of use: how many of its requests are on the way, and since when none is.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::body::Body;

/// What one connection is doing.
#[derive(Clone, Debug)]
pub(super) struct Activity(Arc<watch::Sender<State>>);

#[derive(Clone, Copy, Debug)]
struct State {
    /// Requests that are not answered to their last byte.
    requests: usize,
    /// Whether there was one at all.
    began: bool,
    /// The last change of the above.
    since: Instant,
}

impl Activity {
    /// That of a connection which has just been made.
    pub(super) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(State { requests: 0, began: false, since: Instant::now() })))
    }

    /// A request has come; it is on the way until what comes back is dropped.
    pub(super) fn begin(&self) -> Busy {
        self.change(|state| {
            state.requests += 1;
            state.began = true;
        });
        Busy(self.clone())
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        self.0.send_modify(|state| {
            change(state);
            state.since = Instant::now();
        });
    }

    /// Resolves when there was no request for a while: `first` for the very first one, `next` between them.
    pub(super) async fn quiet(&self, first: Duration, next: Duration) {
        let mut news = self.0.subscribe();
        loop {
            let state = *news.borrow_and_update();
            let end = state.since + if state.began { next } else { first };
            tokio::select! {
                () = tokio::time::sleep_until(end), if state.requests == 0 => return,
                // This holds the sender, so there is always news to wait for.
                _ = news.changed() => {}
            }
        }
    }
}

/// A request on the way.
#[derive(Debug)]
pub(super) struct Busy(Activity);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.change(|state| state.requests -= 1);
    }
}

/// An answer that keeps its connection busy until it is sent, or until `end` resolves.
pub(super) struct Answer {
    body: Body,
    end: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    _busy: Busy,
}

impl Answer {
    /// An answer that ends by itself, or earlier with `end`.
    pub(super) fn new(body: Body, end: Option<Pin<Box<dyn Future<Output = ()> + Send>>>, busy: Busy) -> Self {
        Self { body, end, _busy: busy }
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Some(end) = &mut self.end
            && end.as_mut().poll(cx).is_ready()
        {
            self.body = Body::empty();
            self.end = None;
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_quiet_when_no_request_is_on_the_way() {
        let (first, next) = (Duration::from_secs(3), Duration::from_secs(9));
        let seconds = async |activity: &Activity| {
            let begin = Instant::now();
            activity.quiet(first, next).await;
            begin.elapsed().as_secs()
        };
        let activity = Activity::new();
        assert_eq!(seconds(&activity).await, 3, "nothing was ever asked");
        let one = activity.begin();
        let two = activity.begin();
        drop(one);
        let long = Duration::from_secs(1000);
        assert!(tokio::time::timeout(long, activity.quiet(first, next)).await.is_err(), "one is on the way");
        drop(two);
        assert_eq!(seconds(&activity).await, 9);
    }
}
