//! Whose turn it is among those who wait: everybody gets the same share of the tokens, by self-clocked fair queueing
//! (Golestani, "A self-clocked fair queueing scheme for broadband applications", INFOCOM 1994), which is what the virtual
//! token counter of Sheng et al. ("Fairness in serving large language models", OSDI 2024) lacks against names made up anew.
//!
//! A client has a place: the tokens it had. The next is the request that would leave its client at the least place, and that
//! is what the clock shows from then on. Whoever comes after a pause begins at the clock, so nobody saves turns up. What must
//! hold: each admission moves the clock, and with it all who are yet to come, so that a request is reached however many
//! others come, each with a name of its own: at the latest when all who can wait at once had as much as it asks for. This is
//! done twice: among origins (whom the server knows), and among the names that requests of one origin give, so that names
//! take from their own origin only.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

/// Places that are remembered at each level; names are theirs to choose, so that there is a bound.
const PLACES_MAX: usize = 256;

/// Who asks, for fairness.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Client {
    /// Whom the server knows it to be: any text.
    pub origin: String,
    /// Whom it says to ask for: any text.
    pub name: String,
}

/// A client, and what the clocks showed when its request came.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticket {
    origin: u64,
    name: u64,
    came: [u64; 2],
}

/// What everybody had.
#[derive(Debug, Default)]
pub(super) struct Shares {
    origins: Places,
    names: HashMap<u64, Places>,
    hasher: RandomState,
}

impl Shares {
    /// A place in the queue for a request.
    pub(super) fn arrive(&self, client: &Client) -> Ticket {
        // Two that hash alike share a place, which harms nobody.
        let (origin, name) = (self.hasher.hash_one(&client.origin), self.hasher.hash_one(&client.name));
        let within = self.names.get(&origin).map_or(0, |names| names.clock);
        Ticket { origin, name, came: [self.origins.clock, within] }
    }

    /// Which is next of those who wait, each with as many tokens to compute; of equal ones the first.
    pub(super) fn next(&self, waiting: impl Iterator<Item = (Ticket, usize)>) -> Option<usize> {
        // The next of each origin, and where it would leave its name.
        let mut heads: HashMap<u64, (u64, usize, Ticket, usize)> = HashMap::new();
        for (index, (ticket, tokens)) in waiting.enumerate() {
            let names = self.names.get(&ticket.origin);
            let start = names.map_or(ticket.came[1], |names| names.start(ticket.name, ticket.came[1]));
            let head = (start + tokens as u64, index, ticket, tokens);
            let known = heads.entry(ticket.origin).or_insert(head);
            if head.0 < known.0 {
                *known = head;
            }
        }
        let place = |(_, index, ticket, tokens): &(u64, usize, Ticket, usize)| {
            (self.origins.start(ticket.origin, ticket.came[0]) + *tokens as u64, *index)
        };
        heads.values().map(place).min().map(|(_, index)| index)
    }

    /// Notes that a request was admitted, for which so many tokens have to be computed.
    pub(super) fn admit(&mut self, ticket: Ticket, tokens: usize) {
        self.origins.admit(ticket.origin, ticket.came[0], tokens);
        self.names.entry(ticket.origin).or_default().admit(ticket.name, ticket.came[1], tokens);
        let origins = &self.origins.had;
        self.names.retain(|origin, _| origins.contains_key(origin));
    }

    /// Notes that a token was made for a request.
    pub(super) fn made(&mut self, ticket: Ticket) {
        self.origins.made(ticket.origin);
        if let Some(names) = self.names.get_mut(&ticket.origin) {
            names.made(ticket.name);
        }
    }
}

/// One level: how many tokens each had.
#[derive(Debug, Default)]
struct Places {
    clock: u64,
    had: HashMap<u64, u64>,
}

impl Places {
    /// Where a request begins that came when the clock showed that.
    fn start(&self, who: u64, came: u64) -> u64 {
        self.had.get(&who).map_or(came, |had| came.max(*had))
    }

    fn admit(&mut self, who: u64, came: u64, tokens: usize) {
        let place = self.start(who, came) + tokens as u64;
        self.had.insert(who, place);
        self.clock = self.clock.max(place);
        if self.had.len() > PLACES_MAX {
            // Whoever is not ahead of the clock begins at it anyway. Where too many are ahead, it catches up with half.
            let mut places: Vec<u64> = self.had.values().copied().collect();
            let (_, middle, _) = places.select_nth_unstable(PLACES_MAX / 2);
            self.clock = self.clock.max(*middle);
            let clock = self.clock;
            self.had.retain(|known, had| *had > clock || *known == who);
        }
    }

    fn made(&mut self, who: u64) {
        if let Some(had) = self.had.get_mut(&who) {
            *had += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn client(origin: &str, name: &str) -> Client {
        Client { origin: origin.into(), name: name.into() }
    }

    /// Requests that wait, and one place where they are computed one after the other.
    #[derive(Default)]
    struct Queue {
        shares: Shares,
        waiting: Vec<(Client, Ticket, usize)>,
    }

    impl Queue {
        fn push(&mut self, client: Client, tokens: usize) {
            let ticket = self.shares.arrive(&client);
            self.waiting.push((client, ticket, tokens));
        }

        fn serve(&mut self) -> (Client, usize) {
            let next = self.shares.next(self.waiting.iter().map(|(_, ticket, tokens)| (*ticket, *tokens)));
            let (client, ticket, tokens) = self.waiting.remove(next.expect("somebody waits"));
            self.shares.admit(ticket, tokens);
            (client, tokens)
        }
    }

    #[test]
    fn names_made_up_anew_do_not_keep_others_waiting_for_ever() {
        let mut queue = Queue::default();
        // It had much, and asks for more.
        for _ in 0..2 {
            queue.push(client("", "old"), 1000);
        }
        queue.serve();
        let served = (0..10_000).position(|round| {
            // More come than are served: as many as may wait.
            while queue.waiting.len() < 32 {
                let name = format!("{round} {}", queue.waiting.len());
                queue.push(client("", &name), 50);
            }
            queue.serve().0.name == "old"
        });
        // It asks for as much as twenty of them, of whom so many wait at a time.
        assert!(served.is_some_and(|rounds| rounds <= 32 * (1000 / 50 + 1)), "served after {served:?}");
    }

    #[test]
    fn a_crowd_of_names_takes_from_its_own_origin_only() {
        let mut queue = Queue::default();
        (0..100).for_each(|name| queue.push(client("crowd", &name.to_string()), 10));
        let mut one = 0;
        for _ in 0..40 {
            // It asks again when it has its answer.
            if !queue.waiting.iter().any(|(client, ..)| client.origin == "one") {
                queue.push(client("one", ""), 10);
            }
            one += usize::from(queue.serve().0.origin == "one");
        }
        assert!((19..=21).contains(&one), "{one} of 40");
    }

    #[test]
    fn whoever_comes_late_has_saved_nothing_up() {
        let mut queue = Queue::default();
        (0..100).for_each(|_| queue.push(client("a", ""), 10));
        (0..50).for_each(|_| assert_eq!(queue.serve().0.origin, "a"));
        (0..50).for_each(|_| queue.push(client("b", ""), 10));
        let late = (0..20).filter(|_| queue.serve().0.origin == "b").count();
        assert!((9..=11).contains(&late), "{late} of 20");
    }

    #[test]
    fn what_is_made_counts_as_what_was_asked_does() {
        let mut queue = Queue::default();
        queue.push(client("talks", ""), 10);
        let ticket = queue.waiting[0].1;
        queue.serve();
        (0..100).for_each(|_| queue.shares.made(ticket));
        (0..20).for_each(|_| queue.push(client("talks", ""), 10));
        (0..20).for_each(|_| queue.push(client("asks", ""), 10));
        let first = (0..10).filter(|_| queue.serve().0.origin == "asks").count();
        assert_eq!(first, 10);
    }

    #[test]
    fn memory_does_not_grow_with_names() {
        let mut queue = Queue::default();
        for round in 0..10_000 {
            let client = client(&(round % 1000).to_string(), &round.to_string());
            queue.push(client, 5);
            let ticket = queue.waiting[0].1;
            queue.serve();
            (0..50).for_each(|_| queue.shares.made(ticket));
        }
        let shares = &queue.shares;
        assert!(shares.origins.had.len() <= PLACES_MAX + 1 && shares.names.len() <= PLACES_MAX + 1);
        assert!(shares.names.values().all(|names| names.had.len() <= PLACES_MAX + 1));
    }

    proptest! {
        /// Of those who always ask, none is ahead of another by more than the largest requests of both.
        #[test]
        fn all_who_always_ask_get_as_much(
            sizes in proptest::collection::vec((1usize..200, 1usize..200), 2..6), rounds in 50usize..300,
        ) {
            let mut queue = Queue::default();
            let mut had = vec![0; sizes.len()];
            let mut turn = vec![0; sizes.len()];
            let push = |queue: &mut Queue, turn: &mut [usize], who: usize| {
                let tokens = if turn[who].is_multiple_of(2) { sizes[who].0 } else { sizes[who].1 };
                turn[who] += 1;
                queue.push(client(&who.to_string(), ""), tokens);
            };
            // Two wait of each, so that there is always one.
            (0..2).for_each(|_| (0..sizes.len()).for_each(|who| push(&mut queue, &mut turn, who)));
            for _ in 0..rounds {
                let (client, tokens) = queue.serve();
                let who: usize = client.origin.parse().unwrap();
                had[who] += tokens;
                push(&mut queue, &mut turn, who);
                let largest = |who: usize| sizes[who].0.max(sizes[who].1);
                for (a, b) in (0..sizes.len()).flat_map(|a| (0..sizes.len()).map(move |b| (a, b))) {
                    let most = 2 * (largest(a) + largest(b));
                    prop_assert!(had[a] <= had[b] + most, "{a} had {}, {b} {}, of requests {sizes:?}", had[a], had[b]);
                }
            }
        }
    }
}
