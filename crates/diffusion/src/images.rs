//! Images: between 8-bit RGB in memory, tensors and files. The last arrow of generation (latents -> image), and the
//! first of training (image -> latents).
//!
//! Shapes: `B` batch, `H` `W` height and width.

mod decode;
mod exif;

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;

use image::{RgbImage, imageops};
use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};

pub use decode::{Content, DecodeError, HEAD, decode, dimensions, identify};

/// Images of one size as a tensor.
///
/// # Shapes
/// `[B, 3, H, W]`, f32 in -1..1, on the CPU.
///
/// # Errors
/// [`Error::Input`] when there is none, or they differ in size.
pub fn to_tensor(images: &[&RgbImage]) -> Result<Tensor> {
    let wrong = |expected: &str, got: String| Error::Input { name: "images".into(), expected: expected.into(), got };
    let Some(first) = images.first() else { return Err(wrong("at least one", "none".into())) };
    let (w, h) = first.dimensions();
    let mut bytes = Vec::with_capacity(images.len() * first.as_raw().len());
    for p in images {
        if p.dimensions() != (w, h) {
            return Err(wrong("images of one size", format!("{w} x {h} and {} x {}", p.width(), p.height())));
        }
        bytes.extend_from_slice(p.as_raw());
    }
    let t = Tensor::f_from_data_size(&bytes, &[images.len() as i64, h.into(), w.into(), 3], Kind::Uint8)?;
    Ok(t.f_permute([0, 3, 1, 2])?.f_to_kind(Kind::Float)?.f_contiguous()? / 127.5 - 1.0)
}

/// The images in a tensor; values beyond -1..1 are clamped.
///
/// # Shapes
/// `[B, 3, H, W]` on any device
///
/// # Errors
/// [`Error::Input`] for another shape, [`Error::NotFinite`] for NaN or infinities.
pub fn from_tensor(x: &Tensor) -> Result<Vec<RgbImage>> {
    let (b, h, w) = match x.size()[..] {
        [b, 3, h, w] if h > 0 && w > 0 => (b, h, w),
        ref other => {
            return Err(Error::Input { name: "images".into(), expected: "[batch, 3, height, width]".into(), got: format!("{other:?}") });
        }
    };
    check_finite(x, "an image")?;
    let x = x.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?;
    let x = ((x * 0.5 + 0.5).f_clamp(0.0, 1.0)? * 255.0).f_round()?.f_to_kind(Kind::Uint8)?.f_permute([0, 2, 3, 1])?.f_contiguous()?;
    let mut out = Vec::with_capacity(b as usize);
    for i in 0..b {
        let mut bytes = vec![0u8; (h * w * 3) as usize];
        let numel = bytes.len();
        x.f_get(i)?.f_copy_data_u8(&mut bytes, numel)?;
        out.push(RgbImage::from_raw(w as u32, h as u32, bytes).expect("the buffer has the image's size"));
    }
    Ok(out)
}

/// Whether `x` has neither NaN nor infinity.
pub(crate) fn is_finite(x: &Tensor) -> Result<bool> {
    Ok(x.f_isfinite()?.f_all()?.int64_value(&[]) != 0)
}

/// Refuses an `x` that has a NaN or an infinity; `what` names it.
///
/// # Errors
/// [`Error::NotFinite`].
pub fn check_finite(x: &Tensor, what: &str) -> Result<()> {
    if is_finite(x)? {
        return Ok(());
    }
    let hint = match x.kind() {
        Kind::Half | Kind::BFloat16 => "compute in f32, or check the weights",
        _ => "check the weights, and lower the guidance or the learning rate that made them",
    };
    Err(Error::NotFinite { what: what.into(), hint: hint.into() })
}

/// An image as the bytes of a PNG file with text entries (prompt, seed, ..). The same input gives the same bytes.
///
/// # Errors
/// [`Error::Input`] for a text key that PNG does not allow (1 to 79 Latin letters), or an empty image.
pub fn encode_png(image: &RgbImage, text: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    let wrong = |e: png::EncodingError| Error::Input { name: "image".into(), expected: "what PNG can hold".into(), got: e.to_string() };
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, image.width(), image.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    for (key, value) in text {
        // Plain text entries are Latin-1; the international ones hold everything.
        let add = if value.is_ascii() { png::Encoder::add_text_chunk } else { png::Encoder::add_itxt_chunk };
        add(&mut encoder, key.clone(), value.clone()).map_err(wrong)?;
    }
    let mut writer = encoder.write_header().map_err(wrong)?;
    writer.write_image_data(image.as_raw()).map_err(wrong)?;
    writer.finish().map_err(wrong)?;
    Ok(out)
}

/// Writes a PNG file, whole or not at all.
///
/// # Errors
/// As [`encode_png`]; [`Error::Io`] when the folder cannot be written.
pub fn write_png(path: impl AsRef<Path>, image: &RgbImage, text: &BTreeMap<String, String>) -> Result<()> {
    Ok(artifact::write_bytes(path.as_ref(), &encode_png(image, text)?)?)
}

/// Reads an image file as [`decode`] does.
///
/// # Errors
/// [`Error::Io`] when it cannot be read, [`Error::Format`] when it is no intact image.
pub fn read_image(path: impl AsRef<Path>) -> Result<RgbImage> {
    let path = path.as_ref();
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    decode(&bytes).map_err(|e| not_an_image(path, &e))
}

/// The text entries of a PNG file.
///
/// # Errors
/// As [`read_image`].
pub fn read_png_text(path: impl AsRef<Path>) -> Result<BTreeMap<String, String>> {
    let path = path.as_ref();
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let mut reader = png::Decoder::new(Cursor::new(bytes)).read_info().map_err(|e| not_an_image(path, &e))?;
    // Entries may also stand after the pixels.
    reader.finish().map_err(|e| not_an_image(path, &e))?;
    let info = reader.info();
    let mut out = BTreeMap::new();
    for entry in &info.uncompressed_latin1_text {
        out.insert(entry.keyword.clone(), entry.text.clone());
    }
    for entry in &info.utf8_text {
        out.insert(entry.keyword.clone(), entry.get_text().map_err(|e| not_an_image(path, &e))?);
    }
    Ok(out)
}

fn not_an_image(path: &Path, e: &dyn std::fmt::Display) -> Error {
    Error::Format { path: path.into(), problem: format!("not an intact image ({e})"), hint: "give a PNG, JPEG or WebP file".into() }
}

/// The largest middle part of an image with the proportions of `width` x `height`, scaled to that size (Lanczos).
///
/// # Errors
/// [`Error::Input`] for an empty image or size.
pub fn fit(image: &RgbImage, width: u32, height: u32) -> Result<RgbImage> {
    let (w, h) = image.dimensions();
    if w == 0 || h == 0 || width == 0 || height == 0 {
        let got = format!("{w} x {h} for {width} x {height}");
        return Err(Error::Input { name: "image".into(), expected: "at least one pixel".into(), got });
    }
    // How many of its pixels one pixel of the result stands for; the smaller side decides.
    let scale = (f64::from(w) / f64::from(width)).min(f64::from(h) / f64::from(height));
    let part = |side: u32, all: u32| ((f64::from(side) * scale).round() as u32).clamp(1, all);
    let (cw, ch) = (part(width, w), part(height, h));
    let middle = imageops::crop_imm(image, (w - cw) / 2, (h - ch) / 2, cw, ch).to_image();
    if (cw, ch) == (width, height) {
        return Ok(middle);
    }
    Ok(imageops::resize(&middle, width, height, imageops::FilterType::Lanczos3))
}

/// Height and width in pixels.
pub type Size = (i64, i64);

/// Sizes of about the area of `size` x `size`, not longer than twice their width, with sides that are multiples of `step`: the
/// buckets of training on images of many proportions (as in SDXL, arXiv 2307.01952, section 2.3).
pub fn aspect_sizes(size: i64, step: i64) -> Vec<Size> {
    let widths = (1..=2 * size / step).map(|n| n * step);
    let sizes = widths.map(|w| (size * size / w / step * step, w));
    sizes.filter(|&(h, w)| h > 0 && h <= 2 * w && w <= 2 * h).collect()
}

/// The position of the size with the most alike proportions; `None` when there is no size.
pub fn nearest_size(sizes: &[Size], height: u32, width: u32) -> Option<usize> {
    let wanted = (f64::from(width) / f64::from(height)).ln();
    let distance = |&(h, w): &Size| ((w as f64 / h as f64).ln() - wanted).abs();
    (0..sizes.len()).min_by(|&a, &b| distance(&sizes[a]).total_cmp(&distance(&sizes[b])))
}

/// Images side by side, row by row, `gap` white pixels between and around them. Each has a cell of the largest size.
///
/// # Errors
/// [`Error::Input`] when there is no image or no column.
pub fn grid(images: &[&RgbImage], columns: usize, gap: u32) -> Result<RgbImage> {
    if images.is_empty() || columns == 0 {
        let got = format!("{} images in {columns} columns", images.len());
        return Err(Error::Input { name: "grid".into(), expected: "at least one image and one column".into(), got });
    }
    let columns = columns.min(images.len());
    let rows = images.len().div_ceil(columns);
    let w = images.iter().map(|p| p.width()).max().unwrap_or(0);
    let h = images.iter().map(|p| p.height()).max().unwrap_or(0);
    let side = |n: usize, cell: u32| n as u32 * (cell + gap) + gap;
    let mut out = RgbImage::from_pixel(side(columns, w), side(rows, h), image::Rgb([255; 3]));
    for (i, p) in images.iter().enumerate() {
        imageops::replace(&mut out, *p, side(i % columns, w).into(), side(i / columns, h).into());
    }
    Ok(out)
}
