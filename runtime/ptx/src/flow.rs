//! Where the lanes of a warp that went different ways meet again: at the nearest instruction through which all ways to
//! the end lead (the immediate post-dominator).

/// Nowhere: only the end of the kernel is common.
pub(crate) const NOWHERE: u32 = u32::MAX;

/// Where an instruction may lead; an empty `next` and `exits` end the function.
#[derive(Debug, Default, Clone)]
pub(crate) struct Leads {
    pub(crate) next: Vec<u32>,
    pub(crate) exits: bool,
}

/// For each instruction that leads to several, where the ways meet. `leads` is a whole function.
pub(crate) fn meetings(leads: &[Leads]) -> Vec<u32> {
    let end = leads.len();
    // The graph backwards, from the end; `leads.len()` stands for it.
    let ways = |n: usize| {
        let instruction = &leads[n];
        let exits = instruction.exits || instruction.next.is_empty();
        instruction.next.iter().map(|&next| next as usize).chain(exits.then_some(end))
    };
    let mut before = vec![Vec::new(); end + 1];
    for n in 0..end {
        for next in ways(n) {
            before[next].push(n);
        }
    }
    // Depth first from the end, without recursion: the order in which nodes are finished.
    let mut finished = vec![usize::MAX; end + 1];
    let mut order = Vec::with_capacity(end + 1);
    let mut seen = vec![false; end + 1];
    let mut stack = vec![(end, 0)];
    seen[end] = true;
    while let Some((node, at)) = stack.last_mut() {
        if let Some(&earlier) = before[*node].get(*at) {
            *at += 1;
            if !seen[earlier] {
                seen[earlier] = true;
                stack.push((earlier, 0));
            }
        } else {
            finished[*node] = order.len();
            order.push(*node);
            stack.pop();
        }
    }
    // Cooper, Harvey, Kennedy: "A Simple, Fast Dominance Algorithm".
    let mut dominator = vec![usize::MAX; end + 1];
    dominator[end] = end;
    let mut changed = true;
    while changed {
        changed = false;
        for &node in order.iter().rev().skip(1) {
            let mut common = usize::MAX;
            for next in ways(node).filter(|&next| dominator[next] != usize::MAX) {
                common = if common == usize::MAX { next } else { meet(&dominator, &finished, common, next) };
            }
            changed |= dominator[node] != common;
            dominator[node] = common;
        }
    }
    let place = |node: usize| if node >= end { NOWHERE } else { node as u32 };
    (0..end).map(|node| place(dominator[node])).collect()
}

fn meet(dominator: &[usize], finished: &[usize], mut a: usize, mut b: usize) -> usize {
    while a != b {
        while finished[a] < finished[b] {
            a = dominator[a];
        }
        while finished[b] < finished[a] {
            b = dominator[b];
        }
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[(usize, u32)]) {
        let leads: Vec<Leads> = text
            .split(' ')
            .map(|ways| Leads {
                next: ways.split(',').filter_map(|way| way.parse().ok()).collect(),
                exits: ways.contains('x'),
            })
            .collect();
        let got = meetings(&leads);
        for &(at, meeting) in expected {
            assert_eq!(got[at], meeting, "{text}: {at}");
        }
    }

    #[test]
    fn ways_meet() {
        check("1,2 2 x", &[(0, 2)]); // if
        check("1,3 2 4 4 x", &[(0, 4)]); // if, else
        check("1 2 0,3 x", &[(2, 3)]); // loop
        check("1,5 2,4 3 4 0 x", &[(0, 5), (1, 4)]); // nested
        check("1,x 2,3 3 x", &[(0, NOWHERE), (1, 3)]); // early exit
        check("1,2 1 x", &[(0, 2)]); // a way without end
        check("2,1 3 3 x", &[(0, 3)]); // blocks out of order
    }
}
