//! Images as data URIs, so that the page needs no other file.

use std::io::Cursor;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::{ImageFormat, ImageReader, imageops::FilterType};

use crate::error::{Error, Result};

/// Larger images are shrunk to this side, or a page of SDXL's images would take hundreds of megabytes.
const LARGEST_SIDE: u32 = 384;

/// An image for `<img src>`.
pub struct Embedded {
    /// The data URI.
    pub uri: String,
    /// True for an image of few pixels, which is enlarged without smoothing.
    pub small: bool,
}

/// Reads the image `relative` in `dir`; `relative` may not lead out of it.
///
/// # Errors
/// [`Error::Results`] for a path that is absolute or climbs, [`Error::Io`] for a missing file, [`Error::File`] for a damaged one.
pub fn embed(dir: &Path, relative: &str) -> Result<Embedded> {
    use std::path::Component;
    if relative.is_empty() || !Path::new(relative).components().all(|c| matches!(c, Component::Normal(_))) {
        return Err(Error::contradiction("gallery", "a path inside the run directory", format!("`{relative}`")));
    }
    let path = dir.join(relative);
    let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
    let bad = |e: &dyn std::fmt::Display| Error::file(&path, format!("not a readable image ({e})"), "generate the images again");
    let reader = ImageReader::new(Cursor::new(&bytes)).with_guessed_format().map_err(Error::io(&path))?;
    let format = reader.format();
    let image = reader.decode().map_err(|e| bad(&e))?;
    let side = image.width().max(image.height());
    if side <= LARGEST_SIDE && format == Some(ImageFormat::Png) {
        return Ok(Embedded { uri: uri("image/png", &bytes), small: side <= 128 });
    }
    let shrunk = if side > LARGEST_SIDE { image.resize(LARGEST_SIDE, LARGEST_SIDE, FilterType::Lanczos3) } else { image };
    let mut out = Cursor::new(Vec::new());
    shrunk.to_rgb8().write_to(&mut out, ImageFormat::Jpeg).map_err(|e| bad(&e))?;
    Ok(Embedded { uri: uri("image/jpeg", out.get_ref()), small: side <= 128 })
}

fn uri(mime: &str, bytes: &[u8]) -> String {
    format!("data:{mime};base64,{}", STANDARD.encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::RgbImage;

    #[test]
    fn small_png_files_keep_their_bytes_and_large_ones_shrink() {
        let dir = tempfile::tempdir().unwrap();
        RgbImage::new(8, 8).save(dir.path().join("a.png")).unwrap();
        RgbImage::new(900, 450).save(dir.path().join("b.png")).unwrap();
        let a = embed(dir.path(), "a.png").unwrap();
        let bytes = STANDARD.decode(a.uri.strip_prefix("data:image/png;base64,").unwrap()).unwrap();
        assert!(a.small && bytes == std::fs::read(dir.path().join("a.png")).unwrap());
        let b = embed(dir.path(), "b.png").unwrap();
        let bytes = STANDARD.decode(b.uri.strip_prefix("data:image/jpeg;base64,").unwrap()).unwrap();
        let read = image::load_from_memory(&bytes).unwrap();
        assert_eq!((read.width(), read.height(), b.small), (384, 192, false));
    }

    #[test]
    fn paths_stay_inside_and_damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("c.png"), b"no image").unwrap();
        for (path, told) in
            [("../x.png", "inside the run directory"), ("/x.png", "inside"), ("none.png", "none.png"), ("c.png", "not a readable image")]
        {
            let err = embed(dir.path(), path).err().unwrap().to_string();
            assert!(err.contains(told), "{err}");
        }
    }
}
