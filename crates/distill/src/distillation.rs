//! Retraining of a pruned U-Net under its teacher: pruned model -> distillation.
//!
//! The student is any U-Net whose taps are among the teacher's; nothing here knows how its layers were chosen.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};
use unet::weights::{Tensors, Weights};
use unet::{ForwardOptions, RemovalSet, TapSet, UNet, UNetConfig};

use crate::error::Result;
use crate::latents::{LatentData, Noised};
use crate::losses::{FeatureLoss, FeatureTerms, LossConfig, mse};
use crate::trainer::{StepLoss, Task};

/// `L = task * L_task + out * L_outKD + feat * L_featKD` on cached latents.
pub struct DistillTask<'a> {
    teacher: &'a UNet,
    student: &'a UNetConfig,
    removed: &'a RemovalSet,
    taps: TapSet,
    features: FeatureTerms,
    losses: LossConfig,
    data: LatentData<'a>,
}

impl<'a> DistillTask<'a> {
    /// A student of `teacher` with the architecture `student` less `removed`, compared at `taps`.
    ///
    /// # Errors
    /// [`crate::Error::Config`] when the loss settings are out of range.
    pub fn new(
        teacher: &'a UNet,
        student: &'a UNetConfig,
        removed: &'a RemovalSet,
        taps: TapSet,
        losses: LossConfig,
        data: LatentData<'a>,
    ) -> Result<Self> {
        losses.check()?;
        let taps = if losses.features == FeatureLoss::None { TapSet::none() } else { taps };
        Ok(Self { teacher, student, removed, taps, features: FeatureTerms::new(&losses), losses, data })
    }

    fn forward(&self, unet: &UNet, x_t: &Tensor, t: &Tensor, cond: &unet::Cond) -> Result<(Tensor, Tensors)> {
        let options = ForwardOptions { ablated: &RemovalSet::empty(), taps: &self.taps };
        let out = unet.forward_with(x_t, t, cond, &options)?;
        Ok((out.sample, out.taps))
    }
}

impl Task for DistillTask<'_> {
    fn loss(&mut self, params: &Tensors, step: u64) -> Result<StepLoss> {
        let Noised { x_t, timesteps, cond, target } = self.data.noised(step)?;
        let (eps_t, f_t) = tch::no_grad(|| self.forward(self.teacher, &x_t, &timesteps, &cond))?;
        let student =
            UNet::from_weights(self.student, Weights::from_tensors(crate::from_scratch::cast(params, self.data.compute)), self.removed)?;
        let (eps_s, f_s) = self.forward(&student, &x_t, &timesteps, &cond)?;

        let mut terms = vec![("task".to_string(), mse(&eps_s, &target) * self.losses.task)];
        terms.push(("out".to_string(), mse(&eps_s, &eps_t) * self.losses.out));
        for (tap, term) in self.features.terms(&f_t, &f_s)? {
            terms.push((format!("feat.{tap}"), term * self.losses.feat));
        }
        let total = terms.iter().fold(Tensor::zeros([], (Kind::Float, self.data.device)), |sum, (_, term)| sum + term);
        Ok(StepLoss { total, terms: terms.into_iter().map(|(n, t)| (n, t.detach())).collect() })
    }

    fn state(&self) -> Tensors {
        self.features.state()
    }

    fn restore(&mut self, state: &Tensors) {
        self.features.restore(state);
    }
}

/// The share of each term in the sum of all, for the log and the report.
pub fn shares(terms: &BTreeMap<String, f64>) -> BTreeMap<String, f64> {
    let sum: f64 = terms.values().sum();
    terms.iter().map(|(name, v)| (name.clone(), if sum > 0.0 { v / sum } else { 0.0 })).collect()
}
