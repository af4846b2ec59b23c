//! What a distillation run is going to do, printed before its first step: the settings in full, and what follows from them.

use diffusion::Pipeline;
use unet::{Granularity, TableOptions, UNet, activation_costs};

use crate::commands::distill::Config;

/// Sizes that follow from the settings.
pub struct Derived<'a> {
    /// The settings, with what the command line changed.
    pub config: &'a Config,
    /// The teacher and what surrounds it.
    pub pipeline: &'a Pipeline,
    /// What is trained.
    pub student: &'a UNet,
    /// Numbers that the optimizer changes.
    pub trained: u64,
    /// Pictures in an epoch.
    pub pictures: u64,
    /// Processes.
    pub ranks: u64,
}

impl Derived<'_> {
    /// The settings as TOML, and one line for each derived size.
    pub fn text(&self) -> anyhow::Result<String> {
        let t = &self.config.trainer;
        let global = t.batch * t.accumulate * self.ranks;
        let per_epoch = self.pictures as f64 / global as f64;
        let mut lines = vec![toml::to_string(self.config)?.trim_end().to_string(), String::new()];
        let mut line = |name: &str, value: String| lines.push(format!("# {name:18} {value}"));
        line("student", format!("{} of {} parameters", group(self.student.num_parameters()), group(self.pipeline.unet().num_parameters())));
        line("trained", format!("{} numbers", group(self.trained)));
        line("global batch", format!("{global} = {} a pass x {} passes x {} ranks", t.batch, t.accumulate, self.ranks));
        line("steps per epoch", format!("{per_epoch:.1} over {} pictures", group(self.pictures)));
        line("epochs", format!("{:.2}", t.steps as f64 / per_epoch));
        let memory = self.memory()?;
        let total: f64 = memory.iter().map(|(_, bytes)| bytes).sum();
        line("memory per rank", format!("about {}", bytes(total)));
        for (what, size) in memory {
            line("", format!("{:>9} {what}", bytes(size)));
        }
        Ok(lines.join("\n"))
    }

    /// What takes memory on one rank, in bytes.
    fn memory(&self) -> anyhow::Result<Vec<(&'static str, f64)>> {
        let t = &self.config.trainer;
        let size = t.compute.kind().elt_size_in_bytes() as f64;
        let (trained, whole) = (self.trained as f64, self.student.num_parameters() as f64);
        let cut = if t.shard_optimizer { self.ranks as f64 } else { 1.0 };
        let averages = if t.ema_decay > 0.0 { 1.0 } else { 0.0 };
        let tensors = |t: &unet::weights::Tensors| t.values().map(|p| (p.numel() * p.kind().elt_size_in_bytes()) as f64).sum::<f64>();
        let text: f64 = self.pipeline.text().parts().iter().map(|(encoder, _)| tensors(encoder.parameters())).sum();
        let around = tensors(self.pipeline.vae().parameters()) + text;
        let mut out = vec![
            ("student's master weights, f32", 4.0 * trained),
            ("optimizer and moving average, f32", (8.0 + 4.0 * averages) * trained / cut),
            ("teacher", tensors(self.pipeline.unet().parameters())),
            ("autoencoder and text encoders", around),
        ];
        if size < 4.0 || trained < whole {
            out.push(("student's weights to compute with", whole * size));
        }
        let config = self.student.config();
        let (h, w) = config.sample_size.unwrap_or((64, 64));
        let options = TableOptions {
            latent_h: h,
            latent_w: w,
            tokens: 77,
            granularity: Granularity::Branch,
            removed: self.student.removed().clone(),
            model: "student".into(),
            fingerprint: config.hash(),
        };
        let costs = activation_costs(config, &options)?;
        let backward = costs.with_gradients(self.config.activation_checkpointing, t.batch as f64 * size, 4.0 * trained / whole);
        out.push(("student's activations and gradients, f32, at most", backward));
        Ok(out)
    }
}

/// `1234567` as `1,234,567`.
fn group(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

fn bytes(n: f64) -> String {
    if n >= 1e9 { format!("{:.2} GB", n / 1e9) } else { format!("{:.1} MB", n / 1e6) }
}
