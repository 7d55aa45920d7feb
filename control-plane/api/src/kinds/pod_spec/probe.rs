//! Probes and lifecycle hooks.

use kedge_schema::field::{FieldError, Path};
use kedge_schema::names;
use serde_json::Value;

use super::Context;
use crate::kinds::check::{self, Errors};
use crate::kinds::fill::{count, len, text};
use crate::object;

/// All of a container's probes and hooks.
pub(super) fn all(errors: &mut Errors, context: &Context<'_>, container: &Value, path: &Path) {
    let grace = context.spec["terminationGracePeriodSeconds"].as_i64();
    for hook in ["postStart", "preStop"] {
        if container["lifecycle"][hook].is_object() {
            handler(errors, &container["lifecycle"][hook], grace, &path.child("lifecycle").child(hook));
        }
    }
    if !container["lifecycle"]["stopSignal"].is_null() {
        stop_signal(
            errors,
            context,
            &container["lifecycle"]["stopSignal"],
            &path.child("lifecycle").child("stopSignal"),
        );
    }
    for kind in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if container[kind].is_object() {
            probe(errors, &container[kind], kind, grace, &path.child(kind));
        }
    }
}

fn probe(errors: &mut Errors, probe: &Value, kind: &str, grace: Option<i64>, path: &Path) {
    handler(errors, probe, grace, path);
    for key in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        check::not_negative(errors, &path.child(key), &probe[key]);
    }
    let at = path.child("terminationGracePeriodSeconds");
    let own = &probe["terminationGracePeriodSeconds"];
    if own.as_i64().is_some_and(|seconds| seconds <= 0) {
        errors.push(FieldError::invalid(&at, own.clone(), "must be greater than 0"));
    }
    match kind {
        "readinessProbe" if !own.is_null() => {
            errors.push(FieldError::invalid(&at, own.clone(), "must not be set for readinessProbes"));
        }
        "livenessProbe" | "startupProbe" if count(&probe["successThreshold"]) != 1 => {
            let path = path.child("successThreshold");
            errors.push(FieldError::invalid(&path, probe["successThreshold"].clone(), "must be 1"));
        }
        _ => {}
    }
}

fn handler(errors: &mut Errors, handler: &Value, grace: Option<i64>, path: &Path) {
    let kinds = ["exec", "httpGet", "tcpSocket", "grpc", "sleep"];
    let mut given = kinds.into_iter().filter(|kind| handler[*kind].is_object());
    let Some(kind) = given.next() else {
        return errors.push(FieldError::required(path, "must specify a handler type"));
    };
    let (action, at) = (&handler[kind], path.child(kind));
    match kind {
        "exec" if len(&action["command"]) == 0 => errors.push(FieldError::required(&at.child("command"), "")),
        "httpGet" => http(errors, action, &at),
        "tcpSocket" | "grpc" => check::port(errors, &at.child("port"), &action["port"]),
        "sleep" => {
            let seconds = count(&action["seconds"]);
            if let Some(grace) = grace.filter(|grace| !(0..=*grace).contains(&seconds)) {
                let why = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
                errors.push(FieldError::invalid(&at, seconds, why));
            }
        }
        _ => {}
    }
    for kind in given {
        errors.push(FieldError::forbidden(&path.child(kind), "may not specify more than 1 handler type"));
    }
}

fn http(errors: &mut Errors, action: &Value, path: &Path) {
    check::required(errors, &path.child("path"), &action["path"]);
    check::port(errors, &path.child("port"), &action["port"]);
    check::among_any(errors, &path.child("scheme"), &action["scheme"], &["HTTP", "HTTPS"]);
    for header in object::items(action, "httpHeaders") {
        let name = text(&header["name"]);
        let letter = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        if name.is_empty() || !name.bytes().all(letter) {
            let rule = "a valid HTTP header must consist of alphanumeric characters or '-'";
            let why = names::pattern_words(rule, "[-A-Za-z0-9]+", &["X-Header-Name"]);
            errors.push(FieldError::invalid(&path.child("httpHeaders"), name, why));
        }
    }
}

/// Signals by name, for the operating system the pod says it is for (KEP-4960).
fn stop_signal(errors: &mut Errors, context: &Context<'_>, signal: &Value, path: &Path) {
    const WINDOWS: &[&str] = &["SIGKILL", "SIGTERM"];
    const LINUX: &[&str] = &[
        "SIGABRT",
        "SIGALRM",
        "SIGBUS",
        "SIGCHLD",
        "SIGCLD",
        "SIGCONT",
        "SIGFPE",
        "SIGHUP",
        "SIGILL",
        "SIGINT",
        "SIGIO",
        "SIGIOT",
        "SIGKILL",
        "SIGPIPE",
        "SIGPOLL",
        "SIGPROF",
        "SIGPWR",
        "SIGQUIT",
        "SIGRTMAX",
        "SIGRTMAX-1",
        "SIGRTMAX-10",
        "SIGRTMAX-11",
        "SIGRTMAX-12",
        "SIGRTMAX-13",
        "SIGRTMAX-14",
        "SIGRTMAX-2",
        "SIGRTMAX-3",
        "SIGRTMAX-4",
        "SIGRTMAX-5",
        "SIGRTMAX-6",
        "SIGRTMAX-7",
        "SIGRTMAX-8",
        "SIGRTMAX-9",
        "SIGRTMIN",
        "SIGRTMIN+1",
        "SIGRTMIN+10",
        "SIGRTMIN+11",
        "SIGRTMIN+12",
        "SIGRTMIN+13",
        "SIGRTMIN+14",
        "SIGRTMIN+15",
        "SIGRTMIN+2",
        "SIGRTMIN+3",
        "SIGRTMIN+4",
        "SIGRTMIN+5",
        "SIGRTMIN+6",
        "SIGRTMIN+7",
        "SIGRTMIN+8",
        "SIGRTMIN+9",
        "SIGSEGV",
        "SIGSTKFLT",
        "SIGSTOP",
        "SIGSYS",
        "SIGTERM",
        "SIGTRAP",
        "SIGTSTP",
        "SIGTTIN",
        "SIGTTOU",
        "SIGURG",
        "SIGUSR1",
        "SIGUSR2",
        "SIGVTALRM",
        "SIGWINCH",
        "SIGXCPU",
        "SIGXFSZ",
    ];
    match text(&context.spec["os"]["name"]) {
        "" => errors.push(FieldError::forbidden(path, "may not be set for containers with empty `spec.os.name`")),
        "windows" => check::among(errors, path, signal, WINDOWS),
        _ => check::among(errors, path, signal, LINUX),
    }
}
