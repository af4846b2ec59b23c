//! Noise levels: `sigma = sqrt((1 - abar) / abar)`, the time of Euler's method and of DPM-Solver.

use crate::schedule::NoiseSchedule;

// sigma at every timestep of training, rising. Where nothing of the image is left, abar (0) counts as 2^-24 (the smallest
// f16), so that sigma stays finite.
pub(super) fn table(schedule: &NoiseSchedule) -> Vec<f64> {
    let floor = |a: f64| if a > 0.0 { a } else { f64::powi(2.0, -24) };
    schedule.alphas_cumprod().iter().map(|&a| floor(a)).map(|a| ((1.0 - a) / a).sqrt()).collect()
}

// Linear between the entries of `table`; `t` is within it.
pub(super) fn interpolate(table: &[f64], t: f64) -> f64 {
    let low = (t.floor() as usize).min(table.len() - 1);
    let high = (low + 1).min(table.len() - 1);
    table[low] + (t - low as f64) * (table[high] - table[low])
}

// arXiv 2206.00364, equation 5, with rho = 7.
pub(super) fn karras(max: f64, min: f64, steps: usize) -> Vec<f64> {
    const RHO: f64 = 7.0;
    let (a, b) = (max.powf(1.0 / RHO), min.powf(1.0 / RHO));
    let ramp = |i: usize| if steps > 1 { i as f64 / (steps - 1) as f64 } else { 0.0 };
    (0..steps).map(|i| (a + ramp(i) * (b - a)).powf(RHO)).collect()
}

// The (fractional) timestep with this noise level, linear in the logarithm.
pub(super) fn timestep_of(table: &[f64], sigma: f64) -> f64 {
    let log = sigma.max(1e-10).ln();
    let low = table.iter().rposition(|s| s.ln() <= log).unwrap_or(0).min(table.len().saturating_sub(2));
    let high = (low + 1).min(table.len() - 1);
    let (l, h) = (table[low].ln(), table[high].ln());
    let w = if h > l { ((log - l) / (h - l)).clamp(0.0, 1.0) } else { 0.0 };
    (1.0 - w) * low as f64 + w * high as f64
}
