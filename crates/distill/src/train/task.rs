//! What can be trained: parameters and the number of a micro-batch in, a loss out.

use tch::Tensor;
use unet::weights::Tensors;

use crate::error::Result;

/// What one micro-batch gives: the loss to differentiate, and the terms it is made of, already weighted.
#[derive(Debug)]
pub struct StepLoss {
    /// Scalar, f32. Detached where the task has run the backward pass itself.
    pub total: Tensor,
    /// Name and weighted value (scalar tensors) of each term; they add up to `total`. The same names in every step.
    pub terms: Vec<(String, Tensor)>,
}

/// Averages numbers over the ranks, in place.
pub type Average<'a> = dyn FnMut(&mut [f64]) -> Result<()> + 'a;

/// Something that can be trained.
pub trait Task {
    /// The loss of micro-batch number `micro` with the parameters `params` (differentiable leaves in the type to compute in). Must depend on nothing
    /// else that changes. Without accumulation, on one rank, `micro` is the step.
    ///
    /// # Errors
    /// Whatever the networks and the data report.
    fn loss(&mut self, params: &Tensors, micro: u64) -> Result<StepLoss>;

    /// Called once after the micro-batches of a step. What the task carries from step to step must be the same on all ranks:
    /// `average` turns each rank's mean over its micro-batches into the mean over all.
    ///
    /// # Errors
    /// Whatever `average` reports.
    fn end_step(&mut self, average: &mut Average) -> Result<()> {
        let _ = average;
        Ok(())
    }

    /// What the task itself carries from step to step (running norms); saved with every checkpoint.
    fn state(&self) -> Tensors {
        Tensors::new()
    }

    /// Takes up a saved state.
    fn restore(&mut self, state: &Tensors) {
        let _ = state;
    }
}
