//! The streams of specifications: training scenes without end, and held-out prompts for evaluation.
//!
//! Whether a caption is held out depends on its words alone, so the training stream can never meet an evaluation
//! prompt, whatever the seeds.

use std::collections::BTreeSet;

use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::error::ScenesError;
use crate::layout::Scene;
use crate::spec::{Item, SceneSpec};
use crate::words::{Background, Color, Number, Position, Relation, Shape, Size, Texture};

/// Which captions a stream may use. One caption in sixteen is held out, by the hash of its words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// The fifteen sixteenths on which models are trained.
    Train,
    /// The sixteenth that only evaluation uses.
    HeldOut,
}

impl Split {
    /// The split to which a caption belongs: held out if its 64-bit FNV-1a hash is a multiple of 16.
    pub fn of(caption: &str) -> Split {
        // The low bits of FNV-1a are its weakest, so the high half is folded in first.
        let hash = caption.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        if (hash ^ (hash >> 32)).is_multiple_of(16) { Split::HeldOut } else { Split::Train }
    }
}

/// One line of a manifest of rendered scenes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SceneRecord {
    /// The place in the stream; with the seed and the split it gives the scene again.
    pub index: u64,
    /// The caption of the scene.
    pub caption: String,
    /// What the caption states.
    pub spec: SceneSpec,
}

/// The families with their shares of the training stream, in per cent.
const FAMILIES: [(Family, u32); 4] = [(Family::Single, 40), (Family::Relation, 25), (Family::Pair, 10), (Family::Count, 25)];

#[derive(Debug, Clone, Copy)]
enum Family {
    Single,
    Relation,
    Pair,
    Count,
}

impl Scene {
    /// Scene number `index` of the stream of `seed`: the same on every machine and for any number of threads,
    /// since each index has a generator of its own.
    pub fn sample(seed: u64, index: u64, split: Split) -> Scene {
        let mut rng = generator(seed, index);
        let spec = loop {
            let mut ticket = rng.random_range(0..100);
            let family = FAMILIES
                .iter()
                .find(|(_, share)| {
                    let hit = ticket < *share;
                    ticket = ticket.saturating_sub(*share);
                    hit
                })
                .map_or(Family::Single, |(family, _)| *family);
            let spec = draw(family, &mut rng);
            if Split::of(&spec.caption()) == split {
                break spec;
            }
        };
        Scene::place(spec, &mut rng)
    }

    /// The line of the manifest for this scene.
    pub fn record(&self, index: u64) -> SceneRecord {
        SceneRecord { index, caption: self.spec.caption(), spec: self.spec.clone() }
    }
}

/// Exactly `n` different held-out prompts; see [`prompts`].
///
/// # Errors
/// [`ScenesError::TooFewPrompts`] when the grammar has fewer.
pub fn held_out(seed: u64, n: usize) -> Result<Vec<SceneSpec>, ScenesError> {
    let specs = prompts(seed, n);
    if specs.len() < n { Err(ScenesError::TooFewPrompts { wanted: n, known: specs.len() }) } else { Ok(specs) }
}

/// At most `n` different held-out prompts, the families in turn. A family without new prompts (counts have
/// about fifty) is passed over, so fewer than `n` come back only when nearly all held-out prompts are used.
pub fn prompts(seed: u64, n: usize) -> Vec<SceneSpec> {
    /// So many draws without a new prompt mean that the family is used up.
    const PATIENCE: usize = 4000;
    let mut rng = generator(seed, u64::MAX);
    let mut seen = BTreeSet::new();
    let mut chosen = Vec::with_capacity(n);
    let mut families: Vec<Family> = FAMILIES.iter().map(|(family, _)| *family).collect();
    while chosen.len() < n && !families.is_empty() {
        families.retain(|&family| {
            if chosen.len() == n {
                return true;
            }
            for _ in 0..PATIENCE {
                let spec = draw(family, &mut rng);
                let caption = spec.caption();
                if Split::of(&caption) == Split::HeldOut && seen.insert(caption) {
                    chosen.push(spec);
                    return true;
                }
            }
            false
        });
    }
    chosen
}

/// The generator of one place in a stream.
pub(crate) fn generator(seed: u64, index: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(index);
    rng
}

fn draw(family: Family, rng: &mut ChaCha8Rng) -> SceneSpec {
    let background = maybe(rng, 0.5, Background::ALL);
    match family {
        Family::Single => {
            let texture = maybe(rng, 0.35, Texture::ALL);
            let size = if texture.is_some() { maybe(rng, 0.4, &[Size::Large]) } else { maybe(rng, 0.7, Size::ALL) };
            SceneSpec::Single { size, texture, item: item(rng), position: maybe(rng, 0.6, Position::ALL), background }
        }
        Family::Relation => {
            let (first, second) = two_items(rng);
            SceneSpec::Relation { first, relation: pick(rng, Relation::ALL), second, background }
        }
        Family::Pair => {
            let (first, second) = two_items(rng);
            SceneSpec::Pair { first, second, background }
        }
        Family::Count => {
            SceneSpec::Count { number: pick(rng, Number::ALL), size: maybe(rng, 0.4, &[Size::Small]), item: item(rng), background }
        }
    }
}

fn item(rng: &mut ChaCha8Rng) -> Item {
    Item { color: pick(rng, Color::ALL), shape: pick(rng, Shape::ALL) }
}

fn two_items(rng: &mut ChaCha8Rng) -> (Item, Item) {
    let first = item(rng);
    loop {
        let second = item(rng);
        if second != first {
            return (first, second);
        }
    }
}

fn maybe<T: Copy>(rng: &mut ChaCha8Rng, probability: f64, all: &[T]) -> Option<T> {
    rng.random_bool(probability).then(|| pick(rng, all))
}

pub(crate) fn pick<T: Copy>(rng: &mut ChaCha8Rng, all: &[T]) -> T {
    *all.choose(rng).expect("every list of attribute values has an entry")
}
