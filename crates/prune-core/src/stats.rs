//! The few statistics that scores and the additivity audit need. All of them answer `None` where the value is undefined
//! (too few points, no spread), never NaN.

/// Sum with a running compensation (Neumaier 1974), so that the order of summands hardly matters.
pub(crate) fn sum(values: impl IntoIterator<Item = f64>) -> f64 {
    let (mut total, mut lost) = (0.0f64, 0.0f64);
    for value in values {
        let next = total + value;
        lost += if total.abs() >= value.abs() { (total - next) + value } else { (value - next) + total };
        total = next;
    }
    total + lost
}

fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

/// Arithmetic mean; `None` of nothing.
pub fn mean(values: &[f64]) -> Option<f64> {
    if values.is_empty() {
        return None;
    }
    finite(sum(values.iter().copied()) / values.len() as f64)
}

/// Standard error of the mean, `sqrt(sum (v - mean)^2 / (n - 1) / n)`; `None` for fewer than two values.
pub fn standard_error(values: &[f64]) -> Option<f64> {
    if values.len() < 2 {
        return None;
    }
    let n = values.len() as f64;
    let center = mean(values)?;
    let squares = sum(values.iter().map(|v| (v - center) * (v - center)));
    finite((squares / (n - 1.0) / n).sqrt())
}

/// The value that Student's t with whole degrees of freedom exceeds in absolute value with chance `level`, 0 < level < 1.
pub(crate) fn student_quantile(level: f64, freedom: usize) -> f64 {
    // The tail falls as the angle atan(t / sqrt(freedom)) rises; bisection to the last bit or so.
    let (mut low, mut high) = (0.0, std::f64::consts::FRAC_PI_2);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if 1.0 - student_inside(middle, freedom) > level { low = middle } else { high = middle }
    }
    (freedom as f64).sqrt() * low.tan()
}

/// Chance that |t| is below `sqrt(freedom) tan(angle)` (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4).
fn student_inside(angle: f64, freedom: usize) -> f64 {
    let square = angle.cos() * angle.cos();
    let odd = freedom % 2 == 1;
    // cos^2 + 2/3 cos^4 + 2*4/(3*5) cos^6 ..., or 1 + 1/2 cos^2 + 1*3/(2*4) cos^4 ...
    let (mut term, mut total) = (1.0, 0.0);
    let terms = if odd { (freedom - 1) / 2 } else { freedom / 2 };
    for k in 1..=terms {
        total += term;
        let k = 2.0 * k as f64;
        term *= square * if odd { k / (k + 1.0) } else { (k - 1.0) / k };
    }
    if odd { (angle + angle.sin() * angle.cos() * total) / std::f64::consts::FRAC_PI_2 } else { angle.sin() * total }
}

/// Hill's estimate (1975, doi 10.1214/aos/1176343247) of the index of a tail, from the `count` largest of some positive values: the
/// smaller, the more a few values carry. `None` where there are no more than `count` values, or the tail has no spread.
pub(crate) fn tail_index(mut values: Vec<f64>, count: usize) -> Option<f64> {
    if count == 0 || values.len() <= count {
        return None;
    }
    values.sort_by(|a, b| b.total_cmp(a));
    let least = values[count];
    if least <= 0.0 {
        return None;
    }
    finite(count as f64 / sum(values[..count].iter().map(|value| (value / least).ln())))
}

/// Centred second moments `(sxx, sxy, syy)` and the two means.
fn moments(x: &[f64], y: &[f64]) -> Option<(f64, f64, f64, f64, f64)> {
    if x.len() != y.len() {
        return None;
    }
    let (mx, my) = (mean(x)?, mean(y)?);
    let sxx = sum(x.iter().map(|a| (a - mx) * (a - mx)));
    let syy = sum(y.iter().map(|b| (b - my) * (b - my)));
    let sxy = sum(x.iter().zip(y).map(|(a, b)| (a - mx) * (b - my)));
    Some((sxx, sxy, syy, mx, my))
}

/// Pearson's correlation; `None` for fewer than two pairs, unequal lengths, or where one side does not vary.
pub fn pearson(x: &[f64], y: &[f64]) -> Option<f64> {
    let (sxx, sxy, syy, ..) = moments(x, y)?;
    if sxx <= 0.0 || syy <= 0.0 {
        return None;
    }
    finite(sxy / (sxx.sqrt() * syy.sqrt())).map(|r| r.clamp(-1.0, 1.0))
}

/// Spearman's rank correlation: Pearson's over ranks, tied values sharing the mean of their ranks.
pub fn spearman(x: &[f64], y: &[f64]) -> Option<f64> {
    pearson(&ranks(x), &ranks(y))
}

/// Ranks from 1; tied values share the mean of their ranks.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    while start < order.len() {
        let tied = order[start..].iter().take_while(|i| values[**i] == values[order[start]]).count();
        // The mean of the ranks start+1 ..= start+tied; a NaN ties with nothing, not even itself.
        let tied = tied.max(1);
        let rank = start as f64 + (tied as f64 + 1.0) / 2.0;
        for i in &order[start..start + tied] {
            ranks[*i] = rank;
        }
        start += tied;
    }
    ranks
}

/// Least-squares slope of `y = slope * x`; `None` where every x is 0.
pub fn slope_through_origin(x: &[f64], y: &[f64]) -> Option<f64> {
    if x.len() != y.len() {
        return None;
    }
    let xx = sum(x.iter().map(|a| a * a));
    let xy = sum(x.iter().zip(y).map(|(a, b)| a * b));
    if xx <= 0.0 {
        return None;
    }
    finite(xy / xx)
}

/// A least-squares line `y = slope * x + intercept`.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinearFit {
    /// Change of y per x.
    pub slope: f64,
    /// y at x = 0.
    pub intercept: f64,
}

/// Least-squares line with intercept; `None` for fewer than two pairs or where x does not vary.
pub fn fit_line(x: &[f64], y: &[f64]) -> Option<LinearFit> {
    let (sxx, sxy, _, mx, my) = moments(x, y)?;
    if sxx <= 0.0 {
        return None;
    }
    let slope = finite(sxy / sxx)?;
    let intercept = finite(my - slope * mx)?;
    Some(LinearFit { slope, intercept })
}

/// A coefficient with its standard error.
pub(crate) type Coefficient = (f64, f64);

/// Least-squares `y = sum_k b_k x_k` without intercept: the `b_k` and their standard errors under equal, independent errors.
/// `None` where there are no more points than columns, or where the columns depend on each other.
pub(crate) fn least_squares(columns: &[Vec<f64>], y: &[f64]) -> Option<Vec<Coefficient>> {
    let (k, n) = (columns.len(), y.len());
    if k == 0 || n <= k || columns.iter().any(|column| column.len() != n) {
        return None;
    }
    // Columns of unit length, so that the pivots tell how far they are from depending on each other.
    let lengths: Vec<f64> = columns.iter().map(|column| sum(column.iter().map(|x| x * x)).sqrt()).collect();
    if lengths.iter().any(|length| !(*length > 0.0 && length.is_finite())) {
        return None;
    }
    let unit: Vec<Vec<f64>> = columns.iter().zip(&lengths).map(|(column, l)| column.iter().map(|x| x / l).collect()).collect();
    let dot = |a: &[f64], b: &[f64]| sum(a.iter().zip(b).map(|(a, b)| a * b));
    // Gauss and Jordan on [X'X | I]; X'X is positive definite, so the diagonal serves as pivots.
    let mut rows: Vec<Vec<f64>> = (0..k)
        .map(|i| (0..2 * k).map(|j| if j < k { dot(&unit[i], &unit[j]) } else { f64::from(u8::from(j - k == i)) }).collect())
        .collect();
    for at in 0..k {
        let pivot = rows[at][at];
        if pivot < 1e-9 {
            return None;
        }
        rows[at].iter_mut().for_each(|x| *x /= pivot);
        let row = rows[at].clone();
        for other in (0..k).filter(|other| *other != at) {
            let factor = rows[other][at];
            rows[other].iter_mut().zip(&row).for_each(|(x, pivot_row)| *x -= factor * pivot_row);
        }
    }
    let right: Vec<f64> = unit.iter().map(|column| dot(column, y)).collect();
    let scaled: Vec<f64> = rows.iter().map(|row| dot(&row[k..], &right)).collect();
    let residual = |i: usize| y[i] - sum(unit.iter().zip(&scaled).map(|(column, b)| column[i] * b));
    let variance = sum((0..n).map(|i| residual(i).powi(2))) / (n - k) as f64;
    let coefficient = |i: usize| Some((finite(scaled[i] / lengths[i])?, finite((variance * rows[i][k + i]).sqrt() / lengths[i])?));
    (0..k).map(coefficient).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    // Reference values from numpy (std with ddof 1, corrcoef over values and over ranks, polyfit).
    const X: [f64; 6] = [1.0, 2.0, 2.0, 3.5, 5.0, 8.0];
    const Y: [f64; 6] = [0.9, 2.5, 2.0, 2.0, 6.5, 7.0];

    fn close(got: Option<f64>, expected: f64) {
        let got = got.expect("defined");
        assert!((got - expected).abs() < 1e-12, "{got} is not {expected}");
    }

    #[test]
    fn the_tail_of_a_power_law_has_its_index() {
        for index in [0.8, 1.5, 3.0] {
            // The quantiles of P(X > x) = x^-index.
            let values: Vec<f64> = (0..2000).map(|at| ((at as f64 + 0.5) / 2000.0).powf(-1.0 / index)).collect();
            let found = tail_index(values, 100).expect("enough values");
            assert!((found / index - 1.0).abs() < 0.05, "{found} is not {index}");
        }
        assert_eq!((tail_index(vec![1.0; 5], 5), tail_index(vec![1.0; 50], 5), tail_index(vec![0.0; 50], 5)), (None, None, None));
    }

    #[test]
    fn against_numpy() {
        close(mean(&X), 3.5833333333333335);
        close(standard_error(&X), 1.052114273472442);
        close(pearson(&X, &Y), 0.9145733231694579);
        close(spearman(&X, &Y), 0.8676470588235294);
        close(slope_through_origin(&X, &Y), 0.9560090702947847);
        let line = fit_line(&X, &Y).unwrap();
        close(Some(line.slope), 0.91869510664994);
        close(Some(line.intercept), 0.19134253450438);
    }

    #[test]
    fn undefined_is_none_not_nan() {
        assert_eq!(mean(&[]), None);
        assert_eq!(standard_error(&[1.0]), None);
        assert_eq!(pearson(&[1.0, 1.0], &[1.0, 2.0]), None);
        assert_eq!(pearson(&[1.0], &[2.0]), None);
        assert_eq!(pearson(&[1.0, 2.0], &[2.0]), None);
        assert_eq!(slope_through_origin(&[0.0], &[1.0]), None);
        assert_eq!(fit_line(&[2.0, 2.0], &[1.0, 3.0]), None);
        assert_eq!(mean(&[f64::MAX, f64::MAX]), None);
        assert_eq!(spearman(&[f64::NAN, 1.0], &[1.0, 2.0]).map(f64::is_nan), Some(false));
    }

    #[test]
    fn least_squares_against_numpy() {
        // numpy.linalg.lstsq([x, w], y); standard errors from sqrt(diag(inv(X'X)) * rss / (n - 2)).
        let w = vec![2.0, 1.0, 4.0, 1.0, 3.0, 1.0];
        let fit = least_squares(&[X.to_vec(), w], &Y).unwrap();
        for ((got, error), (expected, expected_error)) in
            fit.into_iter().zip([(0.8808505438103384, 0.13538513958429063), (0.21522668947818663, 0.25129584446384035)])
        {
            close(Some(got), expected);
            close(Some(error), expected_error);
        }
        let one = least_squares(&[X.to_vec()], &Y).unwrap();
        close(Some(one[0].0), slope_through_origin(&X, &Y).unwrap());
        let twice: Vec<f64> = X.iter().map(|x| 2.0 * x).collect();
        assert_eq!(least_squares(&[X.to_vec(), twice], &Y), None);
        assert_eq!(least_squares(&[vec![1.0], vec![2.0]], &[1.0]), None);
        assert_eq!(least_squares(&[vec![0.0; 6]], &Y), None);
    }

    #[test]
    fn student_against_tables() {
        // Two-sided quantiles of Student's t.
        for (level, freedom, expected) in [
            (0.05, 1, 12.706204736174698),
            (0.05, 2, 4.302652729749462),
            (0.05, 7, 2.364624251592784),
            (0.01, 30, 2.749995653567225),
            (0.5, 5, 0.7266868438004226),
        ] {
            let got = student_quantile(level, freedom);
            assert!((got / expected - 1.0).abs() < 1e-12, "{got} is not {expected}");
        }
    }

    #[test]
    fn the_sum_is_compensated() {
        assert_eq!(sum([1.0, 1e100, 1.0, -1e100]), 2.0);
    }
}
