//! What `cache` and training on pictures share: sizes of buckets, decoding, and which networks encode.

use std::collections::BTreeMap;
use std::path::Path;

use diffusion::picture::{Size, fit, nearest_size};
use diffusion::{ModelDir, TimeIds, VaeConfig};
use image::RgbImage;
use unet::UNetConfig;
use unet::weights::component_files;

use crate::common::{BadInput, file_hash};

/// Side of the square that every bucket has the area of, and what sides are multiples of; by default the model's own.
///
/// # Errors
/// [`BadInput`] for sides that the model does not take.
pub fn settle_size(size: Option<i64>, step: Option<i64>, unet: &UNetConfig, vae: &VaeConfig) -> anyhow::Result<(i64, i64)> {
    let multiple = vae.downscale() * unet.down_factor();
    let native = unet.sample_size.map_or(512, |(h, w)| h.min(w) * vae.downscale());
    let size = size.unwrap_or(native);
    let step = step.unwrap_or(if size >= 512 { 64 } else { multiple });
    if size <= 0 || step <= 0 || step % multiple != 0 || size % step != 0 {
        let expected = format!("a step that is a multiple of {multiple}, and a size that is a multiple of the step");
        return Err(BadInput(format!("--size {size} --step {step}: expected {expected}")).into());
    }
    Ok((size, step))
}

/// A picture file's middle, in the size of the bucket with the nearest proportions; or what is wrong with it.
pub fn decode(bytes: &[u8], buckets: &[Size]) -> Result<(RgbImage, TimeIds), String> {
    let whole = image::load_from_memory(bytes).map_err(|e| e.to_string())?.to_rgb8();
    let (w, h) = whole.dimensions();
    let (height, width) = nearest_size(buckets, h, w).map(|i| buckets[i]).ok_or("there is no bucket")?;
    let picture = fit(&whole, width as u32, height as u32).map_err(|e| e.to_string())?;
    Ok((picture, TimeIds::cropped((h.into(), w.into()), (height, width))))
}

/// Hashes of everything that decides what a picture and its caption are encoded to: file name in the model directory -> SHA-256.
pub fn encoder_identity(dir: &ModelDir) -> anyhow::Result<BTreeMap<String, String>> {
    let mut out = BTreeMap::new();
    let mut add = |folder: &Path, stem: &str| -> anyhow::Result<()> {
        for file in component_files(folder, stem)? {
            let name = file.strip_prefix(dir.root()).unwrap_or(&file).display().to_string();
            out.insert(name, file_hash(&file)?);
        }
        Ok(())
    };
    add(&dir.vae(), "diffusion_pytorch_model")?;
    for (encoder, _) in dir.text_parts() {
        add(&encoder, "model")?;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use diffusion::picture::aspect_sizes;

    use super::*;

    #[test]
    fn buckets_have_the_area_and_the_proportions() {
        let all = aspect_sizes(1024, 64);
        assert!(all.contains(&(1024, 1024)) && all.contains(&(768, 1344)) && all.contains(&(1344, 768)));
        for &(h, w) in &all {
            assert!(h % 64 == 0 && w % 64 == 0 && h <= 2 * w && w <= 2 * h && h * w <= 1024 * 1024 && h * w > 900 * 1024, "{h} x {w}");
        }
        let nearest = |h, w| all[nearest_size(&all, h, w).unwrap()];
        assert_eq!(nearest(3000, 3001), (1024, 1024));
        assert_eq!(nearest(768, 1344), (768, 1344));
        // Far beyond the longest, the longest.
        assert_eq!(nearest(100, 1000), nearest(100, 5000));
    }

    #[test]
    fn crops_are_told_at_the_scale_of_the_result() {
        // 400 x 200 covers 100 x 100 at half its size: 200 x 100, and 50 rows are cut off above.
        let told = TimeIds::cropped((400, 200), (100, 100));
        assert_eq!((told.original_size, told.crop_top_left, told.target_size), ((400, 200), (50, 0), (100, 100)));
    }
}
