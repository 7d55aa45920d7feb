//! What all listeners of a server share: room for connections and for bodies, and the word that it ends.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body::Body as HttpBody;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;

use super::BoxError;
use crate::api::BODY_BYTES_MAX;
use crate::error::ApiError;

/// Connections served at once; the rest wait in the kernel's queue.
const CONNECTIONS_MAX: u32 = 4096;
/// Bodies held at once, all together: one at its largest for each of some twenty writers, and this is a small machine's.
/// Who finds no room waits for it, as long as a body may take.
const BODIES_BYTES_MAX: usize = 64 << 20;
/// Until a body is there (`--request-timeout` of upstream).
const BODY_MAX: Duration = Duration::from_secs(60);
const UNIT_BYTES: usize = 1 << 10;

/// Shared by all listeners of a server.
#[derive(Debug)]
pub(crate) struct Gate {
    places: Arc<Semaphore>,
    room: Arc<Semaphore>,
    closing: watch::Sender<bool>,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            places: Arc::new(Semaphore::new(CONNECTIONS_MAX as usize)),
            room: Arc::new(Semaphore::new(BODIES_BYTES_MAX / UNIT_BYTES)),
            closing: watch::Sender::new(false),
        }
    }
}

/// A body that was read.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) bytes: Bytes,
    /// What it takes up, until the request is carried out; none for what was in memory anyway.
    pub(crate) room: Option<OwnedSemaphorePermit>,
}

impl Gate {
    /// A place for one connection, as soon as there is one.
    pub(super) async fn place(&self) -> OwnedSemaphorePermit {
        self.places.clone().acquire_owned().await.expect("the semaphore is never closed")
    }

    /// From now on nothing new is taken in.
    pub(super) fn close(&self) {
        self.closing.send_replace(true);
    }

    /// Resolves when the server ends.
    pub(super) fn closed(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut closing = self.closing.subscribe();
        async move {
            // An error: the gate itself is gone, and the server with it.
            let _ = closing.wait_for(|closing| *closing).await;
        }
    }

    /// Resolves when no connection is left.
    pub(super) async fn empty(&self) {
        drop(self.places.acquire_many(CONNECTIONS_MAX).await.expect("the semaphore is never closed"));
    }

    /// Reads a body that comes over the network.
    pub(super) async fn read<B>(&self, body: B) -> Result<Taken, ApiError>
    where
        B: HttpBody + Send,
        B::Error: Into<BoxError>,
        B::Data: Send,
    {
        let reading = async {
            // What does not say how large it is may be as large as any.
            let most =
                body.size_hint().upper().map_or(BODY_BYTES_MAX, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
            if most == 0 {
                return Ok(Taken { bytes: Bytes::new(), room: None });
            }
            if most > BODY_BYTES_MAX {
                return Err(ApiError::too_large(BODY_BYTES_MAX));
            }
            let units = u32::try_from(most.div_ceil(UNIT_BYTES)).expect("a body is far smaller");
            let room = self.room.clone().acquire_many_owned(units).await.expect("the semaphore is never closed");
            Ok(Taken { bytes: collect(body).await?, room: Some(room) })
        };
        match timeout(BODY_MAX, reading).await {
            Ok(taken) => taken,
            Err(_) => Err(ApiError::timeout(format!("the body was not there within {} s", BODY_MAX.as_secs()))),
        }
    }
}

/// Reads a body to its end, up to the most that a body may have.
pub(super) async fn collect<B>(body: B) -> Result<Bytes, ApiError>
where
    B: HttpBody + Send,
    B::Error: Into<BoxError>,
    B::Data: Send,
{
    match Limited::new(body, BODY_BYTES_MAX).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(ApiError::too_large(BODY_BYTES_MAX)),
        Err(error) => Err(ApiError::bad_request(format!("cannot read the body: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, StreamExt, stream};
    use http_body::Frame;
    use http_body_util::{Full, StreamBody};

    use super::*;

    fn full(bytes: usize) -> Full<Bytes> {
        Full::new(Bytes::from(vec![b'x'; bytes]))
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_are_bounded_in_size_time_and_all_together() {
        let gate = Gate::default();
        let endless = || StreamBody::new(stream::pending::<Result<Frame<Bytes>, std::io::Error>>());
        let streamed = StreamBody::new(stream::iter([Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(b"ab")))]));
        assert_eq!(gate.read(full(3)).await.unwrap().bytes, "xxx");
        assert_eq!(gate.read(streamed).await.unwrap().bytes, "ab");
        assert_eq!(gate.read(full(BODY_BYTES_MAX + 1)).await.unwrap_err().code, 413);
        assert_eq!(gate.read(endless()).await.unwrap_err().code, 504);

        let held: Vec<Taken> =
            stream::iter(0..21).then(|_| gate.read(full(BODY_BYTES_MAX))).map(Result::unwrap).collect().await;
        assert_eq!(gate.read(full(2 << 20)).await.unwrap_err().code, 504, "there is no room for another");
        assert!(gate.read(full(0)).now_or_never().is_some(), "what has no body waits for nobody");
        assert!(gate.read(full(1000)).now_or_never().is_some(), "a small one still fits");
        drop(held);
        assert!(gate.read(full(BODY_BYTES_MAX)).now_or_never().is_some());
    }
}
