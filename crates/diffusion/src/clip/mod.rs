//! CLIP (Radford et al., arXiv 2103.00020): the text encoders that condition the U-Net, and the two-tower model that scores
//! images against prompts. Same keys, settings and arithmetic as transformers' CLIP classes.

mod config;
mod encoder;
mod model;
mod open_clip;
mod preprocess;
mod text;
mod vision;

pub use config::{ClipConfig, ClipTextConfig, ClipVisionConfig, HiddenAct};
pub use model::ClipModel;
pub use preprocess::{ClipCrop, ClipPreprocess};
pub(crate) use text::pass_over;
pub use text::{ClipTextModel, TextOutput};
pub use vision::ClipVisionModel;
