//! AdamW on one flat vector, with state that can be saved: libtorch's fused kernel, in one pass. (tch's own optimizers keep their state
//! to themselves, and read it many times.)

use std::ffi::c_void;

use tch::{TchError, Tensor};

use crate::ffi;

const EPS: f64 = 1e-8;

/// What stays the same from update to update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWConfig {
    /// Decay rate of the first moment.
    pub beta1: f64,
    /// Decay rate of the second moment.
    pub beta2: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
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
    /// Where a vector may be cut without changing bits: the kernel computes 16 numbers at once and what is left of a piece one by one,
    /// rounding otherwise.
    pub const ALIGNMENT: i64 = 16;

    /// Zero moments for parameters shaped like `flat`, f32.
    pub fn new(flat: &Tensor) -> Self {
        Self { m: flat.zeros_like(), v: flat.zeros_like(), updates: 0 }
    }

    /// One update of `flat` `[P]` in place by `grads` over `divisor`: where each begins, and its numbers, which are lost. What none reaches
    /// stays.
    ///
    /// # Errors
    /// libtorch's, when they do not fit together.
    pub fn step(&mut self, flat: &Tensor, grads: &[(i64, Tensor)], divisor: f64, lr: f64, config: AdamWConfig) -> Result<(), TchError> {
        self.updates += 1;
        let of = |t: &Tensor| t.as_ptr().cast_mut().cast::<c_void>();
        let (begins, list): (Vec<i64>, Vec<*mut c_void>) = grads.iter().map(|(begin, grad)| (*begin, of(grad))).unzip();
        // SAFETY: all tensors outlive the call, which keeps none; both lists have `len` entries.
        let text = tch::no_grad(|| unsafe {
            ffi::tx_adamw(
                of(flat),
                of(&self.m),
                of(&self.v),
                begins.as_ptr(),
                list.as_ptr(),
                list.len(),
                Self::ALIGNMENT,
                self.updates as f64,
                divisor,
                lr,
                config.beta1,
                config.beta2,
                config.weight_decay,
                EPS,
            )
        });
        ffi::check(text).map_err(TchError::Torch)
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    const CONFIG: AdamWConfig = AdamWConfig { beta1: 0.9, beta2: 0.99, weight_decay: 0.01 };

    // Expected values: torch.optim.AdamW(lr=0.1, betas=(0.9, 0.99), weight_decay=0.01) on p = [1, -2, 3] with loss (p^3).sum(), three steps.
    #[test]
    fn three_steps_equal_pytorch() {
        let flat = Tensor::from_slice(&[1f32, -2.0, 3.0]);
        let mut adam = AdamW::new(&flat);
        for divisor in [1.0, 2.0, 0.25] {
            let grad = &flat * &flat * 3.0 * divisor;
            // In pieces, the last one first.
            adam.step(&flat, &[(1, grad.narrow(0, 1, 2)), (0, grad.narrow(0, 0, 1))], divisor, 0.1, CONFIG).unwrap();
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
                adam.step(&flat, &pieces, 3.0, 0.1, CONFIG).unwrap();
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
        let error = adam.step(&flat, &[(3, grad)], 1.0, 0.1, CONFIG).unwrap_err().to_string();
        assert!(error.contains("exceeds dimension size (4)"), "{error}");
    }
}
