//! What controllers did and could not do, for `kubectl describe`. (`pkg/controller/controller_utils.go`.)
//!
//! Telling never waits: [`kedge_client::events`] counts what is told again, puts together what is alike, and writes.

use kedge_client::Context;
use kedge_client::events::Told;

use crate::write::Namespaced;

/// What an error says, without what a client adds for programmers.
pub(crate) fn text(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        other => other.to_string(),
    }
}

/// Tells what was done about `object`.
pub(crate) fn tell<O: Namespaced>(context: &Context, controller: &str, object: &O, reason: &str, message: String) {
    context.recorder(controller).tell(Told::of(object, false, reason, message));
}

/// Tells a trouble with `object`.
pub(crate) fn warn<O: Namespaced>(context: &Context, controller: &str, object: &O, reason: &str, message: String) {
    context.recorder(controller).tell(Told::of(object, true, reason, message));
}
