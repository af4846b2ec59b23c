//! Which layers hang together: union-find, and the circles of a directed graph. Two small graph algorithms for `instance`.

/// Union-find with path halving; the root of a set is its smallest member.
pub(super) struct DisjointSets {
    parent: Vec<usize>,
}

impl DisjointSets {
    pub(super) fn new(n: usize) -> Self {
        Self { parent: (0..n).collect() }
    }

    pub(super) fn root(&mut self, mut at: usize) -> usize {
        while self.parent[at] != at {
            self.parent[at] = self.parent[self.parent[at]];
            at = self.parent[at];
        }
        at
    }

    pub(super) fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        self.parent[a.max(b)] = a.min(b);
    }
}

/// Layers that need each other, directly or around a circle, go together or not at all: strongly connected components,
/// found from both ends as in Kosaraju's algorithm (Sharir 1981, doi 10.1016/0898-1221(81)90008-0).
pub(super) fn join_circles(sets: &mut DisjointSets, needs: &[(usize, usize)]) {
    let n = sets.parent.len();
    let mut forward = vec![Vec::new(); n];
    let mut backward = vec![Vec::new(); n];
    for (a, b) in needs {
        let (a, b) = (sets.root(*a), sets.root(*b));
        forward[a].push(b);
        backward[b].push(a);
    }
    let mut finished = Vec::new();
    let mut seen = vec![false; n];
    for start in 0..n {
        // (node, number of edges followed)
        let mut path = if std::mem::replace(&mut seen[start], true) { vec![] } else { vec![(start, 0)] };
        while let Some((at, followed)) = path.last_mut() {
            match forward[*at].get(*followed) {
                Some(next) => {
                    *followed += 1;
                    if !std::mem::replace(&mut seen[*next], true) {
                        path.push((*next, 0));
                    }
                }
                None => {
                    finished.push(*at);
                    path.pop();
                }
            }
        }
    }
    let mut seen = vec![false; n];
    for start in finished.into_iter().rev() {
        let mut open = if std::mem::replace(&mut seen[start], true) { vec![] } else { vec![start] };
        while let Some(at) = open.pop() {
            sets.join(start, at);
            open.extend(backward[at].iter().filter(|other| !std::mem::replace(&mut seen[**other], true)));
        }
    }
}

/// An order in which few neighbours of what came before are open at any time: from an end of the graph on, always the neighbour
/// that opens least, the earlier of equals. Over the numbers `0..neighbours.len()` of a connected graph.
pub(super) fn narrow_order(neighbours: &[Vec<usize>]) -> Vec<usize> {
    let n = neighbours.len();
    let (mut placed, mut open) = (vec![false; n], vec![false; n]);
    let mut frontier: Vec<usize> = Vec::new();
    let mut order = Vec::with_capacity(n);
    // How many neighbours of a number are neither placed nor open.
    let mut fresh: Vec<usize> = neighbours.iter().map(Vec::len).collect();
    let mut starts: Vec<usize> = (0..n).collect();
    starts.sort_by_key(|at| neighbours[*at].len());
    for start in starts {
        if placed[start] {
            continue;
        }
        if !std::mem::replace(&mut open[start], true) {
            neighbours[start].iter().for_each(|other| fresh[*other] -= 1);
            frontier.push(start);
        }
        while let Some(place) = (0..frontier.len()).min_by_key(|place| (fresh[frontier[*place]], frontier[*place])) {
            let at = frontier.swap_remove(place);
            placed[at] = true;
            order.push(at);
            for other in &neighbours[at] {
                if !std::mem::replace(&mut open[*other], true) {
                    neighbours[*other].iter().for_each(|third| fresh[*third] -= 1);
                    frontier.push(*other);
                }
            }
        }
    }
    order
}
