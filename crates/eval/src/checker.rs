//! Accuracy by the scene checker: how many of a prompt's attributes an image shows, by prompt and by kind. Evaluation stage.

use std::collections::BTreeMap;

use image::RgbImage;
use scenes::SceneSpec;

use crate::error::Result;
use crate::file::{CellCheck, KindAccuracy};
use crate::stats::Bootstrap;

/// What the checker found in one image.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckedImage {
    /// One answer per attribute of the prompt; never empty.
    pub checks: Vec<CellCheck>,
}

impl CheckedImage {
    /// Share of attributes that are right, in 0..=1.
    pub fn share(&self) -> f64 {
        self.checks.iter().filter(|c| c.ok).count() as f64 / self.checks.len() as f64
    }

    /// 1 when all attributes are right, else 0.
    pub fn all_correct(&self) -> f64 {
        f64::from(u8::from(self.checks.iter().all(|c| c.ok)))
    }
}

/// Looks for the attributes of `prompt` in `image`.
///
/// # Errors
/// [`crate::Error::Scenes`] for a prompt outside the scenes' grammar or an empty image.
pub fn check_image(prompt: &str, image: &RgbImage) -> Result<CheckedImage> {
    let spec = SceneSpec::parse(prompt)?;
    let (width, height) = image.dimensions();
    let image = scenes::RgbImage::new(width as usize, height as usize, image.as_raw().clone())?;
    let found = scenes::check(&spec, &image).attributes;
    let checks = found.into_iter().map(|a| CellCheck { name: a.name, stated: a.stated, seen: a.seen, ok: a.ok }).collect();
    Ok(CheckedImage { checks })
}

/// Accuracy by kind of attribute over images that belong to `prompts` (one index per image); `first color` and `second color`
/// are both of the kind `color`. Resampled over the prompts that state the kind.
///
/// # Errors
/// [`crate::Error::Input`] when the lengths differ.
pub fn accuracy_by_kind(images: &[CheckedImage], prompts: &[usize], bootstrap: &Bootstrap) -> Result<Vec<KindAccuracy>> {
    if images.len() != prompts.len() {
        return Err(crate::Error::input("prompts", format!("{} indices", images.len()), prompts.len().to_string()));
    }
    // kind -> prompt -> (right, stated)
    let mut tally: BTreeMap<&str, BTreeMap<usize, (f64, f64)>> = BTreeMap::new();
    for (image, prompt) in images.iter().zip(prompts) {
        for check in &image.checks {
            let kind = check.name.rsplit(' ').next().unwrap_or(&check.name);
            let entry = tally.entry(kind).or_default().entry(*prompt).or_default();
            entry.0 += f64::from(u8::from(check.ok));
            entry.1 += 1.0;
        }
    }
    let row = |(kind, by_prompt): (&str, BTreeMap<usize, (f64, f64)>)| {
        let (right, stated): (Vec<f64>, Vec<f64>) = by_prompt.into_values().unzip();
        Ok(KindAccuracy { kind: kind.into(), accuracy: bootstrap.ratio(&right, &stated)?, n: stated.iter().sum::<f64>() as usize })
    };
    tally.into_iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use scenes::{Scene, Split, render};

    fn rendered(scene: &Scene) -> RgbImage {
        let image = render(scene, 64).unwrap();
        RgbImage::from_raw(64, 64, image.into_data()).unwrap()
    }

    #[test]
    fn a_rendering_is_all_correct_for_its_own_caption_and_not_for_another() {
        let scenes: Vec<Scene> = (0..12).map(|i| Scene::sample(3, i, Split::Train)).collect();
        let own: Vec<CheckedImage> = scenes.iter().map(|s| check_image(&s.spec.caption(), &rendered(s)).unwrap()).collect();
        assert!(own.iter().all(|c| c.all_correct() == 1.0 && c.share() == 1.0));
        let other: Vec<CheckedImage> =
            scenes.iter().zip(scenes.iter().skip(1)).map(|(a, b)| check_image(&a.spec.caption(), &rendered(b)).unwrap()).collect();
        assert!(other.iter().map(CheckedImage::all_correct).sum::<f64>() < 6.0);
        let prompts: Vec<usize> = (0..own.len()).collect();
        let kinds = accuracy_by_kind(&own, &prompts, &Bootstrap::standard(1)).unwrap();
        assert!(kinds.iter().any(|k| k.kind == "color") && kinds.iter().all(|k| k.accuracy.value == 1.0 && !k.kind.contains(' ')));
        assert!(accuracy_by_kind(&own, &prompts[1..], &Bootstrap::standard(1)).is_err());
    }

    #[test]
    fn kinds_pool_the_two_objects_and_resample_by_prompt() {
        let check = |name: &str, ok| CellCheck { name: name.into(), stated: "x".into(), seen: "x".into(), ok };
        let images = [
            CheckedImage { checks: vec![check("first color", true), check("second color", false)] },
            CheckedImage { checks: vec![check("color", true), check("count", false)] },
        ];
        let kinds = accuracy_by_kind(&images, &[0, 1], &Bootstrap::standard(1)).unwrap();
        let told: Vec<_> = kinds.iter().map(|k| (k.kind.as_str(), k.n, k.accuracy.value)).collect();
        assert_eq!(told, [("color", 3, 2.0 / 3.0), ("count", 1, 0.0)]);
    }

    #[test]
    fn a_prompt_outside_the_grammar_is_an_error() {
        assert!(matches!(check_image("a photo of a zebra", &RgbImage::new(8, 8)), Err(crate::Error::Scenes(_))));
    }
}
