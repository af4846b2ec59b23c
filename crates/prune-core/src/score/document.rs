//! `scores.json`, the file between scoring and planning: written whole, validated when read.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::Error;
use crate::file::{self, Format};
use crate::layer::LayerId;
use crate::score::{LayerScore, Scores, ScoresParts};
use crate::table::{LayerTable, TableParts};

const FORMAT: Format = Format { name: "prune-core/scores", version: 2, older: &[("laptop-diff/scores", 1)] };

impl Scores {
    /// The document `scores.json` as text.
    ///
    /// # Errors
    /// [`Error::Serialize`].
    pub fn to_json(&self) -> Result<String, Error> {
        file::to_json(&self.document())
    }

    /// Writes `scores.json`, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Serialize`].
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        file::write_json(path, &self.document())
    }

    /// Reads and validates the text of `scores.json`.
    ///
    /// # Errors
    /// [`Error::Parse`], [`Error::WrongFormat`], [`Error::WrongVersion`], [`Error::DuplicateId`],
    /// [`Error::Inconsistent`] (a value that is not the mean of its samples), and those of [`LayerTable::new`] and
    /// [`Scores::new`].
    pub fn from_json(text: &[u8]) -> Result<Self, Error> {
        let document: Document = file::parse(text, FORMAT)?;
        let mut scores = Self::new(ScoresParts {
            table: LayerTable::new(document.table)?,
            criterion: document.criterion,
            seed: document.seed,
            settings: document.settings,
            first_sample: document.first_sample,
            bins: document.bins,
            layers: BTreeMap::new(),
        })?;
        for row in document.scores {
            let score = row.checked()?;
            if scores.parts.layers.contains_key(&row.id) {
                return Err(Error::DuplicateId { key: "scores".to_owned(), id: row.id });
            }
            scores.insert(row.id, score)?;
        }
        Ok(scores)
    }

    /// Reads and validates a `scores.json`.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::InFile`] around those of [`Scores::from_json`].
    pub fn read(path: &Path) -> Result<Self, Error> {
        file::read(path, Self::from_json)
    }

    /// Reads a `scores.json` that must have been made for this model and choice of layers.
    ///
    /// # Errors
    /// As [`Scores::read`], and [`Error::OtherModel`] or [`Error::OtherLayers`].
    pub fn read_for(path: &Path, table: &LayerTable) -> Result<Self, Error> {
        file::read(path, |text| {
            let scores = Self::from_json(text)?;
            table.check_same(scores.table())?;
            Ok(scores)
        })
    }

    fn document(&self) -> Document {
        let rows = self.parts.table.layers().iter().filter_map(|layer| {
            let score = self.parts.layers.get(&layer.id)?;
            Some(Row { id: layer.id.clone(), value: score.value, standard_error: score.standard_error(), samples: score.samples.clone() })
        });
        Document {
            format: FORMAT.name.to_owned(),
            version: FORMAT.version,
            criterion: self.parts.criterion.clone(),
            seed: self.parts.seed,
            settings: self.parts.settings.clone(),
            first_sample: self.parts.first_sample,
            bins: self.parts.bins.clone(),
            scores: rows.collect(),
            table: self.parts.table.parts().clone(),
        }
    }
}

/// `scores.json` as it stands in the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: String,
    version: u32,
    criterion: String,
    seed: Option<u64>,
    settings: BTreeMap<String, Value>,
    first_sample: usize,
    bins: Vec<u32>,
    scores: Vec<Row>,
    table: TableParts,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    id: LayerId,
    value: f64,
    standard_error: Option<f64>,
    samples: Vec<f64>,
}

impl Row {
    /// The score, if the stated mean is that of the stated samples. The standard error is for readers only.
    fn checked(&self) -> Result<LayerScore, Error> {
        if self.samples.is_empty() {
            return Ok(LayerScore::single(self.value));
        }
        let scale = self.samples.iter().fold(self.value.abs(), |a, b| a.max(b.abs()));
        match LayerScore::from_samples(self.samples.clone()) {
            Some(score) if (score.value - self.value).abs() <= 1e-9 * scale => Ok(score),
            other => Err(Error::Inconsistent {
                key: format!("scores.{}.value", self.id),
                expected: other.map_or("finite".to_owned(), |score| score.value.to_string()),
                got: self.value.to_string(),
            }),
        }
    }
}
