//! Scenes that differ in little: what a scorer must learn to tell apart, and the near misses that test the checker.
//!
//! Random captions differ in so much that colours alone tell them apart, and a contrast between them never teaches where things
//! stand or which colour belongs to which shape. Neighbours differ in one such thing and agree in all others.

use rand::RngExt;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

use crate::layout::Scene;
use crate::sample::{Split, generator};
use crate::spec::{Item, SceneSpec};
use crate::words::{Background, Color, Number, Position, Relation, Shape, Size, Texture};

impl Scene {
    /// Scene `index` of the training stream of `seed` and `n - 1` neighbours of it, none of them held out: each caption differs from
    /// that of the scene in one stated attribute, or in two objects that change places, colours or shapes.
    pub fn neighbors(seed: u64, index: u64, n: usize) -> Vec<Scene> {
        let base = Scene::sample(seed, index, Split::Train);
        // A stream of its own, so that the neighbours' places are not those of the scene.
        let mut rng = generator(seed ^ 0x6e65_6172, index);
        let mut scenes = vec![base];
        while scenes.len() < n {
            let spec = neighbor(&scenes[0].spec, &mut rng);
            // A repeated caption would be a second right answer; small worlds run out of new ones, so it is only avoided.
            let repeated = scenes.iter().any(|s| s.spec == spec) && rng.random_bool(0.9);
            if Split::of(&spec.caption()) == Split::Train && !repeated {
                scenes.push(Scene::place(spec, &mut rng));
            }
        }
        scenes
    }
}

impl SceneSpec {
    /// A specification that differs in exactly one stated attribute; what is unsaid stays unsaid.
    pub fn with_one_change(&self, rng: &mut ChaCha8Rng) -> SceneSpec {
        loop {
            let mut changed = self.clone();
            let pick = rng.random_range(0..6);
            match &mut changed {
                SceneSpec::Single { size, texture, item, position, background } => match pick {
                    0 => change(&mut item.color, Color::ALL, rng),
                    1 => change(&mut item.shape, Shape::ALL, rng),
                    2 => change_some(size, Size::ALL, rng),
                    3 => change_some(texture, Texture::ALL, rng),
                    4 => change_some(position, Position::ALL, rng),
                    _ => change_some(background, Background::ALL, rng),
                },
                SceneSpec::Relation { first, relation, second, background } => match pick {
                    0..=3 => change_items(pick, first, second, rng),
                    4 => change(relation, Relation::ALL, rng),
                    _ => change_some(background, Background::ALL, rng),
                },
                SceneSpec::Pair { first, second, background } => match pick {
                    0..=3 => change_items(pick, first, second, rng),
                    _ => change_some(background, Background::ALL, rng),
                },
                SceneSpec::Count { number, item, background, .. } => match pick {
                    0 => change(&mut item.color, Color::ALL, rng),
                    1 => change(&mut item.shape, Shape::ALL, rng),
                    2 => change(number, Number::ALL, rng),
                    _ => change_some(background, Background::ALL, rng),
                },
            }
            if changed != *self && changed.validate().is_ok() {
                return changed;
            }
        }
    }
}

/// One change; half of the time, where there is something of the kind, a change of places or of what belongs together.
fn neighbor(spec: &SceneSpec, rng: &mut ChaCha8Rng) -> SceneSpec {
    let mut changed = spec.clone();
    if rng.random_bool(0.5) {
        match &mut changed {
            SceneSpec::Single { position, .. } => change_some(position, Position::ALL, rng),
            SceneSpec::Relation { first, relation, second, .. } => match rng.random_range(0..4) {
                0 => change(relation, Relation::ALL, rng),
                pick => swap(pick, first, second),
            },
            SceneSpec::Pair { first, second, .. } => swap(rng.random_range(1..4), first, second),
            SceneSpec::Count { .. } => {}
        }
    }
    if changed == *spec { spec.with_one_change(rng) } else { changed }
}

fn swap(pick: i32, first: &mut Item, second: &mut Item) {
    if pick != 2 {
        std::mem::swap(&mut first.color, &mut second.color);
    }
    if pick != 3 {
        std::mem::swap(&mut first.shape, &mut second.shape);
    }
}

fn change_items(pick: i32, first: &mut Item, second: &mut Item, rng: &mut ChaCha8Rng) {
    let item = if pick < 2 { first } else { second };
    if pick % 2 == 0 {
        change(&mut item.color, Color::ALL, rng);
    } else {
        change(&mut item.shape, Shape::ALL, rng);
    }
}

fn change<T: Copy>(value: &mut T, all: &[T], rng: &mut ChaCha8Rng) {
    *value = *all.choose(rng).expect("every list of attribute values has an entry");
}

fn change_some<T: Copy>(value: &mut Option<T>, all: &[T], rng: &mut ChaCha8Rng) {
    if let Some(value) = value {
        change(value, all, rng);
    }
}
