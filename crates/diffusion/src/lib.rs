//! Everything around the U-Net that makes a picture: prompt -> tokens -> text embeddings -> (U-Net and sampler) -> latents -> picture.

mod error;

pub use error::{Error, Result};
