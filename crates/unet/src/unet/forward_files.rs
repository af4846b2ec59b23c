//! One forward pass from file to file, so that anyone can compare with another implementation.

use std::collections::BTreeMap;
use std::path::Path;

use tch::{Device, Kind, Tensor};

use super::{AddedConditioning, Conditioning, UNet};
use crate::error::{Error, Result};
use crate::weights::{TensorFile, Tensors, save_tensors};

impl UNet {
    /// Runs the pass on the tensors of the safetensors file `inputs` and writes `sample`, in f32, to `out`. The inputs are `sample`, `timestep`
    /// (one number or one per sample), `encoder_hidden_states` and, for SDXL, `text_embeds` and `time_ids`; `timestep_cond` for models that
    /// take an embedded guidance scale. Answers the output's shape.
    ///
    /// # Shapes
    /// As [`UNet::forward`].
    ///
    /// # Errors
    /// [`Error::Format`] that names a missing tensor; as [`UNet::forward`]; [`Error::NotFinite`] for a NaN or an infinity in the output.
    pub fn forward_files(&self, inputs: &Path, out: &Path, metadata: &BTreeMap<String, String>) -> Result<Vec<i64>> {
        let file = TensorFile::open(inputs)?;
        let get = |name: &str| file.tensor(name);
        let need = |name: &str, shape: &str| -> Result<Tensor> {
            let names: Vec<&str> = file.shapes().map(|(n, _)| n).collect();
            get(name)?.ok_or_else(|| Error::Format {
                path: inputs.into(),
                problem: format!("no tensor `{name}`; the file has {}", names.join(", ")),
                hint: format!("add `{name}` {shape}"),
            })
        };
        let sample = need("sample", "(B,C,H,W)")?;
        let timestep = need("timestep", "(B)")?;
        let encoder_hidden_states = need("encoder_hidden_states", "(B,T,D)")?;
        let added = match (get("text_embeds")?, get("time_ids")?) {
            (None, None) => None,
            _ => Some(AddedConditioning { text_embeds: need("text_embeds", "(B,P)")?, time_ids: need("time_ids", "(B,6)")? }),
        };
        // A scalar, or one number for all, stands for every sample.
        let batch = sample.size().first().copied().unwrap_or(1);
        let timestep = if timestep.numel() == 1 { timestep.reshape([1]).expand([batch], false) } else { timestep };
        let cond = Conditioning { encoder_hidden_states, added, guidance: get("timestep_cond")? }.to_device(self.device);
        let sample = tch::no_grad(|| self.forward(&sample.to_device(self.device), &timestep.to_device(self.device), &cond))?;
        let sample = sample.to_device(Device::Cpu).to_kind(Kind::Float);
        if !bool::try_from(sample.isfinite().all())? {
            return Err(Error::NotFinite { what: "the output sample".into(), hint: "check the inputs and the weights".into() });
        }
        let shape = sample.size();
        save_tensors(out, &Tensors::from([("sample".to_string(), sample)]), metadata, None)?;
        Ok(shape)
    }
}
