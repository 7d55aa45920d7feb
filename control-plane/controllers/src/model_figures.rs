//! How busy a `ModelService` is, for its table: tokens a second and requests that wait, of all its pods together.
//!
//! Pods count what they have done at `/metrics` and tell nobody when; so those of services that answer are asked four
//! times a minute, as upstream's metrics-server does, through the API's proxy. The status is written only when what the
//! table shows has changed, which a service that nobody asks never does.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::AsyncReadExt;
use k8s_openapi::api::core::v1::Pod;
use kedge_client::{Context, Key, Next, Reconcile, Trigger};
use kedge_own::ModelService;
use kube::ResourceExt;

use crate::model_services::{LABEL, PORT};
use crate::write;

/// Between two questions.
const PERIOD: Duration = Duration::from_secs(15);

/// How long an answer of a pod may take, and how long it may be: anybody's pod can carry the label.
const ANSWER_MAX: Duration = Duration::from_secs(5);
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// What a pod has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Counts {
    tokens: f64,
    waiting: f64,
}

/// When the pods of a service were asked, and the tokens that each that answered had counted, by its uid.
#[derive(Clone, Debug)]
struct Round {
    at: Duration,
    tokens: HashMap<String, f64>,
}

/// Remembers what the pods of each service said last.
#[derive(Default)]
pub(crate) struct Controller(Mutex<HashMap<Key, Round>>);

impl Reconcile for Controller {
    type Error = kube::Error;

    fn name(&self) -> &'static str {
        "modelservice-figures"
    }

    fn watch(&self, context: &Context, trigger: &Trigger) {
        context.watch_self::<ModelService>(trigger);
    }

    async fn reconcile(&self, context: &Context, key: &Key) -> kube::Result<Next> {
        let answers = |service: &ModelService| service.status.as_ref().is_some_and(|status| status.ready_replicas > 0);
        let service = context.informers.of::<ModelService>().get(key);
        let Some(service) = service.filter(|service| answers(service)) else {
            self.lock().remove(key);
            return Ok(Next::Change);
        };
        let now = context.world.clock.monotonic();
        let before = self.lock().get(key).cloned();
        if let Some(wait) =
            before.as_ref().and_then(|before| (before.at + PERIOD).checked_sub(now)).filter(|w| !w.is_zero())
        {
            // Something else about the service has changed.
            return Ok(Next::After(wait));
        }
        let (mut rate, mut waiting, mut round) = (0.0, 0.0, Round { at: now, tokens: HashMap::new() });
        for pod in context.informers.of::<Pod>().list_in(&key.namespace) {
            if pod.labels().get(LABEL) != Some(&key.name) || !is_ready(&pod) {
                continue;
            }
            let Some(counts) = ask(context, key, &pod.name_any()).await? else { continue };
            let uid = pod.uid().unwrap_or_default();
            if let Some(before) = &before
                && let Some(tokens) = before.tokens.get(&uid)
            {
                rate += per_second(*tokens, counts.tokens, now.saturating_sub(before.at));
            }
            waiting += counts.waiting;
            round.tokens.insert(uid, counts.tokens);
        }
        self.lock().insert(key.clone(), round);
        let mut changed = (*service).clone();
        let mut status = changed.status.clone().unwrap_or_default();
        (status.tokens_per_second, status.queue) = (Some(shown(rate)), Some(waiting as i32));
        if changed.status.as_ref() != Some(&status) {
            changed.status = Some(status);
            write::replace_status(context, &changed).await?;
        }
        Ok(Next::After(PERIOD))
    }
}

impl Controller {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Round>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    pod.metadata.deletion_timestamp.is_none()
        && conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// What a pod says; none when it cannot say it now, or says more than these counts ever are.
async fn ask(context: &Context, key: &Key, pod: &str) -> kube::Result<Option<Counts>> {
    let path = format!("/api/v1/namespaces/{}/pods/{pod}:{PORT}/proxy/metrics", key.namespace);
    let request = http::Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)?;
    let said = async {
        let answer = context.informers.client().request_stream(request).await?;
        let mut text = String::new();
        let read = pin!(answer).take(ANSWER_BYTES_MAX).read_to_string(&mut text).await;
        Ok((read.is_ok_and(|bytes| (bytes as u64) < ANSWER_BYTES_MAX)).then_some(text))
    };
    match tokio::time::timeout(ANSWER_MAX, said).await {
        Ok(Ok(text)) => Ok(text.as_deref().and_then(counts)),
        // It may be gone, or not reached; the service's condition tells more.
        Ok(Err(kube::Error::Api(_))) | Err(_) => Ok(None),
        Ok(Err(error)) => Err(error),
    }
}

/// The counts in the text of `/metrics`: tokens made, or of a model that makes vectors those read.
fn counts(text: &str) -> Option<Counts> {
    let sum = |name: &str| {
        let values = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let rest = if rest.starts_with('{') { rest.split_once('}')?.1 } else { rest };
            rest.strip_prefix(' ')?.split(' ').next()?.parse::<f64>().ok()
        });
        values.reduce(|sum, value| sum + value)
    };
    let tokens = sum("vllm:generation_tokens_total").or_else(|| sum("vllm:prompt_tokens_total"));
    let waiting = sum("vllm:num_requests_waiting");
    (tokens.is_some() || waiting.is_some())
        .then(|| Counts { tokens: tokens.unwrap_or(0.0), waiting: waiting.unwrap_or(0.0) })
}

/// Tokens a second since a pod was asked last; one that began to count anew has made what it says since then.
fn per_second(before: f64, tokens: f64, passed: Duration) -> f64 {
    let made = if tokens < before { tokens } else { tokens - before };
    made / passed.as_secs_f64().max(1.0)
}

/// Two digits are enough for a table, and change less often.
fn shown(rate: f64) -> String {
    match rate {
        rate if rate < 0.05 => "0".into(),
        rate if rate < 10.0 => format!("{rate:.1}"),
        rate => {
            let unit = 10_f64.powf(rate.log10().floor() - 1.0);
            format!("{:.0}", (rate / unit).round() * unit)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_found_in_what_pods_say() {
        let decoder = "# HELP x y\nvllm:prompt_tokens_total{model_name=\"m\"} 7\n\
                       vllm:generation_tokens_total{model_name=\"m\"} 40\nvllm:num_requests_waiting{model_name=\"a b\"} 3\n";
        let encoder = "vllm:prompt_tokens_total{model_name=\"m\"} 7\nvllm:num_requests_waiting{model_name=\"m\"} 0\n";
        for (text, expected) in [
            (decoder, Some(Counts { tokens: 40.0, waiting: 3.0 })),
            (encoder, Some(Counts { tokens: 7.0, waiting: 0.0 })),
            ("vllm:num_requests_waiting 2\n", Some(Counts { tokens: 0.0, waiting: 2.0 })),
            ("vllm:num_requests_waiting_for_long 2\n", None),
            ("<html>", None),
        ] {
            assert_eq!(counts(text), expected, "{text}");
        }
    }

    #[test]
    fn rates_are_of_the_time_between_and_begin_anew_with_the_pod() {
        for (tokens, passed, expected) in [(200.0, 15, 10.0), (50.0, 15, 0.0), (30.0, 15, 2.0), (51.0, 0, 1.0)] {
            assert_eq!(per_second(50.0, tokens, Duration::from_secs(passed)), expected);
        }
    }

    #[test]
    fn two_digits_are_shown() {
        for (rate, expected) in
            [(0.0, "0"), (0.04, "0"), (0.26, "0.3"), (9.87, "9.9"), (59.4, "59"), (123.0, "120"), (1477.0, "1500")]
        {
            assert_eq!(shown(rate), expected);
        }
    }
}
