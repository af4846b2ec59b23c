//! Which model to ship: models of several runs by cost and quality (results of many runs -> one table). After evaluation.

/// A model that could be shipped.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// Median seconds of one U-Net call, where it was measured.
    pub latency_s: Option<f64>,
    /// Mean of the metric that decides.
    pub value: f64,
}

/// Whether each candidate is on the Pareto front: no other is at least as fast and at least as good, and better in one of the two.
/// Candidates without a latency are not on it.
pub fn pareto_front(all: &[Candidate], higher_is_better: bool) -> Vec<bool> {
    let sign = if higher_is_better { 1.0 } else { -1.0 };
    let point = |c: &Candidate| c.latency_s.map(|l| (l, sign * c.value));
    let beaten = |own: (f64, f64)| all.iter().filter_map(point).any(|(l, q)| l <= own.0 && q >= own.1 && (l < own.0 || q > own.1));
    all.iter().map(|c| point(c).is_some_and(|own| !beaten(own))).collect()
}

/// The place of the best candidate whose latency is at most `limit_s`; the faster one of two equally good ones.
pub fn best_within(all: &[Candidate], limit_s: f64, higher_is_better: bool) -> Option<usize> {
    let sign = if higher_is_better { 1.0 } else { -1.0 };
    let fits = all.iter().enumerate().filter_map(|(i, c)| Some((i, c.latency_s.filter(|l| *l <= limit_s)?, sign * c.value)));
    fits.min_by(|(_, l, q), (_, m, r)| r.total_cmp(q).then(l.total_cmp(m))).map(|(i, ..)| i)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_front_and_the_choice() {
        // Teacher, one that another beats in both, half the teacher, a small one, and one that was not timed.
        let all = [(Some(4.0), 22.0), (Some(3.0), 20.0), (Some(2.0), 21.0), (Some(1.0), 18.0), (None, 30.0)];
        let all = all.map(|(latency_s, value)| Candidate { latency_s, value });
        assert_eq!(pareto_front(&all, true), [true, false, true, true, false]);
        assert_eq!([9.0, 3.5, 1.5, 0.5].map(|l| best_within(&all, l, true)), [Some(0), Some(2), Some(3), None]);
        // Where less is better the small one beats all.
        assert_eq!((pareto_front(&all, false), best_within(&all, 9.0, false)), (vec![false, false, false, true, false], Some(3)));
    }
}
