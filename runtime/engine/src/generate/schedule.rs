//! Who computes next: requests wait, run and end here, without a device, a thread or a clock.
//!
//! ```text
//! waiting ──admitted──▶ running ──token──▶ running ──stop, length──▶ ended
//!    ▲                     │
//!    └──── preempted ──────┘  (its pages go to another; what it has is computed again)
//! ```
//!
//! A step takes one token of each request that is making text, and fills up with pieces of prompts. Requests are admitted
//! by priority, then by their clients' shares ([`super::share`]), those again that gave their pages up too. What must hold: no
//! request is starved by later ones of no higher priority, nor one that was admitted by its client's others; when pages run
//! out, the least urgent request gives its
//! up (of the lowest priority, and of those the one admitted last); the tokens of a request do not depend on any of this.

use std::cmp::Reverse;

use super::pages::{Owned, PageTable};
use super::sample::{Choice, Draw, History, Sampling};
use super::share::{Client, Shares, Ticket};
use crate::backend::{Sequence, Step};
use crate::graph::PAGE_TOKENS;

/// A request's number.
pub type RequestId = u64;

/// A prompt, and how to go on from it.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The prompt's tokens; at least one.
    pub prompt: Vec<u32>,
    /// Most tokens of the answer.
    pub tokens_max: usize,
    /// Tokens of the answer before which it is not ended by those that end it: they are not chosen until then.
    pub tokens_min: usize,
    /// Tokens that end the answer; they are no part of it.
    pub stop: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Who asks, for fairness.
    pub client: Client,
    /// Higher ones are admitted first, and keep their pages.
    pub priority: i32,
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The model said a token that ends it.
    Stop,
    /// It is as long as was asked for, or as the model can.
    Length,
    /// The one who asked went away.
    Cancelled,
    /// It could not go on; why.
    Failed(String),
}

/// News of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// It was admitted; told once, before anything else.
    Begin {
        /// Tokens of the prompt that need not be computed, because an earlier request had the same.
        cached_tokens: usize,
    },
    /// The next token.
    Token(Choice),
    /// The answer has ended; why.
    End(End),
}

/// What there was in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Tokens of prompts that were admitted.
    pub prompt_tokens: u64,
    /// Those of them that earlier requests had.
    pub cached_tokens: u64,
    /// How often a request gave its pages up to another.
    pub preemptions: u64,
}

/// Bounds of what is done at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Tokens of one step.
    pub rows_max: usize,
    /// Requests that run at once.
    pub running_max: usize,
    /// Tokens that prompt and answer may have together.
    pub context: usize,
}

/// A request, and how far its answer is.
#[derive(Debug)]
struct Answer {
    id: RequestId,
    request: Request,
    /// Prompt and answer.
    tokens: Vec<u32>,
    history: History,
    ticket: Ticket,
    /// In which order requests were admitted, the first time; none before that.
    admitted: Option<u64>,
}

impl Answer {
    /// The least is the most urgent.
    fn urgency(&self) -> (Reverse<i32>, Option<u64>) {
        (Reverse(self.request.priority), self.admitted)
    }

    fn answered(&self) -> usize {
        self.tokens.len() - self.request.prompt.len()
    }
}

/// One that has pages.
#[derive(Debug)]
struct Running {
    answer: Answer,
    /// How many of its tokens have keys and values in the pages.
    computed: usize,
    owned: Owned,
}

impl Running {
    /// Tokens that have none yet.
    fn pending(&self) -> usize {
        self.answer.tokens.len() - self.computed
    }
}

/// What a step computes.
#[derive(Debug, Default)]
pub struct Batch {
    /// The tokens.
    pub step: Step,
    /// For each answer of the step, whose it is.
    pub answers: Vec<RequestId>,
    /// Requests that were admitted since the step before, with the tokens of each prompt that need not be computed.
    pub begun: Vec<(RequestId, usize)>,
    /// How many tokens of each request the step has.
    rows: Vec<(RequestId, usize)>,
}

/// Requests, and the pages they share.
#[derive(Debug)]
pub struct Schedule {
    limits: Limits,
    pages: PageTable,
    waiting: Vec<Answer>,
    /// The most urgent first.
    running: Vec<Running>,
    shares: Shares,
    admissions: u64,
    totals: Totals,
    /// What is to be told with the next step: see [`Batch::begun`].
    begun: Vec<(RequestId, usize)>,
}

impl Schedule {
    /// Nothing to do yet.
    pub fn new(limits: Limits, pages: u32) -> Self {
        let (waiting, running, begun, shares) = (Vec::new(), Vec::new(), Vec::new(), Shares::default());
        let (pages, totals) = (PageTable::new(pages), Totals::default());
        Self { limits, pages, waiting, running, shares, admissions: 0, totals, begun }
    }

    /// Requests that wait, and that run.
    pub fn counts(&self) -> (usize, usize) {
        (self.waiting.len(), self.running.len())
    }

    /// What there was so far.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Tokens for which there are pages that nobody uses now.
    pub fn tokens_free(&self) -> usize {
        self.pages.available() * PAGE_TOKENS
    }

    /// Takes a request.
    pub fn push(&mut self, id: RequestId, request: Request) {
        assert!(!request.prompt.is_empty(), "a prompt has a token");
        let (tokens, history) = (request.prompt.clone(), History::of_prompt(&request.prompt));
        let ticket = self.shares.arrive(&request.client);
        self.waiting.push(Answer { id, request, tokens, history, ticket, admitted: None });
    }

    /// Lets go of a request.
    pub fn cancel(&mut self, id: RequestId) {
        self.waiting.retain(|waiting| waiting.id != id);
        if let Some(index) = self.position(id) {
            self.leave(index);
        }
    }

    /// Ends all requests, as after a failure of the device.
    pub fn clear(&mut self) -> Vec<RequestId> {
        self.begun.clear();
        self.start_over();
        self.waiting.drain(..).map(|waiting| waiting.id).collect()
    }

    /// Has everything computed again, as after pages were lost: whoever ran waits, and what pages held is not known.
    pub fn start_over(&mut self) {
        while !self.running.is_empty() {
            let again = self.leave(0);
            self.waiting.push(again);
        }
        self.pages.forget();
    }

    /// Takes a request out and gives its pages back; what full ones hold stays known.
    fn leave(&mut self, index: usize) -> Answer {
        let Running { answer, owned, .. } = self.running.remove(index);
        self.pages.end(owned);
        answer
    }

    /// The next step; none when there is nothing to do.
    pub fn next_batch(&mut self) -> Option<Batch> {
        loop {
            let mut batch = self.fill();
            if !batch.rows.is_empty() {
                batch.begun = std::mem::take(&mut self.begun);
                return Some(batch);
            }
            // Prompts that hold pages and wait for each other's: the least urgent makes room.
            if self.running.len() < 2 {
                return None;
            }
            self.preempt(self.running.len() - 1);
        }
    }

    fn preempt(&mut self, index: usize) {
        self.totals.preemptions += 1;
        let preempted = self.leave(index);
        self.waiting.push(preempted);
    }

    /// Has those of lower priority give way to one that waits and has no room.
    fn make_way(&mut self) {
        while let Some(next) = self.next() {
            let (waiting, Some(last)) = (&self.waiting[next], self.running.last()) else { return };
            if last.answer.request.priority >= waiting.request.priority {
                return;
            }
            let (owned, known) = self.pages.begin(&waiting.tokens);
            let has_pages = self.pages.available() >= wanted(waiting, known);
            self.pages.end(owned);
            if has_pages && self.running.len() < self.limits.running_max {
                return;
            }
            self.preempt(self.running.len() - 1);
        }
    }

    fn fill(&mut self) -> Batch {
        self.make_way();
        let mut batch = Batch::default();
        let mut left = self.limits.rows_max;
        // Those that make text first: one token each.
        let mut index = 0;
        while index < self.running.len() && left > 0 {
            let running = &self.running[index];
            let makes_text = running.pending() == 1;
            // One that had to make room for others is gone from here, and the next has its place.
            if !makes_text || self.add(index, 1, &mut batch, &mut left) {
                index += 1;
            }
        }
        for index in 0..self.running.len() {
            let pending = self.running[index].pending();
            let in_step = batch.rows.iter().any(|(id, _)| *id == self.running[index].answer.id);
            if pending > 1 && left > 0 && !in_step {
                let rows = pending.min(left).min(self.room_for(index));
                if rows > 0 {
                    self.add(index, rows, &mut batch, &mut left);
                }
            }
        }
        while left > 0 && self.running.len() < self.limits.running_max {
            let Some(index) = self.admit() else { break };
            let rows = self.running[index].pending().min(left).min(self.room_for(index));
            if rows == 0 || !self.add(index, rows, &mut batch, &mut left) {
                break;
            }
        }
        batch
    }

    /// Tokens that a request can have without taking pages from others.
    fn room_for(&self, index: usize) -> usize {
        let running = &self.running[index];
        running.owned.room() - running.computed + self.pages.available() * PAGE_TOKENS
    }

    /// The request whose turn it is, of those that wait with the highest priority. One that gave its pages up was paid for:
    /// it comes before what else its client asks, and others come before it where they had less.
    fn next(&self) -> Option<usize> {
        let highest = self.waiting.iter().map(|waiting| waiting.request.priority).max()?;
        let of_highest = |index: &usize| self.waiting[*index].request.priority == highest;
        let mut order = (0..self.waiting.len()).filter(of_highest).collect::<Vec<_>>();
        order.sort_by_key(|index| self.waiting[*index].admitted.unwrap_or(u64::MAX));
        let owed = |waiting: &Answer| if waiting.admitted.is_some() { 0 } else { waiting.tokens.len() };
        let waiting = order.iter().map(|index| &self.waiting[*index]);
        Some(order[self.shares.next(waiting.map(|waiting| (waiting.ticket, owed(waiting))))?])
    }

    /// Moves the request whose turn it is from waiting to running, if there are pages for it; where it is then.
    fn admit(&mut self) -> Option<usize> {
        let best = self.next()?;
        let waiting = &self.waiting[best];
        let (owned, known) = self.pages.begin(&waiting.tokens);
        // One that is alone gets what there is.
        if self.pages.available() < wanted(waiting, known) && !self.running.is_empty() {
            self.pages.end(owned);
            return None;
        }
        let mut answer = self.waiting.remove(best);
        if answer.admitted.is_none() {
            self.totals.prompt_tokens += answer.tokens.len() as u64;
            self.totals.cached_tokens += known as u64;
            self.begun.push((answer.id, known));
            self.admissions += 1;
            answer.admitted = Some(self.admissions);
            self.shares.admit(answer.ticket, answer.tokens.len() - known);
        }
        let index = self.running.partition_point(|other| other.answer.urgency() < answer.urgency());
        self.running.insert(index, Running { answer, computed: known, owned });
        Some(index)
    }

    /// Puts tokens of a request into a step; false when there were no pages, and it waits again.
    fn add(&mut self, index: usize, rows: usize, batch: &mut Batch, left: &mut usize) -> bool {
        let id = self.running[index].answer.id;
        let wanted = self.running[index].computed + rows;
        while self.position(id).is_some_and(|index| self.running[index].owned.room() < wanted) {
            let index = self.position(id).expect("it was just there");
            if self.pages.grow(&mut self.running[index].owned).is_some() {
                continue;
            }
            // The least urgent gives its pages up, unless it is in this step already; then this one does.
            let in_step = |running: &Running| batch.rows.iter().any(|(id, _)| *id == running.answer.id);
            let victim = self.running.iter().rposition(|running| !in_step(running));
            self.preempt(victim.expect("this one is not in the step"));
        }
        let Some(index) = self.position(id) else { return false };
        let running = &mut self.running[index];
        let past = running.computed;
        batch.step.ids.extend(&running.answer.tokens[past..past + rows]);
        let pages = running.owned.pages()[..(past + rows).div_ceil(PAGE_TOKENS)].to_vec();
        batch.step.sequences.push(Sequence { rows, past, pages });
        if past + rows == running.answer.tokens.len() {
            batch.step.outputs.push(batch.step.ids.len() as u32 - 1);
            batch.answers.push(id);
        }
        batch.rows.push((id, rows));
        *left -= rows;
        true
    }

    fn position(&self, id: RequestId) -> Option<usize> {
        self.running.iter().position(|running| running.answer.id == id)
    }

    /// The choice that a step has to make for a request.
    pub fn draw(&self, id: RequestId) -> Option<Draw> {
        let answer = &self.running[self.position(id)?].answer;
        let Request { sampling, stop, tokens_min, .. } = &answer.request;
        let draw = Draw::new(sampling, &answer.history);
        Some(if answer.answered() < *tokens_min { draw.without(stop) } else { draw })
    }

    /// Notes that a step was computed, with the token that was chosen for each of its answers, or why there is none; what
    /// its requests are to be told.
    pub fn done(&mut self, batch: &Batch, chosen: Vec<Result<Choice, String>>) -> Vec<(RequestId, Event)> {
        let mut events = Vec::new();
        // Where an answer could not be chosen, what was computed may be no numbers, and nobody else is to go on from it.
        let failed = chosen.iter().any(Result::is_err);
        for (id, rows) in &batch.rows {
            if let Some(index) = self.position(*id) {
                let Running { answer, computed, owned } = &mut self.running[index];
                *computed += rows;
                if !failed {
                    self.pages.share(owned, &answer.tokens[..*computed]);
                }
            }
        }
        for (id, choice) in batch.answers.iter().zip(chosen) {
            let Some(index) = self.position(*id) else { continue };
            let answer = &mut self.running[index].answer;
            let end = match choice {
                Err(why) => Some(End::Failed(why)),
                Ok(choice) if answer.request.stop.contains(&choice.token) => Some(End::Stop),
                Ok(choice) => {
                    answer.tokens.push(choice.token);
                    answer.history.push(choice.token);
                    self.shares.made(answer.ticket);
                    events.push((*id, Event::Token(choice)));
                    let full = answer.tokens.len() >= self.limits.context;
                    (full || answer.answered() >= answer.request.tokens_max).then_some(End::Length)
                }
            };
            if let Some(end) = end {
                self.leave(index);
                events.push((*id, Event::End(end)));
            }
        }
        if failed {
            self.pages.forget();
        }
        if self.waiting.is_empty() && self.running.is_empty() {
            // Whoever comes next begins as everybody else.
            self.shares = Shares::default();
        }
        events
    }
}

/// Pages for all tokens of one that waits, of which so many are known, and one more to go on.
fn wanted(waiting: &Answer, known: usize) -> usize {
    waiting.tokens.len().saturating_sub(known).div_ceil(PAGE_TOKENS) + 1
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn request(prompt: Vec<u32>, tokens_max: usize, client: &str) -> Request {
        let client = Client { origin: client.into(), name: String::new() };
        Request { prompt, tokens_max, client, sampling: Sampling::greedy(), ..Request::default() }
    }

    /// A model whose next token follows from all tokens before it, read back from what the pages were given: each place
    /// holds a hash of its token and of what the place before it holds, as keys and values follow from all before them. A
    /// page that two requests wrote, that was not computed, or that came after other tokens shows at once.
    #[derive(Default)]
    struct Model {
        pages: HashMap<(u32, usize), u64>,
    }

    const BEGINNING: u64 = 17;

    fn hash(before: u64, token: u32) -> u64 {
        (before ^ u64::from(token)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29)
    }

    fn token_of(hash: u64) -> u32 {
        (hash % 1000) as u32
    }

    impl Model {
        fn run(&mut self, batch: &Batch) -> Vec<Result<Choice, String>> {
            let mut first = 0;
            let mut chosen = Vec::new();
            for sequence in &batch.step.sequences {
                for row in 0..sequence.rows {
                    let at = sequence.past + row;
                    let place = |at: usize| (sequence.pages[at / PAGE_TOKENS], at % PAGE_TOKENS);
                    let before = if at == 0 { BEGINNING } else { self.pages[&place(at - 1)] };
                    let now = hash(before, batch.step.ids[first + row]);
                    self.pages.insert(place(at), now);
                    if batch.step.outputs.contains(&((first + row) as u32)) {
                        chosen.push(Ok(Choice { token: token_of(now), logprob: None, top: Vec::new() }));
                    }
                }
                first += sequence.rows;
            }
            chosen
        }
    }

    fn expected(prompt: &[u32], count: usize) -> Vec<u32> {
        let mut now = prompt.iter().fold(BEGINNING, |before, token| hash(before, *token));
        let mut tokens = Vec::new();
        for _ in 0..count {
            tokens.push(token_of(now));
            now = hash(now, token_of(now));
        }
        tokens
    }

    /// What requests were told: tokens, and how they ended.
    type Told = HashMap<RequestId, (Vec<u32>, Option<End>)>;

    /// One step; false when there was nothing to do. Answers for which `fails` says so cannot be chosen.
    fn step(schedule: &mut Schedule, model: &mut Model, told: &mut Told, fails: impl Fn(RequestId) -> bool) -> bool {
        let Some(batch) = schedule.next_batch() else { return false };
        assert!(batch.step.ids.len() <= schedule.limits.rows_max);
        for (id, _) in &batch.begun {
            assert!(told.insert(*id, (Vec::new(), None)).is_none(), "told first, and once");
        }
        let mut chosen = model.run(&batch);
        for (_, choice) in batch.answers.iter().zip(&mut chosen).filter(|(id, _)| fails(**id)) {
            *choice = Err("no numbers".into());
        }
        for (id, event) in schedule.done(&batch, chosen) {
            let told = told.get_mut(&id).expect("it was told to have begun");
            match event {
                Event::Begin { .. } => panic!("that is told with the step"),
                Event::Token(choice) => told.0.push(choice.token),
                Event::End(end) => told.1 = Some(end),
            }
        }
        true
    }

    fn drive(schedule: &mut Schedule, model: &mut Model) -> Told {
        let mut told = Told::new();
        while step(schedule, model, &mut told, |_| false) {}
        assert_eq!(schedule.counts(), (0, 0), "nothing is left that could not go on");
        told
    }

    #[test]
    fn the_one_who_had_least_is_next_and_priority_comes_before() {
        let mut schedule = Schedule::new(Limits { rows_max: 8, running_max: 1, context: 1000 }, 64);
        schedule.push(1, request(vec![1; 8], 3, "greedy"));
        schedule.push(2, request(vec![2; 8], 3, "greedy"));
        schedule.push(3, request(vec![3; 8], 3, "modest"));
        schedule.push(4, Request { priority: 1, ..request(vec![4; 8], 3, "greedy") });
        let (mut model, mut ended) = (Model::default(), Vec::new());
        while let Some(batch) = schedule.next_batch() {
            let chosen = model.run(&batch);
            ended.extend(schedule.done(&batch, chosen).into_iter().filter(|(_, e)| matches!(e, Event::End(_))));
        }
        assert_eq!(ended.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [4, 3, 1, 2]);
    }

    /// Steps until that request has its first token.
    fn steps_until_token(schedule: &mut Schedule, model: &mut Model, id: RequestId) -> usize {
        for step in 0..10_000 {
            let batch = schedule.next_batch().expect("it waits");
            let chosen = model.run(&batch);
            let told = schedule.done(&batch, chosen);
            if told.iter().any(|(of, event)| *of == id && matches!(event, Event::Token(_))) {
                return step;
            }
        }
        panic!("it is not reached");
    }

    #[test]
    fn requests_that_give_their_pages_up_again_and_again_do_not_keep_another_client_out() {
        // Eight pages, and each answer becomes as long as two and a half: most are preempted time and again.
        let mut schedule = Schedule::new(Limits { rows_max: 64, running_max: 16, context: 1000 }, 8);
        let mut model = Model::default();
        for id in 0..100 {
            schedule.push(id, request(vec![id as u32], 80, "crowd"));
        }
        (0..200).for_each(|_| {
            let batch = schedule.next_batch().unwrap();
            let chosen = model.run(&batch);
            schedule.done(&batch, chosen);
        });
        assert!(schedule.totals().preemptions > 0, "pages run out");
        for id in 1000..1010 {
            schedule.push(id, request(vec![id as u32; 8], 1, "one"));
            let steps = steps_until_token(&mut schedule, &mut model, id);
            assert!(steps <= 60, "{steps} steps for one token");
        }
    }

    #[test]
    fn those_of_low_priority_give_way_at_once() {
        let mut schedule = Schedule::new(Limits { rows_max: 64, running_max: 4, context: 1000 }, 16);
        let mut model = Model::default();
        for id in 0..8 {
            schedule.push(id, request(vec![id as u32; 30], 500, "idle"));
        }
        (0..20).for_each(|_| {
            let batch = schedule.next_batch().unwrap();
            let chosen = model.run(&batch);
            schedule.done(&batch, chosen);
        });
        schedule.push(100, Request { priority: 1, ..request(vec![7; 300], 2, "urgent") });
        let steps = steps_until_token(&mut schedule, &mut model, 100);
        assert!(steps <= 300 / 60 + 1, "{steps} steps");
    }

    #[test]
    fn a_shared_beginning_is_computed_once() {
        let mut schedule = Schedule::new(Limits { rows_max: 512, running_max: 4, context: 1000 }, 64);
        let mut model = Model::default();
        let prompt: Vec<u32> = (0..300).collect();
        schedule.push(1, request(prompt.clone(), 2, "a"));
        drive(&mut schedule, &mut model);
        schedule.push(2, request(prompt, 2, "b"));
        let batch = schedule.next_batch().unwrap();
        assert_eq!(batch.step.ids.len(), 300 - 288, "nine full pages were known");
        assert_eq!(batch.begun, [(2, 288)]);
        let chosen = model.run(&batch);
        schedule.done(&batch, chosen);
        assert_eq!(schedule.totals(), Totals { prompt_tokens: 600, cached_tokens: 288, preemptions: 0 });
    }

    #[test]
    fn a_shared_beginning_is_computed_once_while_whoever_had_it_first_still_runs() {
        let mut schedule = Schedule::new(Limits { rows_max: 64, running_max: 16, context: 1000 }, 64);
        let mut model = Model::default();
        let prompt: Vec<u32> = (0..300).collect();
        (0..16).for_each(|id| schedule.push(id, request(prompt.clone(), 50, "a")));
        let (mut rows, mut begun) = (0, 0);
        while begun < 16 {
            let batch = schedule.next_batch().unwrap();
            rows += batch.step.ids.len();
            begun += batch.begun.len();
            let chosen = model.run(&batch);
            let told = schedule.done(&batch, chosen);
            assert!(told.iter().all(|(_, event)| !matches!(event, Event::End(_))), "nobody has ended yet");
        }
        // 288 of 300 are full pages; who is admitted in the step that computes the last of them has fewer.
        assert!(rows < 300 + 16 * (12 + 64) + 200, "{rows} rows");
        assert!(schedule.totals().cached_tokens >= 14 * 256, "{:?}", schedule.totals());
        assert!(schedule.pages.available() >= 64 - 10 - 16 * 2, "they have the full pages in common");
    }

    #[test]
    fn an_urgent_request_keeps_its_pages_when_they_run_out() {
        let mut schedule = Schedule::new(Limits { rows_max: 64, running_max: 4, context: 400 }, 14);
        let mut model = Model::default();
        schedule.push(1, request((0..150).collect(), 200, "a"));
        // It makes text already when the other comes.
        for _ in 0..5 {
            let batch = schedule.next_batch().unwrap();
            let chosen = model.run(&batch);
            schedule.done(&batch, chosen);
        }
        schedule.push(2, Request { priority: 1, ..request((500..650).collect(), 200, "a") });
        let mut ended = Vec::new();
        while let Some(batch) = schedule.next_batch() {
            let chosen = model.run(&batch);
            assert!(schedule.waiting.iter().all(|waiting| waiting.id == 1), "it was thrown out");
            ended.extend(schedule.done(&batch, chosen).into_iter().filter(|(_, e)| matches!(e, Event::End(_))));
        }
        assert!(schedule.totals().preemptions > 0);
        assert_eq!(ended.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [2, 1]);
    }

    #[test]
    fn what_is_computed_again_counts_once() {
        let mut schedule = Schedule::new(Limits { rows_max: 64, running_max: 4, context: 400 }, 14);
        let prompts: Vec<Vec<u32>> = (0..2).map(|from| (from * 500..).take(150).collect()).collect();
        (0u64..).zip(&prompts).for_each(|(id, prompt)| schedule.push(id, request(prompt.clone(), 200, "a")));
        drive(&mut schedule, &mut Model::default());
        let Totals { prompt_tokens, cached_tokens, preemptions } = schedule.totals();
        assert_eq!((prompt_tokens, cached_tokens), (300, 0));
        assert!(preemptions > 0);
    }

    proptest! {
        /// However few pages there are, whoever comes late, leaves, fails or loses the device: everybody's tokens are as if
        /// they were alone.
        #[test]
        fn tokens_do_not_depend_on_the_company(
            requests in proptest::collection::vec((1usize..150, 1usize..60, 0u32..6, 0usize..40), 1..12),
            troubles in proptest::collection::vec((0usize..60, 0u8..4, 0u64..12), 0..6),
            pages in 8u32..40, rows_max in 1usize..100, running_max in 1usize..6,
        ) {
            let mut schedule = Schedule::new(Limits { rows_max, running_max, context: 8 * PAGE_TOKENS }, pages);
            // Prompts that are the same for long, and that are the same again after something else.
            let prompt = |length: usize, kind: u32| -> Vec<u32> {
                (0..length as u32).map(|i| if i / 40 == kind { 500 + kind } else { i % (7 + kind % 2) }).collect()
            };
            let (mut model, mut told) = (Model::default(), Told::new());
            let (mut left, mut failed) = (Vec::new(), Vec::new());
            for now in 0.. {
                let came = (0u64..).zip(&requests).filter(|(_, (.., when))| *when == now);
                for (id, (length, most, kind, _)) in came {
                    let asked = request(prompt(*length, *kind), *most, &kind.to_string());
                    schedule.push(id, Request { priority: *kind as i32 % 3, ..asked });
                }
                let mut fails = None;
                for (_, what, id) in troubles.iter().filter(|(when, ..)| *when == now) {
                    match what {
                        0 => {
                            schedule.cancel(*id);
                            left.push(*id);
                        }
                        1 => {
                            schedule.start_over();
                            model = Model::default();
                        }
                        2 => fails = Some(*id),
                        _ => {
                            left.extend(schedule.clear());
                            model = Model::default();
                        }
                    }
                }
                let worked = step(&mut schedule, &mut model, &mut told, |id| Some(id) == fails);
                failed.extend(fails);
                if !worked && now > 60 {
                    break;
                }
            }
            prop_assert_eq!(schedule.counts(), (0, 0));
            for (id, (length, most, kind, _)) in (0u64..).zip(&requests) {
                let prompt = prompt(*length, *kind);
                let expected = expected(&prompt, (*most).min(8 * PAGE_TOKENS - prompt.len()));
                let (tokens, end) = told.remove(&id).unwrap_or_default();
                let as_alone = tokens == expected && end == Some(End::Length);
                let has_failed = failed.contains(&id) && matches!(end, Some(End::Failed(_)));
                let has_left = left.contains(&id) && end.is_none();
                prop_assert!(expected.starts_with(&tokens), "{id}: {tokens:?}, not {expected:?}");
                prop_assert!(as_alone || has_failed || has_left, "{id}: {end:?}");
            }
            prop_assert_eq!(schedule.tokens_free(), pages as usize * PAGE_TOKENS);
        }
    }
}
