//! Activation checkpointing (arXiv 1604.06174): the forward pass keeps only what stands between blocks; the backward pass runs each
//! block again, from the last to the first. Time for memory, and the same gradients to the bit.
//!
//! Bits depend on the order in which the contributions to one gradient are added. Autograd adds those of later operations
//! first, so each block is run again together with all that its input was used for elsewhere: as a skip, as a tap, and by the
//! exit of its Transformer2D.

use super::*;

/// A forward pass whose inner activations were not kept.
#[derive(Debug)]
pub struct Checkpointed<'n> {
    unet: &'n UNet,
    steps: Vec<Step<'n>>,
    sample: Tensor,
    timestep: Tensor,
    cond: Conditioning,
    forward: Forward,
}

/// A place on the way, and what its tensors are used for elsewhere. Places that hand their input on are left out.
#[derive(Debug)]
struct Step<'n> {
    place: SegmentRef,
    before: Pass<'n>,
    /// Skips and taps that are the input itself.
    input: Uses<'n>,
    /// Skips and taps that arise inside: what stands before a change of size, or before the prediction.
    inside: Uses<'n>,
}

/// Names of skips, the newest first, and of taps.
#[derive(Debug, Default)]
struct Uses<'n> {
    skips: Vec<&'n str>,
    taps: Vec<String>,
}

impl UNet {
    /// [`UNet::forward_with`] for training with little memory. The outputs are leaves that take gradients: make the loss of
    /// them, run its backward pass, then [`Checkpointed::backward`].
    ///
    /// # Shapes
    /// As [`UNet::forward`].
    ///
    /// # Errors
    /// As [`UNet::forward`].
    pub fn forward_checkpointed(&self, sample: &Tensor, timestep: &Tensor, cond: &Conditioning, taps: &TapSet) -> Result<Checkpointed<'_>> {
        let leaf = |t: &Tensor| t.detach().set_requires_grad(true);
        let _no_grad = tch::no_grad_guard();
        let mut before = self.begin(sample, timestep, cond)?;
        let (mut steps, mut leaves) = (Vec::new(), Tensors::new());
        let mut input = Uses { skips: before.skips.keys().copied().collect(), taps: Vec::new() };
        for place in self.places(|_| false) {
            let (after, found) = self.advance_with(&before, &place, &[], taps);
            leaves.extend(found.iter().map(|(name, t)| (name.clone(), leaf(t))));
            let same = |a: &Tensor, b: &Tensor| a.data_ptr() == b.data_ptr();
            let hands_on = after.inner.is_none() && before.inner.is_none() && same(&after.x, &before.x);
            let (mut output, mut inside) = (Uses::default(), Uses::default());
            for (name, skip) in after.skips.iter().filter(|(name, _)| !before.skips.contains_key(*name)) {
                let uses = if same(skip, &after.x) { &mut output } else { &mut inside };
                uses.skips.push(*name);
            }
            for (name, tap) in found {
                let uses = if same(&tap, &after.x) { &mut output } else { &mut inside };
                uses.taps.push(name);
            }
            if hands_on {
                output.skips.append(&mut input.skips);
                output.taps.append(&mut input.taps);
                (input, before) = (output, after);
                continue;
            }
            // The input of a Transformer2D waits while its blocks run.
            let next = if after.inner.is_some() { Uses::default() } else { output };
            let before = std::mem::replace(&mut before, after);
            steps.push(Step { place, before, input: std::mem::replace(&mut input, next), inside });
        }
        let forward = Forward { sample: leaf(before.output()), taps: leaves };
        let (sample, timestep, cond) = (sample.shallow_clone(), timestep.shallow_clone(), cond.shallow_clone());
        Ok(Checkpointed { unet: self, steps, sample, timestep, cond, forward })
    }
}

impl Checkpointed<'_> {
    /// The prediction and the taps, as leaves.
    pub fn forward(&self) -> &Forward {
        &self.forward
    }

    /// Hands the gradients of [`Checkpointed::forward`]'s tensors on to the parameters. Sample and conditioning get none.
    ///
    /// # Errors
    /// [`Error::Torch`] when memory runs out.
    pub fn backward(self) -> Result<()> {
        let leaf = |t: &Tensor| t.detach().set_requires_grad(true);
        let grad = |t: &Tensor| Some(t.grad()).filter(Tensor::defined);
        let Self { unet, mut steps, sample, timestep, cond, forward: Forward { sample: end, taps: mut tapped } } = self;
        // A network has places, and none but ResNets without a main path hand everything on.
        let time = steps.first().map(|step| leaf(&step.before.time));
        let mut of_x = grad(&end);
        let mut of_tokens: Option<Tensor> = None;
        let mut of_skips: BTreeMap<&str, Tensor> = BTreeMap::new();
        // Whatever a step kept is freed with it.
        while let Some(Step { place, before, input, inside }) = steps.pop() {
            let (x, tokens) = (leaf(&before.x), before.inner.as_ref().map(|inner| leaf(&inner.tokens)));
            // A node of its own, at which all contributions meet.
            let node = x.view_as(&x);
            let skips: BTreeMap<&str, Tensor> = before.skips.iter().map(|(name, skip)| (*name, leaf(skip))).collect();
            let pass = Pass {
                x: node.shallow_clone(),
                inner: before.inner.as_ref().zip(tokens.as_ref()).map(|(inner, tokens)| inner.with_tokens(tokens)),
                // The ResNets add to the gradient of one embedding, last first, as they would in one graph.
                time: time.as_ref().unwrap_or(&before.time).shallow_clone(),
                text: before.text.shallow_clone(),
                // A skip that is the input may be taken by this very place.
                skips: skips
                    .iter()
                    .map(|(name, skip)| (*name, if input.skips.contains(name) { &node } else { skip }.shallow_clone()))
                    .collect(),
            };
            let wanted = TapSet(inside.taps.iter().cloned().collect());
            let (after, found) = unet.advance_with(&pass, &place, &[], &wanted);
            // In the order in which the uses come in the whole pass: what follows, skips from the newest to the oldest, the loss.
            let mut uses: Vec<(&Tensor, Tensor)> = Vec::new();
            uses.extend(of_tokens.take().and_then(|g| Some((&after.inner.as_ref()?.tokens, g))));
            uses.extend(of_x.take().map(|g| (&after.x, g)));
            uses.extend(inside.skips.iter().filter_map(|name| Some((&after.skips[name], of_skips.remove(name)?))));
            uses.extend(input.skips.iter().filter_map(|name| Some((&node, of_skips.remove(name)?))));
            let taps = inside.taps.iter().map(|name| (name, &found[name])).chain(input.taps.iter().map(|name| (name, &node)));
            let taps: BTreeMap<&String, &Tensor> = taps.collect();
            uses.extend(taps.into_iter().filter_map(|(name, t)| Some((t, grad(&tapped.remove(name)?)?))));
            backward(&uses)?;
            of_x = grad(&x);
            of_tokens = tokens.as_ref().and_then(grad);
            of_skips.extend(skips.iter().filter_map(|(name, skip)| Some((*name, grad(skip)?))));
        }
        // The embedding and the first convolution.
        let first = unet.begin(&sample, &timestep, &cond)?;
        let of_time = time.as_ref().and_then(grad);
        backward(&[(&first.time, of_time), (&first.x, of_x)].into_iter().filter_map(|(t, g)| Some((t, g?))).collect::<Vec<_>>())
    }
}

/// The backward pass from tensors with these gradients.
fn backward(ends: &[(&Tensor, Tensor)]) -> Result<()> {
    // The gradient of sum(t * g) by t is g.
    let total = ends.iter().map(|(t, g)| (*t * g).sum(t.kind())).reduce(|a, b| a + b);
    match total.filter(Tensor::requires_grad) {
        Some(total) => Ok(total.f_backward()?),
        None => Ok(()),
    }
}
