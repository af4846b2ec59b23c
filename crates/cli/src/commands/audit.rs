//! `laptop-diff audit`: do single scores add up? Random removal sets, the sum of their layers' scores against the joint value
//! measured on samples that scoring did not use. Scores -> **audit** -> report.

use std::collections::BTreeMap;
use std::path::PathBuf;

use eval::{ClipDrop, ClipDropOptions};
use prune_core::audit::{
    Audit, AuditFile, DrawnSet, MeasureOptions, MeasuredSet, SetSize, draw_removal_sets, near_optimal_sets, plan_ratios,
};
use prune_core::{LayerTable, Scores, audit};
use unet::scoring::{CLIP_SCORE, CustomLoss, OUTPUT_LOSS, PartialSets, UNetPasses};
use unet::{Granularity, TableSizes, UNet};

use crate::common::BadInput;
use crate::sampling::positive;
use crate::scoring::{MeasureArgs, Points, measure};
use crate::table::Table;

/// Arguments of `audit`.
#[derive(Debug, clap::Args)]
pub struct Args {
    // The calibration set is one that scoring did not use (written by `calibrate` with another seed).
    #[command(flatten)]
    pub(super) measure: MeasureArgs,
    /// Score files to audit. output_loss, task_loss_delta and clip_score are held against their own joint value, all others
    /// against the joint output loss.
    #[arg(long, required = true, num_args = 1..)]
    scores: Vec<PathBuf>,
    /// Sizes of the random sets, as shares of the parameters.
    #[arg(long, value_delimiter = ',', default_values_t = [0.1, 0.3, 0.5])]
    ratios: Vec<f64>,
    /// Sizes of further random sets, as numbers of layers.
    #[arg(long, value_delimiter = ',')]
    layers: Vec<usize>,
    /// Random sets per size.
    #[arg(long, default_value_t = 10, value_parser = positive)]
    sets_per_size: usize,
    /// Sets near the optimum for every tenth of the parameters: the plan by output_loss (or the first scores) and the next best.
    #[arg(long, default_value_t = 4)]
    plan_sets: usize,
    /// Points of the calibration set to use, from its start [default: all].
    #[arg(long)]
    samples: Option<usize>,
    /// Seed of the random sets.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// What one item is; must be that of the scores.
    #[arg(long, default_value = "branch")]
    granularity: Granularity,
    /// clip_score: the CLIP model [default: the model directory's clip/].
    #[arg(long)]
    clip: Option<PathBuf>,
}

/// Scores by criterion, with their files.
type ByCriterion = BTreeMap<String, (PathBuf, Scores)>;

/// Measures and writes.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let model = args.measure.open()?;
    let points = Points::open(&args.measure.calibration, args.samples)?;
    let table = model.table(TableSizes::own(args.granularity))?;
    let scores = args.scores(&table)?;
    let sizes: Vec<SetSize> =
        args.ratios.iter().map(|r| SetSize::ParamsRatio(*r)).chain(args.layers.iter().map(|n| SetSize::Layers(*n))).collect();
    let mut drawn = draw_removal_sets(&table, &sizes, args.sets_per_size, args.seed)?;
    if let Some((_, scores)) = scores.get(OUTPUT_LOSS).or(scores.values().next()) {
        drawn.extend(near_optimal_sets(scores, &plan_ratios(&table), args.plan_sets)?);
    }
    let unet = args.measure.unet(&model)?;

    let partial = |what: &str| PartialSets::beside(&args.measure.out, what, &points.identity());
    let mut passes = UNetPasses::model(&unet, &table, points.set.calibration()?, points.criteria())?;
    let options = MeasureOptions::new(0..points.used).batch(args.measure.batch);
    let mut measured = measure(&mut passes, "audit", &drawn, &options, &partial("sets"))?;
    if scores.contains_key(CLIP_SCORE) {
        let joint = args.clip_losses(&scores, &points, &unet, &drawn, &partial("clip"))?;
        for (set, clip) in measured.iter_mut().zip(joint) {
            set.losses.extend(clip.losses);
        }
    }
    let mut audits: Vec<Audit> = Vec::new();
    for (criterion, (_, scores)) in &scores {
        let own = measured.first().is_some_and(|set| set.losses.contains_key(criterion));
        audits.push(audit(scores, if own { criterion } else { OUTPUT_LOSS }, &measured)?);
    }
    let file = AuditFile::new(&table, args.seed, 0..points.used, audits, measured);
    file.write(&args.measure.out)?;
    for (criterion, ratios) in file.audits.iter().filter_map(|audit| Some((&audit.criterion, file.misled(audit)?))) {
        tracing::warn!(
            "near the best plans the sums of {criterion} mislead at ratio {ratios}: measure plans there with `front` or `refine`"
        );
    }
    ["sets", "clip"].iter().for_each(|what| partial(what).remove());
    if args.measure.json {
        println!("{}", serde_json::to_string_pretty(&file.audits.iter().map(|a| (&a.criterion, &a.overall)).collect::<BTreeMap<_, _>>())?);
    } else {
        print(&file);
        println!("written     {}", args.measure.out.display());
    }
    Ok(())
}

impl Args {
    fn scores(&self, table: &LayerTable) -> anyhow::Result<ByCriterion> {
        let mut scores = ByCriterion::new();
        for path in &self.scores {
            let one = Scores::read_for(path, table)?;
            let criterion = one.criterion().to_string();
            if let Some((other, _)) = scores.insert(criterion.clone(), (path.clone(), one)) {
                return Err(BadInput(format!("--scores {} and {}: both are of {criterion}", other.display(), path.display())).into());
            }
        }
        Ok(scores)
    }

    /// The joint drop of the CLIP score. The images need no held-out points; their prompts are those of this set, not of scoring's.
    fn clip_losses(
        &self,
        scores: &ByCriterion,
        points: &Points,
        unet: &UNet,
        drawn: &[DrawnSet],
        partial: &PartialSets,
    ) -> anyhow::Result<Vec<MeasuredSet>> {
        let (path, scores) = &scores[CLIP_SCORE];
        let options = ClipDropOptions::recorded(path, scores.settings(), scores.seed())?;
        let drop = ClipDrop::open(&options, self.measure.model.path()?, self.clip.as_deref(), &points.set.prompts, unet)?;
        let count = drop.num_samples();
        let mut model = CustomLoss::new(unet, scores.table(), CLIP_SCORE, count, |unet, _| drop.losses(unet));
        measure(&mut model, "clip audit", drawn, &MeasureOptions::new(0..count).batch(count), partial)
    }
}

fn print(file: &AuditFile) {
    let number = |x: Option<f64>| x.map_or("-".to_string(), |x| format!("{x:.3}"));
    let mut table = Table::new(["criterion", "joint value", "sets", ">n", ">Pearson", ">Spearman", ">slope"]);
    for a in &file.audits {
        for (name, s) in std::iter::once(("all", &a.overall)).chain(a.strata.iter().map(|(n, s)| (n.as_str(), s))) {
            let numbers = [s.sets.to_string(), number(s.pearson), number(s.spearman), number(s.slope)];
            table.row([a.criterion.clone(), a.against.clone(), name.to_string()].into_iter().chain(numbers));
        }
    }
    print!("{table}");
    if file.audits.iter().all(|a| a.kinds.is_empty() && a.depths.is_empty()) {
        return;
    }
    let mut table = Table::new(["criterion", "layers", ">share of the sum", ">slope"]);
    for a in file.audits.iter().filter(|a| a.against == a.criterion) {
        let depths = a.depths.iter().map(|(name, s)| (format!("quarter {name}"), s));
        for (name, s) in a.kinds.iter().map(|(name, s)| (name.clone(), s)).chain(depths) {
            // Layers that hardly contribute leave their coefficient open.
            let slope =
                if s.standard_error <= 1.0 { format!("{:.3} ± {:.3}", s.slope, s.standard_error) } else { "not determined".into() };
            table.row([a.criterion.clone(), name, format!("{:.1} %", 100.0 * s.share), slope]);
        }
    }
    print!("\n{table}");
}
