//! Choosing a token from logits.
//!
//! The order is that of vLLM's sampler: bias, penalties, temperature, top-k, top-p, min-p, then the draw. What must hold:
//! the same logits, settings, history and place in the answer give the same token, whatever else is computed; a
//! temperature of zero is the largest logit, of equals the first.

use std::collections::HashMap;

/// How tokens are chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; zero for always the likeliest token.
    pub temperature: f32,
    /// Only the likeliest so many; zero for all.
    pub top_k: usize,
    /// Only the likeliest whose probabilities add up to this.
    pub top_p: f32,
    /// Only those at least this share as likely as the likeliest.
    pub min_p: f32,
    /// Logits of tokens in prompt or answer are divided by it, or multiplied where below zero; one for none.
    pub repetition_penalty: f32,
    /// Taken off the logits of tokens in the answer.
    pub presence_penalty: f32,
    /// Taken off the logits of tokens in the answer, for each time they are there.
    pub frequency_penalty: f32,
    /// Added to the logits of tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Where the draws begin.
    pub seed: u64,
    /// How many of the likeliest tokens are told with each; none for no probabilities at all.
    pub logprobs: Option<usize>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            logprobs: None,
        }
    }
}

impl Sampling {
    /// Always the likeliest token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }
}

/// A chosen token.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// The token.
    pub token: u32,
    /// The logarithm of its probability by the model, before any setting changed it; when asked for.
    pub logprob: Option<f32>,
    /// The likeliest tokens and theirs, likeliest first.
    pub top: Vec<(u32, f32)>,
}

/// Logits that are no numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the model's logits are not finite numbers")]
pub struct NotFinite;

/// Tokens that a request has seen.
#[derive(Clone, Debug, Default)]
pub struct History {
    prompt: HashMap<u32, ()>,
    answer: HashMap<u32, u32>,
    length: u64,
}

impl History {
    /// That of a request at its beginning.
    pub fn of_prompt(prompt: &[u32]) -> Self {
        Self { prompt: prompt.iter().map(|token| (*token, ())).collect(), ..Self::default() }
    }

    /// One more token of the answer.
    pub fn push(&mut self, token: u32) {
        *self.answer.entry(token).or_default() += 1;
        self.length += 1;
    }
}

/// Chooses a token. `logits` are changed on the way.
pub fn choose(logits: &mut [f32], sampling: &Sampling, history: &History) -> Result<Choice, NotFinite> {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // A NaN is lost in the maximum, and found in the sum.
    if !top.is_finite() || logits.iter().sum::<f32>().is_nan() {
        return Err(NotFinite);
    }
    let told = sampling.logprobs.map(|count| Told::of(logits, top, count));
    change(logits, sampling, history);
    let token = if sampling.temperature <= 0.0 { largest(logits) } else { draw(logits, sampling, history.length) };
    Ok(Choice {
        token,
        logprob: told.as_ref().map(|told| told.raw[token as usize] - told.log_total),
        top: told.map(|told| told.top).unwrap_or_default(),
    })
}

/// Probabilities as the model has them.
struct Told {
    raw: Vec<f32>,
    log_total: f32,
    top: Vec<(u32, f32)>,
}

impl Told {
    fn of(logits: &[f32], top: f32, count: usize) -> Self {
        let total: f64 = logits.iter().map(|logit| f64::from(logit - top).exp()).sum();
        let log_total = top + total.ln() as f32;
        let best = best(logits, count);
        let top = best.into_iter().map(|token| (token, logits[token as usize] - log_total)).collect();
        Self { raw: logits.to_vec(), log_total, top }
    }
}

/// The largest few, largest first; of equals the first.
fn best(logits: &[f32], count: usize) -> Vec<u32> {
    let count = count.min(logits.len());
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let by = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    if count < order.len() && count > 0 {
        order.select_nth_unstable_by(count - 1, by);
    }
    order.truncate(count);
    order.sort_unstable_by(by);
    order
}

fn largest(logits: &[f32]) -> u32 {
    let mut found = 0;
    for (token, logit) in logits.iter().enumerate() {
        if *logit > logits[found] {
            found = token;
        }
    }
    found as u32
}

fn change(logits: &mut [f32], sampling: &Sampling, history: &History) {
    for (token, bias) in &sampling.logit_bias {
        if let Some(logit) = logits.get_mut(*token as usize) {
            *logit += bias;
        }
    }
    if sampling.repetition_penalty != 1.0 {
        let new = history.answer.keys().filter(|token| !history.prompt.contains_key(token));
        for token in history.prompt.keys().chain(new) {
            if let Some(logit) = logits.get_mut(*token as usize) {
                let by = sampling.repetition_penalty;
                *logit = if *logit > 0.0 { *logit / by } else { *logit * by };
            }
        }
    }
    if sampling.presence_penalty != 0.0 || sampling.frequency_penalty != 0.0 {
        for (token, count) in &history.answer {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit -= sampling.presence_penalty + sampling.frequency_penalty * *count as f32;
            }
        }
    }
}

fn draw(logits: &[f32], sampling: &Sampling, place: u64) -> u32 {
    let all = sampling.top_k == 0 || sampling.top_k >= logits.len();
    let narrow = !all || sampling.top_p < 1.0 || sampling.min_p > 0.0;
    // Only a cut needs the order; the tokens of a plain draw are taken as they come.
    let order: Vec<u32> = if narrow {
        best(logits, if all { logits.len() } else { sampling.top_k })
    } else {
        (0..logits.len() as u32).collect()
    };
    let top = order.iter().map(|token| logits[*token as usize]).fold(f32::NEG_INFINITY, f32::max);
    let power = |token: &u32| f64::from((logits[*token as usize] - top) / sampling.temperature).exp();
    let mut powers: Vec<f64> = order.iter().map(power).collect();
    if sampling.top_p < 1.0 {
        let total: f64 = powers.iter().sum();
        let mut sum = 0.0;
        let kept = powers.iter().position(|power| {
            sum += power;
            sum >= total * f64::from(sampling.top_p)
        });
        powers.truncate(kept.map_or(powers.len(), |last| last + 1));
    }
    if sampling.min_p > 0.0 {
        let least = f64::from(sampling.min_p);
        powers.truncate(powers.iter().position(|power| *power < least).unwrap_or(powers.len()).max(1));
    }
    let total: f64 = powers.iter().sum();
    let mut left = uniform(sampling.seed, place) * total;
    for (token, power) in order.iter().zip(&powers) {
        left -= power;
        if left < 0.0 {
            return *token;
        }
    }
    order[powers.len() - 1]
}

/// A number from zero to below one for each place of a sequence that a seed begins: SplitMix64, by Steele, Lea and Flood.
fn uniform(seed: u64, place: u64) -> f64 {
    let mut z = seed.wrapping_add(place.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 4] = [1.0, 3.0, 2.0, 3.0];

    fn drawn(sampling: &Sampling, history: &History) -> Vec<u32> {
        let mut found: Vec<u32> = (0..500)
            .map(|seed| choose(&mut LOGITS.to_vec(), &Sampling { seed, ..sampling.clone() }, history).unwrap().token)
            .collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    #[test]
    fn settings_narrow_what_can_be_drawn() {
        let none = History::default();
        let all = Sampling::default();
        assert_eq!(drawn(&all, &none), [0, 1, 2, 3]);
        assert_eq!(drawn(&Sampling::greedy(), &none), [1], "of equals the first");
        assert_eq!(drawn(&Sampling { top_k: 3, ..all.clone() }, &none), [1, 2, 3]);
        assert_eq!(drawn(&Sampling { top_p: 0.5, ..all.clone() }, &none), [1, 3]);
        assert_eq!(drawn(&Sampling { min_p: 0.3, ..all.clone() }, &none), [1, 2, 3]);
        assert_eq!(drawn(&Sampling { top_p: 1e-9, ..all.clone() }, &none), [1], "one is always left");
        let bias = Sampling { logit_bias: vec![(0, 100.0), (99, 1.0)], ..all };
        assert_eq!(drawn(&bias, &none), [0]);
    }

    #[test]
    fn penalties_turn_to_what_was_not_said() {
        let mut history = History::of_prompt(&[1]);
        history.push(3);
        history.push(3);
        let greedy = Sampling::greedy();
        let check = |sampling: Sampling, expected: u32| {
            assert_eq!(choose(&mut LOGITS.to_vec(), &sampling, &history).unwrap().token, expected, "{sampling:?}");
        };
        check(greedy.clone(), 1);
        check(Sampling { repetition_penalty: 2.0, ..greedy.clone() }, 2);
        check(Sampling { presence_penalty: 0.5, logit_bias: vec![(1, -0.4)], ..greedy }, 1);
        check(Sampling { frequency_penalty: 0.6, logit_bias: vec![(1, -1.5)], ..greedy }, 2);
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let sampling = Sampling { temperature: 2.0, ..Sampling::default() };
        let mut counts = [0f64; 4];
        for seed in 0..20_000 {
            let sampling = Sampling { seed, ..sampling.clone() };
            counts[choose(&mut LOGITS.to_vec(), &sampling, &History::default()).unwrap().token as usize] += 1.0;
        }
        let powers = LOGITS.map(|logit| f64::from(logit / 2.0).exp());
        for (count, power) in counts.iter().zip(powers) {
            assert!((count / 20_000.0 - power / powers.iter().sum::<f64>()).abs() < 0.015, "{counts:?}");
        }
    }

    #[test]
    fn probabilities_are_the_models() {
        let sampling = Sampling { logprobs: Some(2), logit_bias: vec![(0, 50.0)], ..Sampling::greedy() };
        let choice = choose(&mut LOGITS.to_vec(), &sampling, &History::default()).unwrap();
        let total: f32 = LOGITS.iter().map(|logit| logit.exp()).sum();
        assert_eq!(choice.token, 0);
        assert!((choice.logprob.unwrap() - (1.0 - total.ln())).abs() < 1e-5);
        assert_eq!(choice.top.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [1, 3]);
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for bad in [f32::NAN, f32::INFINITY] {
            let choice = choose(&mut [1.0, bad, 0.0], &Sampling::greedy(), &History::default());
            assert_eq!(choice, Err(NotFinite));
        }
    }
}
