//! Which pages of keys and values belong to whom.
//!
//! Full pages whose tokens are computed are known in a tree: a request that begins with the same tokens takes them over,
//! while the one that computed them still runs and after it, and nothing of that prefix is computed again. A page in the
//! tree that nobody uses is given up, the longest unused first and leaves before what leads to them, when a new one is
//! wanted. What must hold: a page is free, or in the tree, or a request's own, and never two of these but for requests that
//! share a page of the tree.

use std::collections::{BTreeSet, HashMap};

use crate::graph::PAGE_TOKENS;

/// A page of keys and values.
pub type Page = u32;

/// A place in the tree.
type Node = u32;

/// The beginning of every prompt.
const ROOT: Node = u32::MAX;

#[derive(Debug)]
struct Entry {
    parent: Node,
    tokens: Box<[u32]>,
    page: Page,
    /// Requests that use it now.
    users: u32,
    /// Nodes that go on from it.
    children: u32,
    /// When it was last used, in steps of [`PageTable::tick`].
    used: u64,
}

impl Entry {
    fn is_idle_leaf(&self) -> bool {
        self.users == 0 && self.children == 0
    }
}

/// All pages of a model.
#[derive(Debug)]
pub struct PageTable {
    free: Vec<Page>,
    nodes: HashMap<Node, Entry>,
    by_tokens: HashMap<(Node, Box<[u32]>), Node>,
    /// Nodes without users.
    idle: usize,
    /// Those of them without children, by when they were last used: once pages are full, each new one takes the first.
    leaves: BTreeSet<(u64, Node)>,
    next_node: Node,
    tick: u64,
}

/// The pages of one request, in order.
#[derive(Debug, Default)]
pub struct Owned {
    /// Nodes of the tree, from its beginning.
    shared: Vec<Node>,
    pages: Vec<Page>,
}

impl Owned {
    /// The pages.
    pub fn pages(&self) -> &[Page] {
        &self.pages
    }

    /// Tokens that fit.
    pub fn room(&self) -> usize {
        self.pages.len() * PAGE_TOKENS
    }
}

impl PageTable {
    /// So many pages, all free.
    pub fn new(pages: u32) -> Self {
        let (nodes, by_tokens, leaves) = (HashMap::new(), HashMap::new(), BTreeSet::new());
        Self { free: (0..pages).rev().collect(), nodes, by_tokens, idle: 0, leaves, next_node: 0, tick: 0 }
    }

    /// Pages that a request could have now: free, or only kept in case they are wanted again.
    pub fn available(&self) -> usize {
        self.free.len() + self.idle
    }

    /// What the tree knows of the beginning of a prompt, for a new request; and how many tokens that is. The last token
    /// is never among them: something has to be computed to have logits.
    pub fn begin(&mut self, prompt: &[u32]) -> (Owned, usize) {
        self.tick += 1;
        let mut owned = Owned::default();
        let mut node = ROOT;
        for tokens in prompt[..prompt.len().saturating_sub(1)].chunks_exact(PAGE_TOKENS) {
            let Some(next) = self.by_tokens.get(&(node, tokens.into())) else { break };
            node = *next;
            let entry = self.nodes.get_mut(&node).expect("the tree is whole");
            if entry.users == 0 {
                self.idle -= 1;
                self.leaves.remove(&(entry.used, node));
            }
            entry.users += 1;
            entry.used = self.tick;
            owned.shared.push(node);
            owned.pages.push(entry.page);
        }
        let known = owned.room();
        (owned, known)
    }

    /// One more page for a request; none when all are in use.
    pub fn grow(&mut self, owned: &mut Owned) -> Option<Page> {
        if self.free.is_empty() {
            self.give_up_one()?;
        }
        let page = self.free.pop()?;
        owned.pages.push(page);
        Some(page)
    }

    fn give_up_one(&mut self) -> Option<()> {
        let (_, node) = self.leaves.pop_first()?;
        let entry = self.nodes.remove(&node).expect("leaves are nodes");
        self.idle -= 1;
        self.by_tokens.remove(&(entry.parent, entry.tokens));
        if let Some(parent) = self.nodes.get_mut(&entry.parent) {
            parent.children -= 1;
            if parent.is_idle_leaf() {
                self.leaves.insert((parent.used, entry.parent));
            }
        }
        self.free.push(entry.page);
        Some(())
    }

    /// Makes the full pages of a request whose first tokens were `computed` known to others. Where somebody computed the
    /// same before, it goes on with theirs, and its own are free.
    pub fn share(&mut self, owned: &mut Owned, computed: &[u32]) {
        for tokens in computed.chunks_exact(PAGE_TOKENS).skip(owned.shared.len()) {
            let (parent, at) = (owned.shared.last().copied().unwrap_or(ROOT), owned.shared.len());
            let node = match self.by_tokens.get(&(parent, tokens.into())) {
                Some(there) => {
                    let entry = self.nodes.get_mut(there).expect("the tree is whole");
                    if entry.users == 0 {
                        self.idle -= 1;
                        self.leaves.remove(&(entry.used, *there));
                    }
                    entry.users += 1;
                    self.free.push(std::mem::replace(&mut owned.pages[at], entry.page));
                    *there
                }
                None => {
                    let Some(new) = self.unused_node() else { return };
                    // Whoever has this page has those before it: nobody may give them up.
                    if let Some(parent) = self.nodes.get_mut(&parent) {
                        parent.children += 1;
                    }
                    self.by_tokens.insert((parent, tokens.into()), new);
                    let (page, tokens) = (owned.pages[at], tokens.into());
                    self.nodes.insert(new, Entry { parent, tokens, page, users: 1, children: 0, used: self.tick });
                    new
                }
            };
            owned.shared.push(node);
        }
    }

    /// Takes back the pages of a request; those that others may know stay known.
    pub fn end(&mut self, owned: Owned) {
        self.tick += 1;
        for shared in &owned.shared {
            let entry = self.nodes.get_mut(shared).expect("nodes in use stay");
            entry.users -= 1;
            self.idle += usize::from(entry.users == 0);
            entry.used = self.tick;
            if entry.is_idle_leaf() {
                self.leaves.insert((entry.used, *shared));
            }
        }
        self.free.extend(&owned.pages[owned.shared.len()..]);
    }

    /// Gives up all pages that nobody uses: nobody goes on from what they hold.
    pub fn forget(&mut self) {
        while self.give_up_one().is_some() {}
    }

    fn unused_node(&mut self) -> Option<Node> {
        let new = self.next_node;
        self.next_node = self.next_node.wrapping_add(1) % ROOT;
        (!self.nodes.contains_key(&new)).then_some(new)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prompt(length: usize, variant: u32) -> Vec<u32> {
        (0..length as u32).map(|i| if i < 64 { i } else { i + variant * 1000 }).collect()
    }

    #[test]
    fn a_known_beginning_is_taken_over() {
        let mut table = PageTable::new(8);
        let (mut first, known) = table.begin(&prompt(100, 0));
        assert_eq!(known, 0);
        while first.room() < 100 {
            table.grow(&mut first).unwrap();
        }
        let pages = first.pages().to_vec();
        let mut beside = table.begin(&prompt(100, 0)).0;
        while beside.room() < 96 {
            table.grow(&mut beside).unwrap();
        }
        table.share(&mut first, &prompt(100, 0));
        assert_eq!((first.pages(), table.available()), (&pages[..], 1));
        let (whole, known) = table.begin(&prompt(100, 2));
        assert_eq!((known, whole.pages()), (64, &pages[..2]), "while the first still runs");
        table.share(&mut beside, &prompt(70, 0));
        assert_eq!(
            (&beside.pages()[..2], table.available()),
            (&pages[..2], 3),
            "one that computed the same has its pages"
        );
        for owned in [first, beside, whole] {
            table.end(owned);
        }
        assert_eq!(table.available(), 8);
        let (second, known) = table.begin(&prompt(100, 1));
        assert_eq!((known, second.pages()), (64, &pages[..2]), "the first 64 tokens are the same");
        let (third, known) = table.begin(&prompt(64, 0));
        assert_eq!(known, 32, "the last token is computed again");
        table.end(second);
        table.end(third);
    }

    #[test]
    fn pages_that_nobody_uses_are_given_up_from_the_leaves() {
        let mut table = PageTable::new(3);
        let (mut owned, _) = table.begin(&prompt(96, 0));
        while table.grow(&mut owned).is_some() {}
        assert_eq!(owned.room(), 96);
        table.share(&mut owned, &prompt(96, 0));
        table.end(owned);
        let (mut other, _) = table.begin(&[7; 40]);
        table.grow(&mut other).unwrap();
        let (_kept, known) = table.begin(&prompt(96, 0));
        assert_eq!(known, 64, "only the last of the chain was given up");
    }

    /// What may be given up, the first first, by a look at all nodes.
    fn leaves(table: &PageTable) -> BTreeSet<(u64, Node)> {
        let idle = table.nodes.iter().filter(|(_, entry)| entry.users == 0 && entry.children == 0);
        idle.map(|(node, entry)| (entry.used, *node)).collect()
    }

    proptest! {
        /// Many random requests that begin, grow, share and end: pages are never lost nor given out twice, and the leaf that is
        /// given up is the one that was longest unused.
        #[test]
        fn every_page_has_one_owner(steps in proptest::collection::vec((0u8..6, 0usize..8, 1usize..200), 1..120)) {
            const PAGES: u32 = 12;
            let mut table = PageTable::new(PAGES);
            let mut running: Vec<(Owned, Vec<u32>)> = Vec::new();
            for (what, which, length) in steps {
                match what {
                    0 => {
                        let prompt = prompt(length, which as u32 % 3);
                        let (owned, _) = table.begin(&prompt);
                        running.push((owned, prompt));
                    }
                    1 | 2 if !running.is_empty() => {
                        let index = which % running.len();
                        let (before, oldest) = (table.nodes.len(), leaves(&table).first().copied());
                        let full = table.free.is_empty();
                        table.grow(&mut running[index].0);
                        let given_up = oldest.filter(|_| full);
                        prop_assert_eq!(table.nodes.len(), before - usize::from(given_up.is_some()));
                        prop_assert!(given_up.is_none_or(|(_, node)| !table.nodes.contains_key(&node)));
                    }
                    3 | 4 if !running.is_empty() => {
                        let index = which % running.len();
                        let (owned, prompt) = &mut running[index];
                        let computed = prompt.len().min(owned.room()).min(length);
                        table.share(owned, &prompt[..computed]);
                        prop_assert!(owned.shared.len() >= computed / PAGE_TOKENS);
                    }
                    _ if !running.is_empty() => table.end(running.swap_remove(which % running.len()).0),
                    _ => {}
                }
                let mut owners = vec![0; PAGES as usize];
                table.free.iter().for_each(|page| owners[*page as usize] += 1);
                table.nodes.values().for_each(|entry| owners[entry.page as usize] += 1);
                for (owned, _) in &running {
                    owned.pages.iter().skip(owned.shared.len()).for_each(|page| owners[*page as usize] += 1);
                }
                prop_assert_eq!(owners, vec![1; PAGES as usize]);
                prop_assert_eq!(&table.leaves, &leaves(&table));
                prop_assert_eq!(table.idle, table.nodes.values().filter(|entry| entry.users == 0).count());
                for (node, entry) in &table.nodes {
                    let users = running.iter().filter(|(owned, _)| owned.shared.contains(node)).count();
                    let children = table.nodes.values().filter(|other| other.parent == *node).count();
                    prop_assert_eq!((entry.users as usize, entry.children as usize), (users, children));
                    prop_assert!(entry.parent == ROOT || table.nodes.contains_key(&entry.parent));
                }
            }
        }
    }
}
