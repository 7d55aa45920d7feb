//! Where a panic ends: at the request that showed the defect, with a line in the log, and not with the connection that
//! carries others, or the part of this process that asked.
//! (`k8s.io/apiserver/pkg/server/filters/wrap.go`, WithPanicRecovery.)

use std::any::Any;
use std::panic::AssertUnwindSafe;

use bytes::Bytes;
use futures::{FutureExt, Stream, StreamExt, future};

use crate::error::ApiError;

/// The outcome of `work`, which is done for `what`.
pub(crate) async fn caught<T>(what: &str, work: impl Future<Output = T>) -> Result<T, ApiError> {
    // Locks here do not poison, and what a request began is not used by the next one.
    AssertUnwindSafe(work).catch_unwind().await.map_err(|panic| told(what, &*panic))
}

/// The stream up to where it panics.
pub(crate) fn cut(stream: impl Stream<Item = Bytes> + Send) -> impl Stream<Item = Bytes> + Send {
    let items = AssertUnwindSafe(stream).catch_unwind();
    items.scan((), |(), item| future::ready(item.map_err(|panic| told("an answer", &*panic)).ok()))
}

/// Notes a panic in the log; what its request is answered with.
pub(crate) fn told(what: &str, panic: &(dyn Any + Send)) -> ApiError {
    let text = panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(|text| &**text));
    tracing::error!(panic = text.unwrap_or("no text"), "{what} caused a panic: a defect of this program");
    ApiError {
        message: "This request caused apiserver to panic. Look in the logs for details.".into(),
        ..ApiError::internal("")
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use kedge_access::{Attributes, Decision, User};
    use serde_json::Value;

    use super::*;
    use crate::api::Api;
    use crate::guard::{Guard, Open};
    use crate::testing::{api, ask};

    /// Fails for one namespace.
    struct Defect;

    impl Guard for Defect {
        fn decide(&self, _: &Api, _: &User, attributes: &Attributes<'_>) -> Decision {
            assert!(attributes.namespace != "bad", "a defect");
            Decision::Allow(String::new())
        }
        fn rules(&self, api: &Api, user: &User, namespace: &str) -> Value {
            Open.rules(api, user, namespace)
        }
        fn authenticate(&self, api: &Api, token: &str, audiences: &[String]) -> Result<(User, Vec<String>), String> {
            Open.authenticate(api, token, audiences)
        }
        fn issue(&self, api: &Api, account: &Value, request: Value) -> Result<Value, ApiError> {
            Open.issue(api, account, request)
        }
    }

    #[tokio::test]
    async fn a_panic_is_the_answer_to_its_request() {
        let api = api(Defect).await;
        let (code, status) = ask(&api, "GET /api/v1/namespaces/bad/pods", Value::Null).await;
        assert_eq!((code, &status["reason"]), (500, &Value::from("InternalError")));
        assert_eq!(ask(&api, "GET /api/v1/namespaces/default/pods", Value::Null).await.0, 200);
        let items = stream::iter([1, 2, 0, 3]).map(|n| Bytes::from((6 / n).to_string()));
        assert_eq!(cut(items).collect::<Vec<_>>().await, ["6", "3"]);
    }
}
