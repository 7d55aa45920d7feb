//! Choosing a token from logits.
//!
//! The order is that of vLLM's sampler: bias, penalties, temperature, top-k, top-p, min-p, then the draw, which walks the
//! kept tokens in the order of their numbers. What must hold: the same logits, settings, history and place in the answer
//! give the same token, whatever else is computed and on whatever device; a temperature of zero is the largest logit; of
//! equal logits the first counts as likelier. So every step here is one that all devices round alike, and probabilities
//! are added up as whole numbers ([`mass`]).

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

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

/// What may be said of each, by clients, flags and the files of models.
impl Sampling {
    /// Of [`Self::temperature`].
    pub const TEMPERATURE: RangeInclusive<f64> = 0.0..=2.0;
    /// Of [`Self::top_k`], where −1 is all, too.
    pub const TOP_K: RangeInclusive<f64> = -1.0..=u32::MAX as f64;
    /// Of [`Self::top_p`] and [`Self::min_p`].
    pub const SHARE: RangeInclusive<f64> = 0.0..=1.0;
    /// Of [`Self::repetition_penalty`].
    pub const REPETITION_PENALTY: RangeInclusive<f64> = 0.01..=10.0;
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
    /// Ascending, each once.
    prompt: Vec<u32>,
    answer: BTreeMap<u32, u32>,
    length: u64,
}

impl History {
    /// That of a request at its beginning.
    pub fn of_prompt(prompt: &[u32]) -> Self {
        let mut prompt = prompt.to_vec();
        prompt.sort_unstable();
        prompt.dedup();
        Self { prompt, ..Self::default() }
    }

    /// One more token of the answer.
    pub fn push(&mut self, token: u32) {
        *self.answer.entry(token).or_default() += 1;
        self.length += 1;
    }
}

/// What a setting makes of one token's logit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change {
    /// The token.
    pub token: u32,
    /// Added first.
    pub bias: f32,
    /// Then it is divided by this, or multiplied where it is not above zero; one for neither.
    pub by: f32,
    /// Taken off last.
    pub off: f32,
}

impl Change {
    const fn none(token: u32) -> Self {
        Self { token, bias: 0.0, by: 1.0, off: 0.0 }
    }

    fn apply(self, logit: f32) -> f32 {
        let logit = logit + self.bias;
        (if logit > 0.0 { logit / self.by } else { logit * self.by }) - self.off
    }
}

/// One choice to make: what settings, history and place come to, in plain numbers that any device takes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Draw {
    /// What distances between logits are multiplied by; zero for always the likeliest token.
    pub sharpness: f32,
    /// Only the likeliest so many; zero for all.
    pub top_k: usize,
    /// Only the likeliest whose masses add up to this share; one or more for all.
    pub top_p: f32,
    /// Only those of at least this mass.
    pub least: u64,
    /// Where among the kept tokens the draw falls, as a share of 2⁶⁴.
    pub random: u64,
    /// Logits to change, each token once, ascending. Tokens that the model does not have are passed over.
    pub changes: Vec<Change>,
    /// How many of the likeliest tokens are told with it; none for no probabilities at all.
    pub told: Option<usize>,
}

impl Draw {
    /// The next token of a request.
    pub fn new(sampling: &Sampling, history: &History) -> Self {
        let sharpness = if sampling.temperature > 0.0 {
            (1.0 / sampling.temperature).clamp(f32::MIN_POSITIVE, f32::MAX)
        } else {
            0.0
        };
        Self {
            sharpness,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            least: (f64::from(sampling.min_p.clamp(0.0, 1.0)) * WHOLE as f64).ceil() as u64,
            random: random(sampling.seed, history.length),
            changes: changes(sampling, history),
            told: sampling.logprobs,
        }
    }
}

impl Draw {
    /// The same among all tokens but these.
    pub fn without(mut self, tokens: &[u32]) -> Self {
        if !tokens.is_empty() {
            self.changes.extend(tokens.iter().map(|token| Change { bias: NEVER, ..Change::none(*token) }));
            self.changes = merged(self.changes);
        }
        self
    }
}

/// A bias that leaves a token no mass, whatever else changes its logit, and is a number on every device.
const NEVER: f32 = -1e30;

/// What bias and penalties change. Runs of ascending tokens one after the other, which sort fast.
fn changes(sampling: &Sampling, history: &History) -> Vec<Change> {
    let biased = sampling.logit_bias.iter().map(|(token, bias)| Change { bias: *bias, ..Change::none(*token) });
    let mut all: Vec<Change> = biased.collect();
    if sampling.repetition_penalty != 1.0 {
        let seen = history.prompt.iter().chain(history.answer.keys());
        all.extend(seen.map(|token| Change { by: sampling.repetition_penalty, ..Change::none(*token) }));
    }
    if sampling.presence_penalty != 0.0 || sampling.frequency_penalty != 0.0 {
        let off = |count: &u32| sampling.presence_penalty + sampling.frequency_penalty * *count as f32;
        all.extend(history.answer.iter().map(|(token, count)| Change { off: off(count), ..Change::none(*token) }));
    }
    merged(all)
}

/// Ascending, one for each token.
fn merged(mut all: Vec<Change>) -> Vec<Change> {
    all.sort_by_key(|change| change.token);
    all.dedup_by(|next, kept| {
        let same = next.token == kept.token;
        if same {
            kept.bias += next.bias;
            kept.off += next.off;
            // A penalty for repetition is one for all.
            kept.by = if kept.by == 1.0 { next.by } else { kept.by };
        }
        same
    });
    all
}

/// Random bits for each place of a sequence that a seed begins: SplitMix64, by Steele, Lea and Flood.
fn random(seed: u64, place: u64) -> u64 {
    let mut z = seed.wrapping_add(place.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A token that was found, and what its probability follows from.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The token.
    pub token: u32,
    /// When asked for.
    pub told: Option<Told>,
}

/// Logits as the model has them.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// That of the token.
    pub logit: f32,
    /// The largest.
    pub top: f32,
    /// The sum of all tokens' masses, by their distance to the largest.
    pub total: u64,
    /// The likeliest tokens and theirs, likeliest first; of equals the first.
    pub best: Vec<(u32, f32)>,
}

impl From<Found> for Choice {
    fn from(found: Found) -> Self {
        let Found { token, told } = found;
        let Some(Told { logit, top, total, best }) = told else {
            return Self { token, logprob: None, top: Vec::new() };
        };
        let log_total = top + (total as f64 / WHOLE as f64).ln() as f32;
        let top = best.into_iter().map(|(token, logit)| (token, logit - log_total)).collect();
        Self { token, logprob: Some(logit - log_total), top }
    }
}

/// Chooses a token among at most [`VOCABULARY_MAX`]; with more, masses would not add up. `logits` are changed on the way.
pub fn choose(logits: &mut [f32], draw: &Draw) -> Result<Choice, NotFinite> {
    assert!(logits.len() <= VOCABULARY_MAX, "whoever reads a model's settings refuses more tokens");
    let mut best = likeliest(logits)?;
    let raw = draw.told.map(|count| (tell(logits, best.1, count), before(logits, &draw.changes)));
    for change in &draw.changes {
        if let Some(logit) = logits.get_mut(change.token as usize) {
            *logit = change.apply(*logit);
        }
    }
    if !draw.changes.is_empty() {
        best = likeliest(logits)?;
    }
    let token = if draw.sharpness == 0.0 { best.0 } else { drawn(logits, best.1, draw) };
    let told = raw.map(|(told, before)| {
        let changed = before.binary_search_by_key(&token, |(token, _)| *token);
        Told { logit: changed.map_or_else(|_| logits[token as usize], |at| before[at].1), ..told }
    });
    Ok(Found { token, told }.into())
}

/// The mass of the likeliest token. Masses are whole numbers, so that their sums are the same in any order and on any
/// device.
pub const WHOLE: u64 = 1 << 40;

/// The most tokens that there may be: if all are as likely as the likeliest, their masses' sum is just below 2⁶⁴.
pub const VOCABULARY_MAX: usize = (1 << 24) - 1;

const _: () = assert!(WHOLE.checked_mul(VOCABULARY_MAX as u64).is_some(), "sums of all masses fit");

/// The mass of a token whose logit is so far below the largest (zero or less): e to the power of it. Polynomial and
/// constants are those of Cephes; no step is one that devices round in their own ways.
pub fn mass(distance: f32) -> u64 {
    let turns = (distance * std::f32::consts::LOG2_E).round_ties_even();
    if turns.is_nan() || turns < -41.0 {
        return 0;
    }
    let x = (distance - turns * 0.693_359_4) - turns * -2.121_944_4e-4;
    let mut y = 1.987_569_1e-4;
    for more in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5e-1] {
        y = y * x + more;
    }
    let power = y * (x * x) + x + 1.0;
    (power * f32::from_bits(((turns as i32 + 40 + 127) as u32) << 23)) as u64
}

/// A number whose order is that of logits: NaN comes last, and both zeros are the same.
pub fn ordered(logit: f32) -> u32 {
    let bits = (logit + 0.0).to_bits();
    match () {
        () if logit.is_nan() => u32::MAX,
        () if bits >> 31 == 1 => !bits,
        () => bits | 1 << 31,
    }
}

/// The logit that has that number.
fn unordered(key: u32) -> f32 {
    f32::from_bits(if key >> 31 == 1 { key ^ 1 << 31 } else { !key })
}

/// The likeliest token, of equals the first, and its logit.
fn likeliest(logits: &[f32]) -> Result<(u32, f32), NotFinite> {
    let best = logits.iter().enumerate().map(|(token, logit)| packed(token, *logit)).max().ok_or(NotFinite)?;
    let (token, logit) = unpacked(best);
    if logit.is_finite() { Ok((token, logit)) } else { Err(NotFinite) }
}

/// Token and logit as one number: the likelier, the larger; of equals the first is.
fn packed(token: usize, logit: f32) -> u64 {
    u64::from(ordered(logit)) << 32 | u64::from(!(token as u32))
}

fn unpacked(both: u64) -> (u32, f32) {
    (!(both as u32), unordered((both >> 32) as u32))
}

/// All but the chosen token's logit.
fn tell(logits: &[f32], top: f32, count: usize) -> Told {
    let total = logits.iter().map(|logit| mass(logit - top)).sum();
    let mut best: Vec<u64> = Vec::new();
    let count = count.min(logits.len());
    if count > 0 {
        best.extend(logits.iter().enumerate().map(|(token, logit)| packed(token, *logit)));
        best.select_nth_unstable_by(count - 1, |a, b| b.cmp(a));
        best.truncate(count);
        best.sort_unstable_by(|a, b| b.cmp(a));
    }
    Told { logit: 0.0, top, total, best: best.into_iter().map(unpacked).collect() }
}

/// What logits are before they change.
fn before(logits: &[f32], changes: &[Change]) -> Vec<(u32, f32)> {
    changes.iter().filter_map(|change| Some((change.token, *logits.get(change.token as usize)?))).collect()
}

/// What is kept of all tokens: those likelier than one, and the first few of those as likely.
#[derive(Clone, Copy, Debug, Default)]
struct Cut {
    key: u32,
    equals: u64,
}

impl Cut {
    /// The likeliest tokens whose weights add up to a target, which all together do: a digit of the last one's number
    /// after the other, likelier ones first.
    fn new(logits: &[f32], target: u64, weight: impl Fn(f32) -> u64) -> Self {
        let (mut key, mut left) = (0, target);
        for (shift, bits) in [(21, 11), (10, 11), (0, 10)] {
            let mut bins = vec![0u64; 1 << bits];
            for logit in logits {
                let own = ordered(*logit);
                if u64::from(own) >> (shift + bits) == u64::from(key) {
                    bins[(own >> shift) as usize % (1 << bits)] += weight(*logit);
                }
            }
            let mut digit = bins.len() - 1;
            while digit > 0 && bins[digit] < left {
                left -= bins[digit];
                digit -= 1;
            }
            key = key << bits | digit as u32;
        }
        Self { key, equals: left.div_ceil(weight(unordered(key)).max(1)) }
    }

    /// The mass of each token in turn; of those that are cut off, zero.
    fn masses(self, logits: &[f32], least: u64, weight: impl Fn(f32) -> u64) -> impl Iterator<Item = u64> {
        let mut equals = self.equals;
        logits.iter().map(move |logit| {
            let key = ordered(*logit);
            let is_equal = key == self.key && equals > 0;
            equals -= u64::from(is_equal);
            let mass = if key > self.key || is_equal { weight(*logit) } else { 0 };
            if mass >= least { mass } else { 0 }
        })
    }
}

fn drawn(logits: &[f32], top: f32, draw: &Draw) -> u32 {
    let weight = |logit: f32| mass((logit - top) * draw.sharpness);
    let mut cut = Cut::default();
    if draw.top_k > 0 && draw.top_k < logits.len() {
        cut = Cut::new(logits, draw.top_k as u64, |_| 1);
    }
    if draw.top_p < 1.0 {
        let total: u64 = cut.masses(logits, 0, weight).sum();
        let wanted = (total as f64 * f64::from(draw.top_p)).ceil() as u64;
        cut = Cut::new(logits, wanted.clamp(1, total), weight);
    }
    let masses: Vec<u64> = cut.masses(logits, draw.least, weight).collect();
    let total: u64 = masses.iter().sum();
    let mut left = ((u128::from(draw.random) * u128::from(total)) >> 64) as u64;
    for (token, mass) in masses.iter().enumerate() {
        if left < *mass {
            return token as u32;
        }
        left -= mass;
    }
    unreachable!("the draw falls below the total, which is more than zero: the likeliest token is always kept")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 4] = [1.0, 3.0, 2.0, 3.0];

    fn chosen(logits: &[f32], sampling: &Sampling, history: &History) -> Result<Choice, NotFinite> {
        choose(&mut logits.to_vec(), &Draw::new(sampling, history))
    }

    fn drawn(sampling: &Sampling, history: &History) -> Vec<u32> {
        let mut found: Vec<u32> = (0..500)
            .map(|seed| chosen(&LOGITS, &Sampling { seed, ..sampling.clone() }, history).unwrap().token)
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
            assert_eq!(chosen(&LOGITS, &sampling, &history).unwrap().token, expected, "{sampling:?}");
        };
        check(greedy.clone(), 1);
        check(Sampling { repetition_penalty: 2.0, ..greedy.clone() }, 2);
        check(Sampling { presence_penalty: 0.5, logit_bias: vec![(1, -0.4)], ..greedy }, 1);
        check(Sampling { frequency_penalty: 0.6, logit_bias: vec![(1, -1.5)], ..greedy }, 2);
    }

    #[test]
    fn what_is_left_out_is_never_chosen() {
        let history = History::of_prompt(&[1, 3]);
        for sampling in [
            Sampling::greedy(),
            Sampling { temperature: 2.0, repetition_penalty: 0.01, ..Sampling::default() },
            Sampling { temperature: 1e-30, logit_bias: vec![(1, 100.0)], top_k: 4, ..Sampling::default() },
        ] {
            for seed in 0..200 {
                let draw = Draw::new(&Sampling { seed, ..sampling.clone() }, &history).without(&[1, 3, 99]);
                let token = choose(&mut LOGITS.to_vec(), &draw).unwrap().token;
                assert!(token == 0 || token == 2, "{sampling:?}: {token}");
            }
        }
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let sampling = Sampling { temperature: 2.0, ..Sampling::default() };
        let mut counts = [0f64; 4];
        for seed in 0..20_000 {
            let sampling = Sampling { seed, ..sampling.clone() };
            counts[chosen(&LOGITS, &sampling, &History::default()).unwrap().token as usize] += 1.0;
        }
        let powers = LOGITS.map(|logit| f64::from(logit / 2.0).exp());
        for (count, power) in counts.iter().zip(powers) {
            assert!((count / 20_000.0 - power / powers.iter().sum::<f64>()).abs() < 0.015, "{counts:?}");
        }
    }

    #[test]
    fn probabilities_are_the_models() {
        let sampling = Sampling { logprobs: Some(2), logit_bias: vec![(0, 50.0)], ..Sampling::greedy() };
        let choice = chosen(&LOGITS, &sampling, &History::default()).unwrap();
        let total: f32 = LOGITS.iter().map(|logit| logit.exp()).sum();
        assert_eq!(choice.token, 0);
        assert!((choice.logprob.unwrap() - (1.0 - total.ln())).abs() < 1e-5);
        assert_eq!(choice.top.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [1, 3]);
    }

    #[test]
    fn what_is_no_number_is_refused() {
        const NEVER: f32 = f32::NEG_INFINITY;
        let none = History::default();
        for bad in [&[1.0, f32::NAN, 0.0][..], &[1.0, f32::INFINITY], &[f32::NAN, NEVER], &[NEVER, NEVER], &[]] {
            assert_eq!(chosen(bad, &Sampling::greedy(), &none), Err(NotFinite), "{bad:?}");
        }
        let bias = Sampling { logit_bias: vec![(1, f32::INFINITY)], ..Sampling::greedy() };
        assert_eq!(chosen(&LOGITS, &bias, &none), Err(NotFinite), "also what a setting makes one");
        let all = Sampling::default();
        assert_eq!(chosen(&[NEVER, f32::MIN, NEVER], &all, &none).unwrap().token, 1, "a token may be impossible");
    }

    #[test]
    fn masses_are_powers_of_e() {
        assert_eq!(
            (mass(0.0), mass(-0.0), mass(f32::NEG_INFINITY), mass(f32::NAN), mass(-1e30)),
            (WHOLE, WHOLE, 0, 0, 0)
        );
        for step in 0..300_000 {
            let distance = -step as f32 * 1e-4;
            let (is, wanted) = (mass(distance) as f64, f64::from(distance).exp() * WHOLE as f64);
            assert!((is - wanted).abs() <= wanted * 2e-7 + 1.0, "{distance}: {is} {wanted}");
        }
    }

    #[test]
    fn numbers_are_ordered_as_logits_are() {
        let all = [f32::NEG_INFINITY, f32::MIN, -1.0, -f32::MIN_POSITIVE, 0.0, 1e-40, 1.0, f32::MAX, f32::INFINITY];
        assert!(all.windows(2).all(|pair| ordered(pair[0]) < ordered(pair[1])));
        assert!(all.iter().all(|logit| unordered(ordered(*logit)) == *logit && ordered(f32::NAN) > ordered(*logit)));
        assert_eq!(ordered(-0.0), ordered(0.0));
    }

    /// What is kept, and the token for that place among it, by sorting.
    fn plainly(logits: &[f32], draw: &Draw) -> (Vec<u32>, u32) {
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        order.sort_by(|a, b| logits[*b as usize].partial_cmp(&logits[*a as usize]).unwrap().then(a.cmp(b)));
        let top = logits[order[0] as usize];
        let weight = |token: &u32| u128::from(mass((logits[*token as usize] - top) * draw.sharpness));
        if draw.top_k > 0 {
            order.truncate(draw.top_k);
        }
        if draw.top_p < 1.0 {
            let wanted = order.iter().map(weight).sum::<u128>() as f64 * f64::from(draw.top_p);
            let mut sum = 0;
            let last = order.iter().position(|token| {
                sum += weight(token);
                sum as f64 >= wanted
            });
            order.truncate(last.unwrap() + 1);
        }
        order.retain(|token| weight(token) >= u128::from(draw.least));
        order.sort_unstable();
        let at = (u128::from(draw.random) * order.iter().map(weight).sum::<u128>()) >> 64;
        let mut sum = 0;
        let token = order.iter().find(|token| {
            sum += weight(token);
            sum > at
        });
        (order.clone(), *token.unwrap())
    }

    proptest::proptest! {
        #[test]
        fn cuts_are_those_of_sorting(
            mut logits in proptest::collection::vec(-20i8..20, 1..300), step in 0.01f32..2.0, flat: bool,
            sharpness in 0.1f32..4.0, top_k in 0usize..40, top_p in 0f32..1.1, min_p in 0f32..0.2, random: u64,
        ) {
            // Whole steps, so that many are equal.
            if flat {
                logits.fill(3);
            }
            let mut logits: Vec<f32> = logits.into_iter().map(|logit| f32::from(logit) * step).collect();
            let least = (f64::from(min_p) * WHOLE as f64) as u64;
            let draw = Draw { sharpness, top_k, top_p, least, random, ..Draw::default() };
            let (kept, token) = plainly(&logits, &draw);
            proptest::prop_assert_eq!(choose(&mut logits, &draw).unwrap().token, token, "of {:?}", kept);
        }
    }

    #[test]
    fn changes_come_one_a_token() {
        let mut history = History::of_prompt(&[9, 4, 9]);
        history.push(4);
        history.push(2);
        history.push(2);
        let sampling = Sampling {
            logit_bias: vec![(9, 1.0), (1, 2.0), (9, 0.5)],
            repetition_penalty: 2.0,
            presence_penalty: 0.25,
            frequency_penalty: 0.5,
            ..Sampling::greedy()
        };
        let change = |token, bias, by, off| Change { token, bias, by, off };
        let expected =
            [change(1, 2.0, 1.0, 0.0), change(2, 0.0, 2.0, 1.25), change(4, 0.0, 2.0, 0.75), change(9, 1.5, 2.0, 0.0)];
        assert_eq!(Draw::new(&sampling, &history).changes, expected);
        let mut without = expected.to_vec();
        (without[1].bias, without[2].bias) = (NEVER, NEVER);
        without.push(change(10, NEVER, 1.0, 0.0));
        assert_eq!(Draw::new(&sampling, &history).without(&[10, 2, 4]).changes, without);
        assert_eq!([3.0, -3.0, 0.0].map(|logit| change(0, 1.0, 2.0, 0.5).apply(logit)), [1.5, -4.5, 0.0]);
    }
}
