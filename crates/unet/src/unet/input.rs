//! The inputs of a forward pass, and the checks that let everything after them rely on shapes.

use super::*;

/// What the prediction is conditioned on.
#[derive(Debug)]
pub struct Conditioning {
    /// Text features, `[B, S, D]`.
    pub encoder_hidden_states: Tensor,
    /// Pooled text and sizes, for models of SDXL's kind.
    pub added: Option<AddedConditioning>,
    /// The embedded guidance scale, `[B, G]`, for models that were distilled to take it (`time_cond_proj_dim`; arXiv 2310.04378).
    /// Without it such a model does as diffusers' does: nothing is added to its time embedding.
    pub guidance: Option<Tensor>,
}

/// The additional conditioning of SDXL.
#[derive(Debug)]
pub struct AddedConditioning {
    /// Pooled text features, `[B, P]`.
    pub text_embeds: Tensor,
    /// Original size, crop corner, target size, `[B, K]`; `K` is 6 for SDXL.
    pub time_ids: Tensor,
}

impl Conditioning {
    /// Text alone.
    pub fn text(encoder_hidden_states: Tensor) -> Self {
        Self { encoder_hidden_states, added: None, guidance: None }
    }

    fn map(&self, f: impl Fn(&Tensor) -> Tensor) -> Self {
        Self {
            encoder_hidden_states: f(&self.encoder_hidden_states),
            added: self.added.as_ref().map(|a| AddedConditioning { text_embeds: f(&a.text_embeds), time_ids: f(&a.time_ids) }),
            guidance: self.guidance.as_ref().map(f),
        }
    }

    /// Number of samples.
    pub fn batch(&self) -> i64 {
        self.encoder_hidden_states.size().first().copied().unwrap_or(0)
    }

    /// The same storage.
    pub fn shallow_clone(&self) -> Self {
        self.map(Tensor::shallow_clone)
    }

    /// On another device.
    pub fn to_device(&self, device: Device) -> Self {
        self.map(|t| t.to_device(device))
    }

    /// Text features in another type. The sizes stay as they are: bf16 cannot hold every number of pixels.
    pub fn to_kind(&self, kind: Kind) -> Self {
        Self {
            encoder_hidden_states: self.encoder_hidden_states.to_kind(kind),
            added: self
                .added
                .as_ref()
                .map(|a| AddedConditioning { text_embeds: a.text_embeds.to_kind(kind), time_ids: a.time_ids.shallow_clone() }),
            guidance: self.guidance.as_ref().map(|t| t.to_kind(kind)),
        }
    }

    /// `len` samples from `start` on.
    ///
    /// # Panics
    /// Where there are fewer samples, as [`Tensor::narrow`].
    pub fn narrow(&self, start: i64, len: i64) -> Self {
        self.map(|t| t.narrow(0, start, len))
    }

    /// The samples of these positions, `[N]` i64.
    ///
    /// # Panics
    /// Where a position is out of range, as [`Tensor::index_select`].
    pub fn index_select(&self, index: &Tensor) -> Self {
        self.map(|t| t.index_select(0, index))
    }

    /// One batch out of several; additional conditioning and guidance must be in all or in none.
    ///
    /// # Errors
    /// [`Error::Input`] when they are not, or nothing is given; [`Error::Torch`] when the shapes differ.
    pub fn cat(all: &[&Conditioning]) -> Result<Self> {
        let added: Vec<&AddedConditioning> = all.iter().filter_map(|c| c.added.as_ref()).collect();
        let guidance: Vec<&Tensor> = all.iter().filter_map(|c| c.guidance.as_ref()).collect();
        for (name, with) in [("added", added.len()), ("guidance", guidance.len())] {
            if all.is_empty() || !(with == 0 || with == all.len()) {
                return Err(Error::Input {
                    name: name.into(),
                    expected: "conditioning of this kind in all parts or in none".into(),
                    got: format!("{with} of {} parts with it", all.len()),
                });
            }
        }
        let join = |parts: Vec<&Tensor>| Tensor::f_cat(&parts, 0);
        Ok(Self {
            encoder_hidden_states: join(all.iter().map(|c| &c.encoder_hidden_states).collect())?,
            added: match added.is_empty() {
                true => None,
                false => Some(AddedConditioning {
                    text_embeds: join(added.iter().map(|a| &a.text_embeds).collect())?,
                    time_ids: join(added.iter().map(|a| &a.time_ids).collect())?,
                }),
            },
            guidance: if guidance.is_empty() { None } else { Some(join(guidance)?) },
        })
    }
}

fn refuse<T>(name: &str, expected: String, got: impl std::fmt::Debug) -> Result<T> {
    Err(Error::Input { name: name.into(), expected, got: format!("{got:?}") })
}

impl UNet {
    pub(super) fn check(&self, sample: &Tensor, timestep: &Tensor, cond: &Conditioning) -> Result<()> {
        let size = sample.size();
        let batch = match size.as_slice() {
            [b, c, h, w] if *c == self.config.in_channels && *b > 0 && *h > 0 && *w > 0 => *b,
            _ => return refuse("sample", format!("[batch, {}, height, width]", self.config.in_channels), size),
        };
        if timestep.size() != [batch] {
            return refuse("timestep", format!("[{batch}], one per sample"), timestep.size());
        }
        let (text, width) = (&cond.encoder_hidden_states, self.config.text_width);
        match text.size().as_slice() {
            [b, tokens, d] if *b == batch && *tokens > 0 && *d == width => {}
            other => return refuse("encoder_hidden_states", format!("[{batch}, tokens, {width}]"), other),
        }
        let mut all = vec![("sample", sample), ("encoder_hidden_states", text)];
        match (&self.config.added, &cond.added) {
            (None, None) => {}
            (None, Some(a)) => return refuse("text_embeds", "nothing, this model takes no pooled text".into(), a.text_embeds.size()),
            (Some(_), None) => return refuse("text_embeds", "pooled text and time_ids, which this model needs".into(), "nothing"),
            (Some(config), Some(a)) => {
                let (text, sizes) = (a.text_embeds.size(), a.time_ids.size());
                match (text.as_slice(), sizes.as_slice()) {
                    ([b, p], [d, k]) if *b == batch && *d == batch && p + k * config.channels == config.input => {}
                    _ => {
                        let expected = format!("[{batch}, P] and [{batch}, K] with P + {} * K = {}", config.channels, config.input);
                        return refuse("text_embeds and time_ids", expected, (text, sizes));
                    }
                }
                all.extend([("text_embeds", &a.text_embeds), ("time_ids", &a.time_ids)]);
            }
        }
        if let Some(given) = &cond.guidance {
            let got = given.size();
            match self.config.time.guidance {
                Some(g) if got == [batch, g] => all.push(("guidance", given)),
                Some(g) => return refuse("guidance", format!("[{batch}, {g}], the embedded guidance scale"), got),
                None => return refuse("guidance", "nothing, this model takes no guidance scale (time_cond_proj_dim)".into(), got),
            }
        }
        for (name, t) in &all {
            if !t.is_floating_point() && *name != "time_ids" {
                return refuse(name, "a floating-point tensor".into(), t.kind());
            }
        }
        for (name, t) in all.into_iter().chain([("timestep", timestep)]) {
            if t.device() != self.device {
                return refuse(name, format!("a tensor on {:?}", self.device), t.device());
            }
        }
        Ok(())
    }
}
