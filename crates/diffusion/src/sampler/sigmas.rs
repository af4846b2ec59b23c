//! Noise levels: `sigma = sqrt((1 - abar) / abar)`, the time of Euler's method and of DPM-Solver.

use crate::schedule::NoiseSchedule;
use crate::scheduler_config::NoiseLevels;

// sigma at every timestep of training, rising, rounded to f32 at each step as in diffusers. Where nothing of the image is left, abar (0)
// counts as 2^-24 (the smallest f16), so that sigma stays finite.
pub(super) fn table(schedule: &NoiseSchedule) -> Vec<f64> {
    let floor = |a: f64| if a > 0.0 { a as f32 } else { f32::powi(2.0, -24) };
    schedule.alphas_cumprod().iter().map(|&a| floor(a)).map(|a| f64::from(((1.0 - a) / a).sqrt())).collect()
}

// The logarithm in f32. Whether a level at the table's end falls short of the last whole timestep hangs on its rounding.
fn log(level: f64) -> f64 {
    f64::from(level.ln() as f32)
}

// Linear between the entries of `table`; `t` is within it.
pub(super) fn interpolate(table: &[f64], t: f64) -> f64 {
    let low = (t.floor() as usize).min(table.len() - 1);
    let high = (low + 1).min(table.len() - 1);
    table[low] + (t - low as f64) * (table[high] - table[low])
}

// To where the last step goes: no noise, or the lowest level of training.
pub(super) fn last(schedule: &NoiseSchedule) -> f64 {
    if schedule.config().final_sigma_min { table(schedule)[0] } else { 0.0 }
}

// The levels of `steps` steps from `max` to `min`; `None` where they are those of the timesteps.
pub(super) fn spread(levels: NoiseLevels, max: f64, min: f64, steps: usize) -> Option<Vec<f64>> {
    const RHO: f64 = 7.0;
    let ramp = (0..steps).map(|i| if steps > 1 { i as f64 / (steps - 1) as f64 } else { 0.0 });
    Some(match levels {
        NoiseLevels::Timesteps => return None,
        NoiseLevels::Karras => {
            let (a, b) = (max.powf(1.0 / RHO), min.powf(1.0 / RHO));
            ramp.map(|r| (a + r * (b - a)).powf(RHO)).collect()
        }
        NoiseLevels::Exponential | NoiseLevels::Lu => {
            let (a, b) = if levels == NoiseLevels::Lu { (log(max), log(min)) } else { (max.ln(), min.ln()) };
            ramp.map(|r| (a + r * (b - a)).exp()).collect()
        }
        NoiseLevels::Beta => ramp.map(|r| min + beta_quantile(1.0 - r) * (max - min)).collect(),
    })
}

// The quantile of the beta distribution whose two parameters are 0.6. With x = sin(t)^2 its density in t is that of sin(2 t)^0.2, and
// with t = u^5 what is left has no corner at 0.
fn beta_quantile(p: f64) -> f64 {
    const HALVINGS: usize = 50;
    const INTERVALS: usize = 200;
    if p > 0.5 {
        return 1.0 - beta_quantile(1.0 - p);
    }
    let density = |u: f64| 5.0 * u.powi(4) * (2.0 * u.powi(5)).sin().max(0.0).powf(0.2);
    // Simpson's rule from 0 to `to`.
    let area = |to: f64| {
        let h = to / INTERVALS as f64;
        let weight = |i: usize| if i == 0 || i == INTERVALS { 1.0 } else { 2.0 + 2.0 * (i % 2) as f64 };
        (0..=INTERVALS).map(|i| weight(i) * density(i as f64 * h)).sum::<f64>() * h / 3.0
    };
    let middle = std::f64::consts::FRAC_PI_4.powf(0.2);
    let wanted = 2.0 * p * area(middle);
    let halve = |(low, high): (f64, f64), _| {
        let u = (low + high) / 2.0;
        if area(u) < wanted { (u, high) } else { (low, u) }
    };
    let (u, _) = (0..HALVINGS).fold((0.0, middle), halve);
    u.powi(5).sin().powi(2)
}

// The (fractional) timestep with this noise level, linear in the logarithm.
pub(super) fn timestep_of(table: &[f64], sigma: f64) -> f64 {
    let wanted = sigma.max(1e-10).ln();
    let low = table.iter().rposition(|s| log(*s) <= wanted).unwrap_or(0).min(table.len().saturating_sub(2));
    let high = (low + 1).min(table.len() - 1);
    let (l, h) = (log(table[low]), log(table[high]));
    let w = if h > l { ((wanted - l) / (h - l)).clamp(0.0, 1.0) } else { 0.0 };
    (1.0 - w) * low as f64 + w * high as f64
}
