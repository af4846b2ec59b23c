//! Feature losses: what one costs, and the one list of those there are. A caller adds its own with [`FeatureLosses::with`]; settings,
//! command line, records and reports then know it by its name.

use std::fmt::Debug;
use std::rc::Rc;

use tch::Tensor;
use unet::weights::Tensors;

use super::normalized::{Masked, Normalized};
use super::plain::{Direction, Plain};
use super::settings::LossConfig;
use crate::error::{Error, Result};
use crate::train::Average;

/// What a difference of features costs.
pub trait FeatureLoss {
    /// The unweighted term of the tap called `tap`: a scalar, f32, that reaches the student's feature with its gradient.
    ///
    /// # Shapes
    /// `teacher` and `student` alike: `[B, C, H, W]` or `[B, T, C]`
    ///
    /// # Errors
    /// Whatever libtorch reports.
    fn term(&mut self, tap: &str, teacher: &Tensor, student: &Tensor) -> Result<Tensor>;

    /// Ends an optimizer step. What is carried from step to step must be the same on all ranks: `average` turns each rank's values
    /// into their mean over all.
    ///
    /// # Errors
    /// Whatever `average` reports.
    fn end_step(&mut self, average: &mut Average) -> Result<()> {
        let _ = average;
        Ok(())
    }

    /// What is carried from step to step, saved with every checkpoint.
    fn state(&self) -> Tensors {
        Tensors::new()
    }

    /// Takes up a saved state.
    fn restore(&mut self, state: &Tensors) {
        let _ = state;
    }
}

type Make = Rc<dyn Fn(&LossConfig) -> Option<Box<dyn FeatureLoss>>>;

/// One form of the feature loss: its name and how it is made.
#[derive(Clone)]
pub struct FeatureLossEntry {
    /// The name in settings, records and results, such as `normalized`.
    pub name: &'static str,
    /// In words, for the labels of reports, such as `normalized features`.
    pub words: &'static str,
    /// What it is, in one sentence, for help texts.
    pub about: &'static str,
    make: Make,
}

impl FeatureLossEntry {
    /// An entry; `make` gives `None` where there is no feature term at all.
    pub fn new(
        name: &'static str,
        words: &'static str,
        about: &'static str,
        make: impl Fn(&LossConfig) -> Option<Box<dyn FeatureLoss>> + 'static,
    ) -> Self {
        Self { name, words, about, make: Rc::new(make) }
    }
}

impl Debug for FeatureLossEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// The forms of the feature loss that a run may name.
#[derive(Debug, Clone)]
pub struct FeatureLosses(Vec<FeatureLossEntry>);

impl FeatureLosses {
    /// Those of this crate.
    pub fn builtin() -> Self {
        Self(vec![
            FeatureLossEntry::new("none", "no features", "No feature term", |_| None),
            FeatureLossEntry::new("plain", "plain features", "Squared errors (BK-SDM, arXiv 2305.15798)", |_| Some(Box::new(Plain))),
            FeatureLossEntry::new(
                "normalized",
                "normalized features",
                "Each term by the size of the teacher's feature (LAPTOP-Diff, arXiv 2404.11098)",
                |config| Some(Box::new(Normalized::new(config))),
            ),
            FeatureLossEntry::new(
                "direction",
                "directions of features",
                "Directions of the channels at each position alone (after PPCL, arXiv 2511.16156)",
                |_| Some(Box::new(Direction)),
            ),
            FeatureLossEntry::new(
                "masked",
                "masked features",
                "Normalized, without the elements that are large in the teacher (after TinyFusion, arXiv 2412.01199)",
                |config| Some(Box::new(Masked::new(config))),
            ),
        ])
    }

    /// These and one more, in place of one with the same name.
    pub fn with(mut self, entry: FeatureLossEntry) -> Self {
        self.0.retain(|other| other.name != entry.name);
        self.0.push(entry);
        self
    }

    /// All entries, in their order.
    pub fn entries(&self) -> &[FeatureLossEntry] {
        &self.0
    }

    /// The entry of this name.
    ///
    /// # Errors
    /// [`Error::Config`] for a name that is not there, with those that are.
    pub fn entry(&self, name: &str) -> Result<&FeatureLossEntry> {
        self.0.iter().find(|entry| entry.name == name).ok_or_else(|| {
            let names: Vec<&str> = self.0.iter().map(|entry| entry.name).collect();
            let expected = format!("one of {}", names.join(", "));
            Error::Config { key: "losses.feature_loss".into(), expected, got: format!("`{name}`") }
        })
    }

    /// The loss that `config` names; none where it asks for no feature term.
    ///
    /// # Errors
    /// As [`FeatureLosses::entry`].
    pub fn make(&self, config: &LossConfig) -> Result<Option<Box<dyn FeatureLoss>>> {
        Ok((self.entry(&config.feature_loss)?.make)(config))
    }
}

/// One unweighted scalar per tap of the teacher, in the order of the taps' names.
///
/// # Errors
/// [`Error::Tap`] when a tap of the teacher is missing in the student.
pub(crate) fn feature_terms(loss: &mut dyn FeatureLoss, teacher: &Tensors, student: &Tensors) -> Result<Vec<(String, Tensor)>> {
    let mut out = Vec::with_capacity(teacher.len());
    for (tap, f_t) in teacher {
        let f_s = student.get(tap).ok_or_else(|| Error::Tap { tap: tap.clone(), network: "student".into() })?;
        out.push((tap.clone(), loss.term(tap, f_t, f_s)?));
    }
    Ok(out)
}
