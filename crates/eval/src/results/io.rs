//! ReadOptions and writing of the versioned JSON files of this crate, and the checks that no reader should have to repeat.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Results, Role};
use crate::error::{Error, Result};

/// A JSON file that says its format and version in its first two keys.
pub trait Versioned: Serialize + DeserializeOwned + PartialEq {
    /// The format's name.
    const FORMAT: &'static str;
    /// The only version that this build reads and writes.
    const VERSION: u32;

    /// The format and version that this value carries.
    fn stamp(&self) -> (&str, u32);

    /// Checks what the types cannot: that names refer to something and lists have the same length.
    ///
    /// # Errors
    /// [`Error::Results`] with the place of the first contradiction.
    fn check(&self) -> Result<()>;

    /// Reads and checks `path`.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read, [`Error::Format`] when it is no such JSON, [`Error::Version`] for another format or
    /// version, [`Error::Results`] when it contradicts itself.
    fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).map_err(Error::io(path))?;
        Self::parse(&text, path)
    }

    /// As [`Versioned::read`], from text; `path` only names the source in errors.
    ///
    /// # Errors
    /// As [`Versioned::read`].
    fn parse(text: &str, path: &Path) -> Result<Self> {
        let bad = |e: serde_json::Error| Error::Format {
            path: path.to_path_buf(),
            problem: format!("no {} file ({e})", Self::FORMAT),
            hint: "was it cut off or edited by hand? run the stage that writes it again".into(),
        };
        let json: serde_json::Value = serde_json::from_str(text).map_err(bad)?;
        let wrong = |key: &str, expected: String, hint: &str| Error::Version {
            path: path.to_path_buf(),
            key: key.into(),
            expected,
            got: json.get(key).map_or("nothing".into(), ToString::to_string),
            hint: hint.into(),
        };
        if json.get("format").and_then(|v| v.as_str()) != Some(Self::FORMAT) {
            return Err(wrong("format", format!("\"{}\"", Self::FORMAT), "is this the right file?"));
        }
        if json.get("version").and_then(serde_json::Value::as_u64) != Some(u64::from(Self::VERSION)) {
            return Err(wrong("version", Self::VERSION.to_string(), "use the build that wrote the file, or run its stage again"));
        }
        let value: Self = serde_json::from_value(json).map_err(bad)?;
        value.check()?;
        Ok(value)
    }

    /// Checks and writes `path` whole: indented, fields in their declared order, a line feed at the end.
    ///
    /// # Errors
    /// [`Error::Results`] when the value contradicts itself or carries another stamp, [`Error::NotFinite`] when it holds a NaN or an
    /// infinity (JSON has none), [`Error::Io`] when the file cannot be written.
    fn write(&self, path: &Path) -> Result<()> {
        let (format, version) = self.stamp();
        if (format, version) != (Self::FORMAT, Self::VERSION) {
            return Err(contradiction("format".into(), format!("{} {}", Self::FORMAT, Self::VERSION), format!("{format} {version}")));
        }
        self.check()?;
        let mut text = serde_json::to_string_pretty(self).map_err(|e| Error::Format {
            path: path.to_path_buf(),
            problem: format!("cannot be written as JSON ({e})"),
            hint: "keep the values plain".into(),
        })?;
        text.push('\n');
        // serde_json writes a NaN as `null`: it fails to read back, or reads back as an absent value.
        match serde_json::from_str::<Self>(&text) {
            Ok(back) if back == *self => {}
            _ => return Err(not_finite(path)),
        }
        write_whole(path, text.as_bytes())
    }
}

/// Writes `bytes` to `path` so that it appears whole or not at all: temporary file in the same folder, fsync, rename.
///
/// # Errors
/// [`Error::Io`] naming the path; the temporary file is removed again.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let name = path.file_name().ok_or_else(|| Error::input("path", "a file name", path.display().to_string()))?;
    let temp = path.with_file_name(format!(".{}.{}.tmp", name.to_string_lossy(), std::process::id()));
    let written = fs::File::create(&temp).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    if let Err(source) = written.and_then(|()| fs::rename(&temp, path)) {
        fs::remove_file(&temp).ok();
        return Err(Error::Io { path: path.to_path_buf(), source });
    }
    Ok(())
}

/// An [`Error::Results`].
pub(super) fn contradiction(key: String, expected: String, got: String) -> Error {
    Error::Results { key, expected, got }
}

fn not_finite(path: &Path) -> Error {
    Error::NotFinite {
        what: format!("a value of {}", path.display()),
        hint: "look for a diverged training run or an empty set of samples".into(),
    }
}

/// Everything in `results` refers to something that is there.
pub(super) fn check_results(results: &Results) -> Result<()> {
    let layers = unique("layers", results.layers.iter().map(|l| l.id.as_str()))?;
    let plans = unique("plans", results.plans.iter().map(|p| p.name.as_str()))?;
    let criteria = unique("criteria", results.criteria.iter().map(|c| c.criterion.as_str()))?;
    let runs = unique("distillations", results.distillations.iter().map(|d| d.name.as_str()))?;
    let metrics = unique("metrics", results.metrics.iter().map(|m| m.id.as_str()))?;
    let unets = unique("unets", results.unets.iter().map(|u| u.name.as_str()))?;
    for c in &results.criteria {
        let order = c.scores.iter().map(|s| &s.layer).eq(results.layers.iter().map(|l| &l.id));
        if !order {
            let expected = format!("one row for each of the {} layers, in their order", results.layers.len());
            return Err(contradiction(format!("criteria.{}.scores", c.criterion), expected, format!("{} rows", c.scores.len())));
        }
        if let Some(b) = &c.bins {
            let wide = b.means.iter().chain(&b.ses).all(|row| row.len() == b.bins.len());
            let high = b.means.len() == results.layers.len() && (b.ses.is_empty() || b.ses.len() == b.means.len());
            if !(high && wide) {
                let expected = format!("{} rows of {} values", results.layers.len(), b.bins.len());
                return Err(contradiction(format!("criteria.{}.bins", c.criterion), expected, format!("{} rows", b.means.len())));
            }
        }
    }
    for a in &results.audits {
        known(&criteria, || format!("audits.{}", a.criterion), "criterion", &a.criterion)?;
    }
    for p in &results.plans {
        for id in &p.removed {
            known(&layers, || format!("plans.{}.removed", p.name), "layer", id)?;
        }
    }
    if let Some(name) = &results.headline_plan {
        known(&plans, || "headline_plan".into(), "plan", name)?;
    }
    for d in &results.distillations {
        known(&plans, || format!("distillations.{}.plan", d.name), "plan", &d.plan)?;
        if let Some(point) = d.curve.iter().find(|p| p.terms.len() != d.terms.len()) {
            let key = format!("distillations.{}.curve, step {}", d.name, point.step);
            return Err(contradiction(key, format!("{} feature terms", d.terms.len()), point.terms.len().to_string()));
        }
    }
    for u in &results.unets {
        for m in &u.metrics {
            known(&metrics, || format!("unets.{}.metrics", u.name), "metric", &m.metric)?;
        }
        if let Some(plan) = &u.plan {
            known(&plans, || format!("unets.{}.plan", u.name), "plan", plan)?;
        }
        if let Some(run) = &u.distillation {
            known(&runs, || format!("unets.{}.distillation", u.name), "distillation", run)?;
        }
    }
    for row in &results.by_category {
        let key = || format!("by_category.{}.{}", row.category, row.unet);
        known(&unets, key, "U-Net", &row.unet)?;
        row.metrics.iter().try_for_each(|m| known(&metrics, key, "metric", &m.metric))?;
    }
    if let Some(front) = &results.front {
        known(&criteria, || "front.criterion".into(), "criterion", &front.criterion)?;
    }
    if results.unets.first().is_some_and(|u| u.role != Role::Teacher) {
        return Err(contradiction("unets".into(), "the teacher first".into(), results.unets[0].name.clone()));
    }
    for c in &results.comparisons {
        known(&metrics, || "comparisons".into(), "metric", &c.metric)?;
        known(&unets, || "comparisons".into(), "U-Net", &c.a)?;
        known(&unets, || "comparisons".into(), "U-Net", &c.b)?;
    }
    if let Some(g) = &results.gallery {
        for name in &g.unets {
            known(&unets, || "gallery.unets".into(), "U-Net", name)?;
        }
        if let Some(row) = g.rows.iter().find(|r| r.cells.len() != g.unets.len()) {
            let key = format!("gallery, prompt `{}`", row.prompt);
            return Err(contradiction(key, format!("{} pictures", g.unets.len()), row.cells.len().to_string()));
        }
    }
    Ok(())
}

fn unique<'a>(key: &str, names: impl Iterator<Item = &'a str>) -> Result<BTreeSet<&'a str>> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(contradiction(key.into(), "names that differ".into(), format!("`{name}` twice")));
        }
    }
    Ok(seen)
}

fn known(names: &BTreeSet<&str>, key: impl Fn() -> String, what: &str, name: &str) -> Result<()> {
    if names.contains(name) { Ok(()) } else { Err(contradiction(key(), format!("a {what} of these results"), format!("`{name}`"))) }
}
