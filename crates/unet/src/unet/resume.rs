//! A forward pass that goes on from the start of a stage: when layers are scored one by one, all that comes before the
//! removed layer is the original's and need not be computed again.

use super::*;

/// A forward pass halted before the stage `stage`.
#[derive(Debug)]
pub(crate) struct Checkpoint<'a> {
    stage: usize,
    x: Tensor,
    time: Tensor,
    text: Tensor,
    skips: BTreeMap<&'a str, Tensor>,
}

impl<'a> Checkpoint<'a> {
    fn of(stage: usize, x: &Tensor, run: &Run<'_, 'a>) -> Self {
        let skips = run.skips.iter().map(|(name, skip)| (*name, skip.shallow_clone())).collect();
        Self { stage, x: x.shallow_clone(), time: run.time.shallow_clone(), text: run.text.shallow_clone(), skips }
    }
}

impl UNet {
    /// The prediction, and the pass halted before each stage. The skips' storage is shared among the checkpoints.
    pub(crate) fn forward_with_checkpoints(
        &self,
        sample: &Tensor,
        timestep: &Tensor,
        cond: &Cond,
    ) -> Result<(Tensor, Vec<Checkpoint<'_>>)> {
        self.check(sample, timestep, cond)?;
        let (time, text) = (self.embed(timestep, cond), cond.encoder_hidden_states.to_kind(self.kind));
        let mut x = self.conv_in.forward(&self.centre(sample));
        let skips = BTreeMap::from([("conv_in", x.shallow_clone())]);
        let mut run = Run { off: &[], time: &time, text: &text, skips, wanted: &TapSet::none(), taps: Tensors::new() };
        let mut checkpoints = Vec::with_capacity(self.stages.len());
        for (i, stage) in self.stages.iter().enumerate() {
            checkpoints.push(Checkpoint::of(i, &x, &run));
            x = stage.forward(x, &mut run);
        }
        Ok((self.predict(&x), checkpoints))
    }

    /// The prediction from a checkpoint on, with the flagged branches left out; they must lie in its stage or later.
    pub(crate) fn forward_from<'a>(&'a self, from: &Checkpoint<'a>, off: &[bool]) -> Tensor {
        let skips = from.skips.iter().map(|(name, skip)| (*name, skip.shallow_clone())).collect();
        let mut run = Run { off, time: &from.time, text: &from.text, skips, wanted: &TapSet::none(), taps: Tensors::new() };
        let stages = &self.stages[from.stage..];
        self.predict(&stages.iter().fold(from.x.shallow_clone(), |x, stage| stage.forward(x, &mut run)))
    }

    /// Position of the first stage that the flags touch; the number of stages when they touch none.
    pub(crate) fn first_stage(&self, off: &[bool]) -> usize {
        let first = self.layout.branches().iter().zip(off).find(|(_, off)| **off);
        let position = |stage: &str| self.config.stages.iter().position(|s| s.name == stage);
        first.and_then(|(branch, _)| position(&branch.stage)).unwrap_or(self.stages.len())
    }

    /// Bytes that the checkpoints of one pass keep alive: every stage's input and every skip.
    pub(crate) fn checkpoint_bytes(checkpoints: &[Checkpoint]) -> u64 {
        let bytes = |t: &Tensor| (t.numel() * t.kind().elt_size_in_bytes()) as u64;
        let skips: BTreeMap<&str, u64> = checkpoints.iter().flat_map(|c| &c.skips).map(|(name, t)| (*name, bytes(t))).collect();
        skips.values().sum::<u64>() + checkpoints.iter().map(|c| bytes(&c.x)).sum::<u64>()
    }
}
