//! An unlimited, seeded renderer of captioned scenes, and the checker that reads an image back.
//!
//! The crate stands at both ends of the flow weights -> scores -> plan -> pruned model -> distillation ->
//! evaluation -> report: its scenes are the data on which the small embedded model is trained and distilled, and
//! its checker is the truth that evaluation compares generated images with. It knows no tensor and no model.
//!
//! ```
//! use scenes::{Scene, SceneSpec, Split, check, render};
//!
//! let scene = Scene::sample(7, 0, Split::Train);
//! let image = render(&scene, 64)?;
//! assert!(check(&scene.spec, &image).all_correct);
//! assert_eq!(SceneSpec::parse(&scene.spec.caption())?, scene.spec);
//! # Ok::<(), scenes::ScenesError>(())
//! ```

mod canvas;
mod check;
mod detect;
mod error;
mod layout;
mod neighbors;
mod outline;
mod parse;
mod rgb_image;
mod render;
mod sample;
mod spec;
mod texture;
mod words;

pub use check::{Attribute, CheckResult, check};
pub use error::ScenesError;
pub use layout::{PlacedObject, Scene};
pub use render::render;
pub use rgb_image::RgbImage;
pub use sample::{SceneRecord, Split, held_out, prompts};
pub use spec::{Item, SceneSpec};
pub use words::{Background, Color, Number, Position, Relation, Shape, Size, Texture, vocabulary};
