//! Layer-wise warm-up, before distillation of the whole network: the parts around each removed layer learn to make of the
//! teacher's own inputs what the teacher makes of them. No neighborhood sees the errors of another, so all learn at once.

use tch::{Kind, Tensor};
use unet::weights::{Tensors, Weights};
use unet::{Neighborhood, UNet};

use crate::error::{Error, Result};
use crate::from_scratch::cast;
use crate::loss::{SMALLEST_ALPHA, mse_per_sample};
use crate::noise::{LatentData, Noised};
use crate::train::{StepLoss, Task};

/// The sum over neighborhoods of `E(||out_T - out_S||^2 / mean(out_T^2))`, per sample, over all that leaves the neighborhood.
pub struct LayerwiseTask<'a> {
    teacher: &'a UNet,
    student: &'a UNet,
    neighborhoods: Vec<Neighborhood>,
    data: LatentData<'a>,
}

impl<'a> LayerwiseTask<'a> {
    /// Layer-wise warm-up of `student`, whose parameters are those to start from.
    ///
    /// # Errors
    /// [`Error::Config`] when it lacks nothing.
    pub fn new(teacher: &'a UNet, student: &'a UNet, data: LatentData<'a>) -> Result<Self> {
        let mut neighborhoods = student.neighborhoods();
        // Where the neighbours lack everything too, there is nothing to train.
        neighborhoods.retain(|neighborhood| student.parameters().keys().any(|key| within(key, neighborhood)));
        if neighborhoods.is_empty() {
            let (key, got) = ("layerwise".into(), "one that lacks nothing".into());
            return Err(Error::Config { key, expected: "a pruned student".into(), got });
        }
        Ok(Self { teacher, student, neighborhoods, data })
    }

    /// The parameters to train: those of every part in a neighborhood.
    pub fn initial(&self) -> Tensors {
        let all = self.student.parameters().iter();
        all.filter(|(key, _)| self.neighborhoods.iter().any(|neighborhood| within(key, neighborhood)))
            .map(|(key, t)| (key.clone(), t.shallow_clone()))
            .collect()
    }

    /// All parameters of the student, with the trained ones among them.
    pub fn complete(&self, trained: &Tensors) -> Tensors {
        let all = self.student.parameters().iter();
        all.map(|(key, t)| (key.clone(), trained.get(key).unwrap_or(t).shallow_clone())).collect()
    }
}

/// Whether a parameter belongs to a part of the neighborhood.
fn within(key: &str, neighborhood: &Neighborhood) -> bool {
    neighborhood.parts.iter().any(|part| key.strip_prefix(part.as_str()).is_some_and(|rest| rest.starts_with('.')))
}

impl Task for LayerwiseTask<'_> {
    fn loss(&mut self, params: &Tensors, micro: u64) -> Result<StepLoss> {
        let Noised { x_t, timesteps, cond, .. } = self.data.noised(micro)?;
        let inputs = tch::no_grad(|| self.teacher.layerwise_inputs(&x_t, &timesteps, &cond))?;
        let weights = Weights::from_tensors(cast(&self.complete(params), self.data.compute));
        let student = UNet::from_weights(self.student.config(), weights, self.student.removed())?;
        let mut terms = Vec::with_capacity(self.neighborhoods.len());
        let mut total = Tensor::zeros([], (Kind::Float, self.data.device));
        for neighborhood in &self.neighborhoods {
            let leaving = student.layerwise(&inputs, neighborhood);
            let errors = leaving.iter().map(|(teacher, own)| {
                let square = teacher.detach().to_kind(Kind::Float).square();
                // [B, C, H, W] -> [B]
                let alpha = square.flatten(1, -1).mean_dim([1i64].as_slice(), false, Kind::Float).clamp_min(SMALLEST_ALPHA);
                (mse_per_sample(teacher, own) / alpha).mean(Kind::Float)
            });
            let Some(term) = errors.reduce(|a, b| a + b) else { continue };
            // Neighborhoods share nothing but leaves: each one's activations go before the next one's come.
            term.f_backward()?;
            let term = term.detach();
            total += &term;
            terms.push((format!("layerwise.{}", neighborhood.id), term));
        }
        Ok(StepLoss { total, terms })
    }
}
