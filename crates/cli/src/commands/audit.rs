//! `laptop-diff audit`: do single scores add up? Random removal sets, the sum of their layers' scores against the joint value
//! measured on samples that scoring did not use. Scores -> **audit** -> report.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use data::CalibrationSet;
use prune_core::{
    Ablate, Audit, AuditFile, DrawnSet, MeasureEvent, MeasureOptions, MeasuredSet, Scores, SetSize, audit, draw_removal_sets, measure_sets,
};
use unet::{Granularity, UNet};

use super::score::samples_of;
use crate::ablation::{ForwardGaps, OUTPUT_LOSS, check_stop, explain};
use crate::common::{BadInput, file_hash, prepare_file, stop_flag};
use crate::criteria::{CLIP_SCORE, ClipRun};
use crate::device::{Place, PlaceArgs};
use crate::hub::ModelArg;
use crate::model::{TableSizes, parse_granularity};
use crate::progress;

/// Arguments of `audit`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A model directory in diffusers' layout.
    #[arg(long)]
    pub(super) model: ModelArg,
    /// Calibration set that scoring did not use (written by `calibrate` with another seed).
    #[arg(long)]
    calibration: PathBuf,
    /// Score files to audit. output_loss, task_loss_delta and clip_score are held against their own joint value, all others
    /// against the joint output loss.
    #[arg(long, required = true, num_args = 1..)]
    scores: Vec<PathBuf>,
    /// The audit to write; an interrupted run goes on from a file beside it.
    #[arg(long)]
    out: PathBuf,
    /// Sizes of the random sets, as shares of the parameters.
    #[arg(long, value_delimiter = ',', default_values_t = [0.1, 0.3, 0.5])]
    ratios: Vec<f64>,
    /// Sizes of further random sets, as numbers of layers.
    #[arg(long, value_delimiter = ',')]
    layers: Vec<usize>,
    /// Random sets per size.
    #[arg(long, default_value_t = 10)]
    sets_per_size: usize,
    /// Points of the calibration set to use, from its start [default: all].
    #[arg(long)]
    samples: Option<usize>,
    /// Points per U-Net call.
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// Seed of the random sets.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// What one item is; must be that of the scores.
    #[arg(long, default_value = "branch", value_parser = parse_granularity)]
    granularity: Granularity,
    /// clip_score: the CLIP model [default: the model directory's clip/].
    #[arg(long)]
    clip: Option<PathBuf>,
    #[command(flatten)]
    place: PlaceArgs,
    /// Print the statistics as JSON.
    #[arg(long)]
    json: bool,
}

/// Measures and writes.
pub fn run(args: &Args) -> anyhow::Result<()> {
    if args.batch == 0 || args.sets_per_size == 0 {
        return Err(BadInput("--batch and --sets-per-size: expected at least 1, got 0".into()).into());
    }
    prepare_file(&args.out)?;
    let model = args.model.open()?;
    let set = CalibrationSet::open(&args.calibration)?;
    let samples = samples_of(args.samples, &set)?;
    let table = model.table(TableSizes::own(args.granularity))?;
    let mut scores: BTreeMap<String, (PathBuf, Scores)> = BTreeMap::new();
    for path in &args.scores {
        let one = Scores::read_for(path, &table)?;
        let criterion = one.criterion().to_string();
        if let Some((other, _)) = scores.insert(criterion.clone(), (path.clone(), one)) {
            return Err(BadInput(format!("--scores {} and {}: both are of {criterion}", other.display(), path.display())).into());
        }
    }
    let sizes: Vec<SetSize> =
        args.ratios.iter().map(|r| SetSize::ParamsRatio(*r)).chain(args.layers.iter().map(|n| SetSize::Layers(*n))).collect();
    let drawn = draw_removal_sets(&table, &sizes, args.sets_per_size, args.seed)?;
    let Place { device, kind } = args.place.open_to_compare()?;
    let unet = UNet::open(model.unet(), device, kind)?;

    let hash = file_hash(&args.calibration)?;
    let partial = |what: &str| Partial::beside(&args.out, what, &format!("{hash} {samples}"));
    let mut forward = ForwardGaps::new(&unet, &set, &table, ForwardGaps::possible(&set))?;
    let options = MeasureOptions { samples: 0..samples, batch: args.batch };
    let mut measured = measure(&mut forward, "audit", &drawn, &options, &partial("sets"))?;
    if let Some((path, clip)) = scores.get(CLIP_SCORE) {
        // The pictures need no held-out points; their prompts are those of this set, not of scoring's.
        let settings = ClipRun::settings_of(clip, path)?;
        let mut run = ClipRun::open(&settings, args.model.path()?, args.clip.as_deref(), &set, &unet, &table)?;
        let options = MeasureOptions { samples: 0..run.len(), batch: run.len() };
        let joint = measure(&mut run, "clip audit", &drawn, &options, &partial("clip"))?;
        for (set, clip) in measured.iter_mut().zip(joint) {
            set.gaps.extend(clip.gaps);
        }
    }
    let mut audits: Vec<Audit> = Vec::new();
    for (criterion, (_, scores)) in &scores {
        let own = measured.first().is_some_and(|set| set.gaps.contains_key(criterion));
        audits.push(audit(scores, if own { criterion } else { OUTPUT_LOSS }, &measured)?);
    }
    let file = AuditFile::new(&table, args.seed, 0..samples, audits, measured);
    file.write(&args.out)?;
    for what in ["sets", "clip"] {
        partial(what).remove();
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&file.audits.iter().map(|a| (&a.criterion, &a.overall)).collect::<BTreeMap<_, _>>())?);
    } else {
        print(&file);
        println!("written     {}", args.out.display());
    }
    Ok(())
}

/// Measured sets of an unfinished run, in a hidden file beside the result.
pub struct Partial {
    path: PathBuf,
}

impl Partial {
    /// The file for `what` of a run that `identity` tells apart from others.
    pub fn beside(out: &Path, what: &str, identity: &str) -> Self {
        let name = out.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let short: String = unet::weights::hex(&<sha2::Sha256 as sha2::Digest>::digest(identity)).chars().take(12).collect();
        Self { path: out.with_file_name(format!(".{name}.{what}.{short}.partial")) }
    }

    /// What an earlier run measured of these sets. A file that cannot be read counts as none: it is only a saving.
    fn read(&self, drawn: &[DrawnSet], criteria: &[String]) -> Vec<MeasuredSet> {
        let text = std::fs::read(&self.path).unwrap_or_default();
        let earlier: Vec<MeasuredSet> = serde_json::from_slice(&text).unwrap_or_default();
        let fits = |(drawn, earlier): (&DrawnSet, &MeasuredSet)| {
            drawn.removed == earlier.removed && drawn.stratum == earlier.stratum && criteria.iter().all(|c| earlier.gaps.contains_key(c))
        };
        let known = drawn.iter().zip(&earlier).take_while(|pair| fits(*pair)).count();
        earlier.into_iter().take(known).collect()
    }

    fn write(&self, measured: &[MeasuredSet]) -> Result<(), prune_core::Error> {
        prune_core::file::write_json(&self.path, measured)
    }

    /// Removes the file, if it is there.
    pub fn remove(&self) {
        // Left behind it would do no harm.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Measures sets with a progress bar; saved after each, so that a stopped run goes on.
///
/// # Errors
/// Those of the model, and [`crate::common::Interrupted`].
pub fn measure<M: Ablate>(
    model: &mut M,
    name: &str,
    sets: &[DrawnSet],
    options: &MeasureOptions,
    partial: &Partial,
) -> anyhow::Result<Vec<MeasuredSet>> {
    let (stop, bar) = (stop_flag()?, progress::bar(name, sets.len() as u64));
    let earlier = partial.read(sets, model.criteria());
    let measured = measure_sets(model, sets, options, earlier, &mut |event| match event {
        MeasureEvent::Batch { .. } => check_stop(&stop),
        MeasureEvent::Set { sets, measured } => {
            bar.set_position(sets.0 as u64);
            partial.write(measured)
        }
    });
    bar.finish_and_clear();
    measured.map_err(explain)
}

fn print(file: &AuditFile) {
    let number = |x: Option<f64>| x.map_or("-".to_string(), |x| format!("{x:.3}"));
    println!("{:16} {:16} {:18} {:>5} {:>8} {:>9} {:>8}", "criterion", "joint value", "sets", "n", "Pearson", "Spearman", "slope");
    for a in &file.audits {
        for (name, s) in std::iter::once(("all", &a.overall)).chain(a.strata.iter().map(|(n, s)| (n.as_str(), s))) {
            println!(
                "{:16} {:16} {:18} {:>5} {:>8} {:>9} {:>8}",
                a.criterion,
                a.against,
                name,
                s.sets,
                number(s.pearson),
                number(s.spearman),
                number(s.slope)
            );
        }
    }
    if file.audits.iter().all(|a| a.kinds.is_empty() && a.depths.is_empty()) {
        return;
    }
    println!("\n{:16} {:18} {:>17} {:>18}", "criterion", "layers", "share of the sum", "slope");
    for a in file.audits.iter().filter(|a| a.against == a.criterion) {
        let depths = a.depths.iter().map(|(name, s)| (format!("quarter {name}"), s));
        for (name, s) in a.kinds.iter().map(|(name, s)| (name.clone(), s)).chain(depths) {
            // Layers that hardly contribute leave their coefficient open.
            let slope =
                if s.standard_error <= 1.0 { format!("{:.3} ± {:.3}", s.slope, s.standard_error) } else { "not determined".into() };
            println!("{:16} {:18} {:>16.1} % {:>17}", a.criterion, name, 100.0 * s.share, slope);
        }
    }
}
