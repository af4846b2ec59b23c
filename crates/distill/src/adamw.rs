//! AdamW on one flat vector, with state that can be saved. (tch's own optimizers keep theirs to themselves.)

use tch::{Device, Kind, Tensor};

use crate::config::TrainerConfig;

const EPS: f64 = 1e-8;
/// Numbers updated at once: little enough that one part's intermediate results stay in a core's cache, and take no memory to speak
/// of; on a GPU enough to fill it.
const CPU_CHUNK: i64 = 1 << 18;
const GPU_CHUNK: i64 = 1 << 24;

/// Decoupled weight decay regularization, arXiv 1711.05101, algorithm 2, in PyTorch's form.
#[derive(Debug)]
pub struct AdamW {
    /// First moment, `[P]`.
    pub m: Tensor,
    /// Second moment, `[P]`.
    pub v: Tensor,
    /// Updates made so far.
    pub updates: u64,
}

impl AdamW {
    /// Zero moments for parameters shaped like `flat`.
    pub fn new(flat: &Tensor) -> Self {
        Self { m: flat.zeros_like().to_kind(Kind::Float), v: flat.zeros_like().to_kind(Kind::Float), updates: 0 }
    }

    /// One update of `flat` `[P]` in place by `grads`: where each begins, and its numbers. What none reaches stays.
    pub fn step(&mut self, flat: &Tensor, grads: &[(i64, Tensor)], lr: f64, config: &TrainerConfig) {
        self.updates += 1;
        let chunk = if flat.device() == Device::Cpu { CPU_CHUNK } else { GPU_CHUNK };
        for (begin, grad) in grads {
            let mut at = *begin;
            for part in grad.split(chunk, 0) {
                tch::no_grad(|| self.step_part(flat, at, &part, lr, config));
                at += part.numel() as i64;
            }
        }
    }

    fn step_part(&mut self, flat: &Tensor, at: i64, grad: &Tensor, lr: f64, config: &TrainerConfig) {
        let part = |t: &Tensor| t.narrow(0, at, grad.numel() as i64);
        let (mut flat, mut m, mut v) = (part(flat), part(&self.m), part(&self.v));
        let n = self.updates as i32;
        let (b1, b2) = (config.beta1, config.beta2);
        // `addcmul_` of tch has no scale; v therefore holds sum b2^k g^2 without the factor (1 - b2), applied here.
        let scale = ((1.0 - b2) / (1.0 - b2.powi(n))).sqrt();
        let _ = m.lerp_(grad, 1.0 - b1);
        let _ = v.g_mul_scalar_(b2).addcmul_(grad, grad);
        let denom = v.sqrt().g_mul_scalar_(scale).g_add_scalar_(EPS);
        if config.weight_decay > 0.0 {
            let _ = flat.g_mul_scalar_(1.0 - lr * config.weight_decay);
        }
        let step = m.divide(&denom).g_mul_scalar_(-lr / (1.0 - b1.powi(n)));
        let _ = flat.g_add_(&step);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Compute, LrSchedule};

    // Expected values: torch.optim.AdamW(lr=0.1, betas=(0.9, 0.99), weight_decay=0.01) on p = [1, -2, 3] with loss (p^3).sum(), three steps.
    #[test]
    fn three_steps_equal_pytorch() {
        let config = TrainerConfig {
            steps: 3,
            batch: 1,
            lr: 0.1,
            warmup: 0,
            schedule: LrSchedule::Constant,
            lr_end_ratio: 1.0,
            beta1: 0.9,
            beta2: 0.99,
            weight_decay: 0.01,
            clip_norm: 0.0,
            ema_decay: 0.0,
            seed: 0,
            compute: Compute::F32,
            log_every: 1,
            checkpoint_every: 1,
            accumulate: 1,
            keep_checkpoints: 2,
            max_skipped: 50,
            shard_optimizer: false,
            bucket_mb: 25.0,
        };
        let flat = Tensor::from_slice(&[1f32, -2.0, 3.0]);
        let mut adam = AdamW::new(&flat);
        for _ in 0..3 {
            let grad = &flat * &flat * 3.0;
            // In pieces, the last one first.
            adam.step(&flat, &[(1, grad.narrow(0, 1, 2)), (0, grad.narrow(0, 0, 1))], 0.1, &config);
        }
        let got = Vec::<f32>::try_from(&flat).unwrap();
        let expected = [0.701_347_6_f32, -2.294_120_3, 2.692_152_5];
        for (g, e) in got.iter().zip(expected) {
            assert!((g - e).abs() < 2e-6, "{got:?} is not {expected:?}");
        }
    }
}
