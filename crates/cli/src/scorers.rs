//! `--metric NAME=WEIGHTS`: which published scores to compute, and with which files. Weights -> **scorers** -> scores per picture.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use eval::{Aesthetic, ClipJudge, ClipScale, ClipScorer, ImageReward, Inception, InceptionResize, Lpips, PictureScorer};
use sha2::{Digest, Sha256};
use unet::weights::{component_files, hex};

use crate::common::{BadFile, BadInput, file_hash};
use crate::device::Place;
use crate::hub;

/// What a metric is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Recipe {
    Judge(ClipScale),
    ImageReward,
    Aesthetic,
    Lpips,
    Fid(InceptionResize),
    Cmmd,
}

/// The names that `--metric` takes, what they need after `=`, and how they are made.
const RECIPES: [(&str, &[&str], Recipe); 10] = [
    ("clip-score", &["CLIP"], Recipe::Judge(ClipScale::ClipScore)),
    ("pickscore", &["CLIP"], Recipe::Judge(ClipScale::LogitScale)),
    ("hpsv2", &["CLIP"], Recipe::Judge(ClipScale::Percent)),
    ("hpsv2.1", &["CLIP"], Recipe::Judge(ClipScale::Percent)),
    ("imagereward", &["WEIGHTS", "VOCAB.TXT"], Recipe::ImageReward),
    ("aesthetic", &["WEIGHTS", "CLIP"], Recipe::Aesthetic),
    ("lpips", &["CLASSIFIER", "WEIGHTS"], Recipe::Lpips),
    ("fid", &["WEIGHTS"], Recipe::Fid(InceptionResize::Torch)),
    ("clean-fid", &["WEIGHTS"], Recipe::Fid(InceptionResize::Pillow)),
    ("cmmd", &["CLIP"], Recipe::Cmmd),
];

/// One `--metric`.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    name: &'static str,
    recipe: Recipe,
    files: Vec<PathBuf>,
}

impl FromStr for Asked {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = || {
            let of = |(name, parts, _): &(&str, &[&str], Recipe)| format!("{name}={}", parts.join(","));
            RECIPES.iter().map(of).collect::<Vec<_>>().join(" ")
        };
        let (name, files) = text.split_once('=').ok_or_else(|| format!("expected NAME=WEIGHTS, one of {}", known()))?;
        let recipe = RECIPES.iter().find(|(n, ..)| *n == name).ok_or_else(|| format!("`{name}` is none of {}", known()))?;
        let files: Vec<PathBuf> = files.split(',').filter(|f| !f.is_empty()).map(PathBuf::from).collect();
        if files.len() != recipe.1.len() {
            return Err(format!("{name}: expected {name}={}, got {} of these", recipe.1.join(","), files.len()));
        }
        Ok(Self { name: recipe.0, recipe: recipe.2, files })
    }
}

/// A network, by what it looks at.
pub enum Scorer {
    /// One picture and its prompt.
    Single(Box<dyn PictureScorer>),
    /// The pictures of teacher and student from the same prompt and noise.
    Pair(Lpips),
    /// Two sets of pictures, by features of each: Inception's for a Fréchet distance.
    Inception(Box<Inception>),
    /// The same with CLIP's for CMMD.
    Clip(Box<ClipScorer>),
}

/// A metric that is ready to be computed.
pub struct Metric {
    /// Its name in files, such as `hpsv2_1`.
    pub id: String,
    /// Hash of its files.
    pub sha256: String,
    /// The network.
    pub scorer: Scorer,
}

impl Asked {
    /// The id in files.
    pub fn id(&self) -> String {
        match self.recipe {
            // The run's own CLIP model has `clip_score`.
            Recipe::Judge(ClipScale::ClipScore) => "clip_score_published".into(),
            Recipe::Lpips => "lpips_teacher".into(),
            _ => self.name.replace(['-', '.'], "_"),
        }
    }

    /// Finds the files, in the hub's cache where they are not here: `org/name` is a folder, `org/name:file` a file.
    ///
    /// # Errors
    /// When one is neither here nor on the hub.
    pub fn locate(&mut self) -> anyhow::Result<()> {
        for file in &mut self.files {
            *file = hub::weights(file)?;
            if !file.exists() {
                let hint = "name a file or folder, org/name, or org/name:file of the hub";
                return Err(BadFile::new(file, format!("--metric {}: no such file or folder", self.name), hint).into());
            }
        }
        Ok(())
    }

    /// Opens the network; `tokenizer` is for CLIP models that come as a single file.
    ///
    /// # Errors
    /// When a file is of another network, with its name.
    pub fn open(&self, tokenizer: Option<&Path>, Place { device, kind }: Place, batch: usize) -> anyhow::Result<Metric> {
        let file = |n: usize| self.files[n].as_path();
        // The two towers take `kind`: half precision where it is fast, as the published numbers were made. The others compute in f32.
        let scorer = match self.recipe {
            Recipe::Judge(scale) => {
                let beside = file(0).parent().is_some_and(|dir| dir.join("vocab.json").is_file() || dir.join("tokenizer.json").is_file());
                if file(0).is_file() && tokenizer.is_none() && !beside {
                    let path = file(0).display();
                    return Err(
                        BadInput(format!("--metric {}={path}: no tokenizer beside it; name one with --tokenizer", self.name)).into()
                    );
                }
                Scorer::Single(Box::new(ClipJudge::open(file(0), tokenizer.filter(|_| !beside), scale, device, kind, batch)?))
            }
            Recipe::ImageReward => Scorer::Single(Box::new(ImageReward::open(file(0), file(1), device, batch)?)),
            Recipe::Aesthetic => Scorer::Single(Box::new(Aesthetic::open(file(0), ClipScorer::open(file(1), device, kind, batch)?)?)),
            Recipe::Lpips => Scorer::Pair(Lpips::open(file(0), file(1), device, batch)?),
            Recipe::Fid(resize) => Scorer::Inception(Box::new(Inception::open(file(0), resize, device, batch)?)),
            Recipe::Cmmd => Scorer::Clip(Box::new(ClipScorer::open(file(0), device, kind, batch)?)),
        };
        Ok(Metric { id: self.id(), sha256: self.hash()?, scorer })
    }

    /// A hash of all weight files.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn hash(&self) -> anyhow::Result<String> {
        let mut all = Vec::new();
        for path in &self.files {
            let files = if path.is_dir() { component_files(path, "model")? } else { vec![path.clone()] };
            for file in files {
                all.push(file_hash(&file)?);
            }
        }
        Ok(if all.len() == 1 { all.remove(0) } else { hex(&Sha256::digest(all.concat())) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_told_with_what_they_need() {
        let asked: Asked = "imagereward=a/ImageReward.pt,vocab.txt".parse().unwrap();
        assert_eq!((asked.id().as_str(), asked.files.len()), ("imagereward", 2));
        assert_eq!("hpsv2.1=x.pt".parse::<Asked>().unwrap().id(), "hpsv2_1");
        for (text, told) in
            [("pickscore", "NAME=WEIGHTS"), ("score=x", "`score` is none of clip-score=CLIP"), ("lpips=a", "lpips=CLASSIFIER,WEIGHTS")]
        {
            let err = text.parse::<Asked>().unwrap_err();
            assert!(err.contains(told), "{err}");
        }
    }
}
