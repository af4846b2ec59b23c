//! The model card of one student: what a model hub shows of it, made from the results alone.

use std::fmt::Write;

use eval::Timings;

use super::tables::Table;
use super::{format, markdown};
use crate::error::{Error, Result};
use crate::results::{Results, Role};

/// The card of U-Net `name` as Markdown with the hub's front matter. What no file can know (licence, intended use) is left as a
/// line that says so.
///
/// # Errors
/// [`Error::Results`] for the teacher or an unknown U-Net.
pub fn render_model_card(results: &Results, timings: Option<&Timings>, name: &str) -> Result<String> {
    let student = results.unet(name).filter(|u| u.role != Role::Teacher).ok_or_else(|| {
        let known: Vec<&str> = results.unets.iter().filter(|u| u.role != Role::Teacher).map(|u| u.name.as_str()).collect();
        Error::contradiction("unets", format!("a pruned U-Net of this run: {}", known.join(", ")), name)
    })?;
    let (model, plan) = (&results.model, student.plan.as_deref().and_then(|p| results.plan(p)));
    let mut out = String::new();
    let _ = writeln!(out, "---\nlibrary_name: diffusers\npipeline_tag: text-to-image\ntags:\n- laptop-diff\n- pruned\n---\n");
    let _ = writeln!(
        out,
        "# {}: {} of {}\n",
        student.label,
        if student.role == Role::Student { "a retrained part" } else { "a part" },
        model.table.model()
    );
    let _ = writeln!(
        out,
        "The U-Net of {} ({}, predicts {}) with {} of its {} parameters ({}) and {} of its multiply-accumulates, made by layer pruning and \
         normalized distillation (LAPTOP-Diff, arXiv 2404.11098).\n",
        model.table.model(),
        model.family,
        model.prediction_type.as_deref().unwrap_or("unknown"),
        format::count(student.params),
        format::count(results.params()),
        format::share(student.params, results.params()),
        format::share(student.macs, results.macs()),
    );
    let _ = writeln!(
        out,
        "Licence and intended use: those of the original model unless its publisher's terms ask for more; fill them in before publishing.\n"
    );
    if let Some((timings, row)) = timings.and_then(|t| Some((t, t.call_of(&student.names())?))) {
        let _ = writeln!(
            out,
            "One call takes {} (quartiles {} to {}) on {}, {}: {:.2} times as fast as the original there.\n",
            format::seconds(row.median_s),
            format::seconds(row.q1_s),
            format::seconds(row.q3_s),
            timings.hardware.cpu,
            timings.hardware.device,
            row.speedup,
        );
    }
    if let Some((p, row)) = timings.and_then(|t| Some((t.image.as_ref()?, t.image_of(&student.names())?))) {
        let _ = writeln!(
            out,
            "An image of {}×{} pixels ({} steps of {}, guidance {}) takes {} there: {:.2} times as fast.\n",
            p.size[0],
            p.size[1],
            p.steps,
            p.sampler,
            p.guidance,
            format::seconds(row.median_s),
            row.speedup,
        );
    }
    if let Some(f) = timings.and_then(|t| t.footprint_of(&student.names())) {
        let peak = f.image.or(f.call).map(|p| p.device_bytes.unwrap_or(p.resident_bytes));
        let told = peak.map_or(String::new(), |n| format!(" Highest memory of a process that runs it: {}.", format::bytes(n)));
        let _ = writeln!(out, "Its weight file has {}.{told}\n", format::bytes(f.unet_file_bytes));
    }
    if let Some(p) = &results.protocol {
        let _ = writeln!(
            out,
            "Measured on {} prompts ({}), {} images each, {} with {} steps, guidance {}, seeds from {}.",
            p.prompts, p.prompt_source, p.images_per_prompt, p.sampler, p.steps, p.guidance, p.seed
        );
    }
    let mut table = Table::new(
        "Means with intervals over prompts; a positive relative decline is a loss, a negative gain too",
        &["metric", "original", "this model", "relative decline", "verdict"],
    );
    for info in &results.metrics {
        let Some(own) = student.metric(&info.id) else { continue };
        let original = results.teacher().and_then(|t| t.metric(&info.id)).map_or("–".into(), |m| format::interval(&m.value, info));
        let verdict = own.verdict.map_or("–", format::verdict).to_string();
        table.push(false, vec![info.label.clone(), original, format::interval(&own.value, info), format::decline(own, info), verdict]);
    }
    markdown::section(&mut out, "Quality", Some(table));
    if let Some(run) = student.distillation.as_deref().and_then(|d| results.distillations.iter().find(|r| r.name == d)) {
        let _ = writeln!(
            out,
            "\n## Retraining\n\n{} steps of batch {}, learning rate {}, weights of task, output and feature losses {}, {}, {}; seed {}.",
            run.trainer.steps,
            run.trainer.batch,
            run.trainer.lr,
            run.losses.task_weight,
            run.losses.output_weight,
            run.losses.feature_weight,
            run.trainer.seed
        );
    }
    if let Some(plan) = plan {
        let _ = writeln!(out, "\n## Removed layers\n\nPlan {}, found by: {}.\n", plan.name, plan.method());
        for layer in &plan.plan.removed {
            let _ = writeln!(out, "- `{layer}`");
        }
    }
    if !results.provenance.commands.is_empty() {
        let _ = writeln!(out, "\n## Commands\n\n```sh");
        for c in &results.provenance.commands {
            let _ = writeln!(out, "{}", c.line);
        }
        let _ = writeln!(out, "```");
    }
    let _ = writeln!(out, "\nSHA-256 of the original U-Net: `{}`.", model.unet_sha256);
    Ok(out)
}
