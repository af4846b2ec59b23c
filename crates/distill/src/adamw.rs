//! AdamW on one flat vector, with state that can be saved: libtorch's fused kernel, in one pass. (tch's own optimizers keep their state
//! to themselves, and read it many times.)

use std::ffi::{CStr, c_char, c_void};

use tch::{TchError, Tensor};

use crate::train::TrainerConfig;
use crate::error::Result;

const EPS: f64 = 1e-8;
/// Where a vector may be cut without changing bits: the kernel computes 16 numbers at once and what is left of a piece one by one, rounding
/// otherwise.
pub const ALIGNMENT: i64 = 16;

unsafe extern "C" {
    fn ld_adamw(
        params: *mut c_void,
        m: *mut c_void,
        v: *mut c_void,
        begins: *const i64,
        grads: *const *mut c_void,
        n: usize,
        alignment: i64,
        updates: f64,
        divisor: f64,
        lr: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        eps: f64,
    ) -> *mut c_char;
    fn free(block: *mut c_void);
}

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
    /// Zero moments for parameters shaped like `flat`, f32.
    pub fn new(flat: &Tensor) -> Self {
        Self { m: flat.zeros_like(), v: flat.zeros_like(), updates: 0 }
    }

    /// One update of `flat` `[P]` in place by `grads` over `divisor`: where each begins, and its numbers, which are lost. What none reaches
    /// stays.
    ///
    /// # Errors
    /// [`crate::Error::Torch`] when they do not fit together.
    pub fn step(&mut self, flat: &Tensor, grads: &[(i64, Tensor)], divisor: f64, lr: f64, config: &TrainerConfig) -> Result<()> {
        self.updates += 1;
        let of = |t: &Tensor| t.as_ptr().cast_mut().cast::<c_void>();
        let (begins, list): (Vec<i64>, Vec<*mut c_void>) = grads.iter().map(|(begin, grad)| (*begin, of(grad))).unzip();
        // SAFETY: all tensors outlive the call, which keeps none; both lists have `len` entries.
        let message = tch::no_grad(|| unsafe {
            ld_adamw(
                of(flat),
                of(&self.m),
                of(&self.v),
                begins.as_ptr(),
                list.as_ptr(),
                list.len(),
                ALIGNMENT,
                self.updates as f64,
                divisor,
                lr,
                config.beta1,
                config.beta2,
                config.weight_decay,
                EPS,
            )
        });
        if message.is_null() {
            return Ok(());
        }
        // SAFETY: not null, so a NUL-terminated string from malloc, which nobody else holds.
        let text = unsafe {
            let text = CStr::from_ptr(message).to_string_lossy().trim().to_string();
            free(message.cast());
            text
        };
        Err(TchError::Torch(text).into())
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};
    use unet::Compute;

    use super::*;
    use crate::train::LrSchedule;

    fn config() -> TrainerConfig {
        TrainerConfig {
            steps: 3,
            batch: 1,
            lr: 0.1,
            warmup: 0,
            lr_schedule: LrSchedule::Constant,
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
        }
    }

    // Expected values: torch.optim.AdamW(lr=0.1, betas=(0.9, 0.99), weight_decay=0.01) on p = [1, -2, 3] with loss (p^3).sum(), three steps.
    #[test]
    fn three_steps_equal_pytorch() {
        let flat = Tensor::from_slice(&[1f32, -2.0, 3.0]);
        let mut adam = AdamW::new(&flat);
        for divisor in [1.0, 2.0, 0.25] {
            let grad = &flat * &flat * 3.0 * divisor;
            // In pieces, the last one first.
            adam.step(&flat, &[(1, grad.narrow(0, 1, 2)), (0, grad.narrow(0, 0, 1))], divisor, 0.1, &config()).unwrap();
        }
        let got = Vec::<f32>::try_from(&flat).unwrap();
        let expected = [0.701_347_6_f32, -2.294_120_3, 2.692_152_5];
        for (g, e) in got.iter().zip(expected) {
            assert!((g - e).abs() < 2e-6, "{got:?} is not {expected:?}");
        }
    }

    #[test]
    fn a_cut_where_it_is_allowed_changes_no_bit() {
        let random = || Tensor::randn([1000], (Kind::Float, Device::Cpu));
        let (start, grads) = (random(), [random(), random(), random()]);
        let train = |cuts: &[i64]| {
            let flat = start.copy();
            let mut adam = AdamW::new(&flat);
            for grad in &grads {
                let grad = grad.copy();
                let pieces: Vec<_> = cuts.windows(2).map(|c| (c[0], grad.narrow(0, c[0], c[1] - c[0]))).collect();
                adam.step(&flat, &pieces, 3.0, 0.1, &config()).unwrap();
            }
            [flat, adam.m, adam.v]
        };
        // Parameters end anywhere.
        let whole = train(&[0, 5, 333, 1000]);
        assert_eq!(train(&[0, 5, 16, 320, 333, 480, 1000]), whole);
    }

    #[test]
    fn a_gradient_of_another_length_is_refused() {
        let mut adam = AdamW::new(&Tensor::zeros([4], (Kind::Float, Device::Cpu)));
        let flat = adam.m.copy();
        let grad = Tensor::zeros([2], (Kind::Float, Device::Cpu));
        let error = adam.step(&flat, &[(3, grad)], 1.0, 0.1, &config()).unwrap_err().to_string();
        assert!(error.contains("exceeds dimension size (4)"), "{error}");
    }
}
