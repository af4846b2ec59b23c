//! What a metric is: an id with words for people, and a way from images to numbers. Images -> **metrics** -> evaluation.
//!
//! The metrics that this crate brings stand in the registry ([`metrics`](crate::metrics)); a caller's own is a [`Metric`] around any type with
//! one of the three traits, and appears in `eval.json`, in reports and in comparisons like the others.

use image::RgbImage;
use tch::Tensor;

use crate::error::Result;
use crate::file::MetricInfo;
use crate::frechet::frechet_distance;

/// Gives an image a number for its prompt.
pub trait ImageScorer {
    /// The score of each image for the prompt of the same position.
    ///
    /// # Errors
    /// [`Error::Input`](crate::Error::Input) for no image or another number of prompts, [`Error::NotFinite`](crate::Error::NotFinite) when a
    /// network gives NaN, [`Error::Metric`](crate::Error::Metric) for whatever a metric from elsewhere refuses.
    fn score(&self, images: &[RgbImage], prompts: &[&str]) -> Result<Vec<f64>>;
}

/// Gives an image a number for how it compares with the teacher's of the same prompt and noise.
pub trait PairScorer {
    /// The score of each image beside the teacher's of the same position.
    ///
    /// # Errors
    /// As [`ImageScorer::score`].
    fn score(&self, images: &[RgbImage], teacher: &[RgbImage]) -> Result<Vec<f64>>;
}

/// Gives two sets of images a distance.
pub trait SetDistance {
    /// Features `[N, D]` of N images.
    ///
    /// # Errors
    /// As [`ImageScorer::score`].
    fn features(&self, images: &[RgbImage]) -> Result<Tensor>;

    /// The distance between two sets of features `[N, D]` and `[M, D]`, both f64 on the CPU; a Fréchet distance unless told otherwise.
    ///
    /// # Errors
    /// As [`ImageScorer::score`].
    fn distance(&self, a: &Tensor, b: &Tensor) -> Result<f64> {
        frechet_distance(a, b)
    }
}

/// What a metric looks at.
pub enum Measure {
    /// Each image and its prompt.
    Image(Box<dyn ImageScorer>),
    /// Each image and the teacher's of the same prompt and noise; the teacher itself has no value.
    Pair(Box<dyn PairScorer>),
    /// All images together, beside the real ones and the teacher's.
    Set(Box<dyn SetDistance>),
}

/// A metric that is ready to be computed.
pub struct Metric {
    pub(crate) id: String,
    pub(crate) infos: Vec<MetricInfo>,
    pub(crate) weights_sha256: Option<String>,
    /// Empty where nothing computes.
    pub(crate) computed_in: String,
    pub(crate) measure: Measure,
}

impl Metric {
    /// One without a name.
    pub(crate) fn new(measure: Measure) -> Self {
        Self { id: String::new(), infos: Vec::new(), weights_sha256: None, computed_in: String::new(), measure }
    }

    /// One number per image.
    pub fn per_image(info: MetricInfo, scorer: impl ImageScorer + 'static) -> Self {
        Self { id: info.id.clone(), infos: vec![info], ..Self::new(Measure::Image(Box::new(scorer))) }
    }

    /// One number per image, for its likeness to the teacher's.
    pub fn per_pair(info: MetricInfo, scorer: impl PairScorer + 'static) -> Self {
        Self { id: info.id.clone(), infos: vec![info], ..Self::new(Measure::Pair(Box::new(scorer))) }
    }

    /// One number for all images; `id` names the metric, the two descriptions its values against the real images and the teacher's.
    pub fn between_sets(id: &str, to_real: MetricInfo, to_teacher: MetricInfo, distance: impl SetDistance + 'static) -> Self {
        Self { id: id.into(), infos: vec![to_real, to_teacher], ..Self::new(Measure::Set(Box::new(distance))) }
    }

    /// The same metric, whose scores of single images are kept from run to run as long as this hash of its weights (or of its code) is
    /// the same.
    pub fn with_weights(self, sha256: impl Into<String>) -> Self {
        Self { weights_sha256: Some(sha256.into()), ..self }
    }

    /// The same metric, whose numbers depend on what its network computes in, such as `f16`: kept scores of another are not taken.
    pub fn computed_in(self, numbers: impl Into<String>) -> Self {
        Self { computed_in: numbers.into(), ..self }
    }

    /// Its name in files.
    pub fn id(&self) -> &str {
        &self.id
    }
}
