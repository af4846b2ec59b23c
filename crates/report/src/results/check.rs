//! Checks that no reader of results should have to repeat: names refer to something, lists fit together, numbers are finite.

use std::collections::BTreeSet;

use super::{Results, Role};
use crate::error::{Error, Result};

impl Results {
    /// Checks what the types cannot.
    ///
    /// # Errors
    /// [`Error::Results`] with the first contradiction, [`Error::NotFinite`] for a NaN or an infinity.
    pub fn check(&self) -> Result<()> {
        let plans = unique("plans", self.plans.iter().map(|p| p.name.as_str()))?;
        let criteria = unique("criteria", self.criteria.iter().map(|c| c.id()))?;
        let runs = unique("distillations", self.distillations.iter().map(|d| d.name.as_str()))?;
        let metrics = unique("metrics", self.metrics.iter().map(|m| m.id.as_str()))?;
        let unets = unique("unets", self.unets.iter().map(|u| u.name.as_str()))?;
        self.check_layers()?;
        for audit in self.audit.iter().flat_map(|audit| &audit.file.audits) {
            known(&criteria, || format!("audits.{}", audit.criterion), "criterion", &audit.criterion)?;
        }
        if let Some(name) = &self.headline_plan {
            known(&plans, || "headline_plan".into(), "plan", name)?;
        }
        self.check_trainings(&plans)?;
        self.check_unets(&plans, &runs, &metrics)?;
        for row in &self.by_category {
            let key = || format!("by_category.{}.{}", row.category, row.unet);
            known(&unets, key, "U-Net", &row.unet)?;
            row.metrics.iter().try_for_each(|m| known(&metrics, key, "metric", &m.metric))?;
        }
        if let Some(front) = &self.front {
            known(&criteria, || "front.criterion".into(), "criterion", &front.criterion)?;
        }
        for c in &self.comparisons {
            known(&metrics, || "comparisons".into(), "metric", &c.metric)?;
            known(&unets, || "comparisons".into(), "U-Net", &c.a)?;
            known(&unets, || "comparisons".into(), "U-Net", &c.b)?;
        }
        if let Some(gallery) = &self.gallery {
            gallery.unets.iter().try_for_each(|name| known(&unets, || "gallery.unets".into(), "U-Net", name))?;
            if let Some(row) = gallery.rows.iter().find(|r| r.cells.len() != gallery.unets.len()) {
                let (key, expected) = (format!("gallery, prompt `{}`", row.prompt), format!("{} images", gallery.unets.len()));
                return Err(Error::contradiction(key, expected, row.cells.len().to_string()));
            }
        }
        Ok(())
    }

    /// Scores and plans are of this model.
    fn check_layers(&self) -> Result<()> {
        let table = &self.model.table;
        for c in &self.criteria {
            table.check_same(c.scores().table()).map_err(|e| {
                let expected = format!("scores of the {} layers, in their order", table.len());
                Error::contradiction(format!("criteria.{}", c.id()), expected, e.to_string())
            })?;
        }
        for p in &self.plans {
            if let Some(id) = p.plan.removed.iter().find(|id| table.position(id.as_str()).is_none()) {
                return Err(Error::contradiction(format!("plans.{}.removed", p.name), "a layer of these results", format!("`{id}`")));
            }
            finite(|| format!("plans.{}", p.name), p.plan.predicted.iter().chain(&p.predicted_output_loss))?;
            let joint = p.joint.iter().flat_map(|joint| std::iter::once(&joint.mean).chain(&joint.standard_error));
            finite(|| format!("plans.{}.joint", p.name), joint)?;
        }
        Ok(())
    }

    fn check_trainings(&self, plans: &BTreeSet<&str>) -> Result<()> {
        for d in &self.distillations {
            known(plans, || format!("distillations.{}.plan", d.name), "plan", &d.plan)?;
            for point in &d.curve {
                let key = || format!("distillations.{}.curve, step {}", d.name, point.step);
                if point.terms.len() != d.terms.len() {
                    return Err(Error::contradiction(key(), format!("{} feature terms", d.terms.len()), point.terms.len().to_string()));
                }
                finite(key, [&point.total, &point.task, &point.out_kd, &point.feat_kd].into_iter().chain(&point.terms))?;
            }
        }
        Ok(())
    }

    fn check_unets(&self, plans: &BTreeSet<&str>, runs: &BTreeSet<&str>, metrics: &BTreeSet<&str>) -> Result<()> {
        for u in &self.unets {
            for m in &u.metrics {
                known(metrics, || format!("unets.{}.metrics", u.name), "metric", &m.metric)?;
                finite(|| format!("unets.{}.{}", u.name, m.metric), [&m.value.value, &m.value.low, &m.value.high])?;
            }
            if let Some(plan) = &u.plan {
                known(plans, || format!("unets.{}.plan", u.name), "plan", plan)?;
            }
            if let Some(run) = &u.distillation {
                known(runs, || format!("unets.{}.distillation", u.name), "distillation", run)?;
            }
        }
        match self.unets.first() {
            Some(first) if first.role != Role::Teacher => Err(Error::contradiction("unets", "the teacher first", &first.name)),
            _ => Ok(()),
        }
    }
}

fn unique<'a>(key: &str, names: impl Iterator<Item = &'a str>) -> Result<BTreeSet<&'a str>> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(Error::contradiction(key, "names that differ", format!("`{name}` twice")));
        }
    }
    Ok(seen)
}

fn known(names: &BTreeSet<&str>, key: impl Fn() -> String, what: &str, name: &str) -> Result<()> {
    if names.contains(name) { Ok(()) } else { Err(Error::contradiction(key(), format!("a {what} of these results"), format!("`{name}`"))) }
}

fn finite<'a>(key: impl Fn() -> String, values: impl IntoIterator<Item = &'a f64>) -> Result<()> {
    if values.into_iter().all(|v| v.is_finite()) { Ok(()) } else { Err(Error::NotFinite { key: key() }) }
}
