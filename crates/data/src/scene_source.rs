//! The rendered scenes as a stream of pairs: renderer -> **pairs** -> latents, calibration set.

use scenes::{Scene, Split, render};

use crate::error::Result;
use crate::pairs::{Pair, PairSource};

/// Scenes of the training split: captions that the evaluation prompts use never occur here.
#[derive(Debug, Clone, Copy)]
pub struct SceneSource {
    seed: u64,
    size: usize,
}

impl SceneSource {
    /// The stream of this seed at `size` x `size` pixels.
    ///
    /// # Errors
    /// [`crate::Error::Scenes`] when the renderer refuses the size.
    pub fn new(seed: u64, size: usize) -> Result<Self> {
        render(&Scene::sample(seed, 0, Split::Train), size)?;
        Ok(Self { seed, size })
    }

    fn draw(&self, scene: &Scene) -> Pair {
        let image = render(scene, self.size).expect("the size was tried in `new`");
        Pair { rgb: image.into_data(), caption: scene.spec.caption() }
    }
}

impl PairSource for SceneSource {
    fn size(&self) -> usize {
        self.size
    }

    fn pair(&self, index: u64) -> Pair {
        self.draw(&Scene::sample(self.seed, index, Split::Train))
    }

    fn neighbors(&self, index: u64, n: u64) -> Vec<Pair> {
        Scene::neighbors(self.seed, index, n as usize).iter().map(|scene| self.draw(scene)).collect()
    }
}
