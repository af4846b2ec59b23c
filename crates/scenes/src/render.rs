//! Draws a scene, anti-aliased, at any size: the images on which the embedded model is trained.

use crate::error::ScenesError;
use crate::layout::{CANVAS, PlacedObject, Scene};
use crate::rgb_image::RgbImage;
use crate::words::Texture;

/// Below this the gaps between objects vanish.
const MIN_SIZE: usize = 32;
/// A side with more pixels than this is taken for a mistake.
const MAX_SIZE: usize = 8192;
/// Each pixel is the mean of `SUB x SUB` points.
const SUB: usize = 4;
/// Bands of a striped object, and rows and columns of fields of a checkered one.
const BANDS: f32 = 5.0;

/// Draws the scene as a square of `size x size` pixels.
///
/// # Errors
/// [`ScenesError::Image`] for sizes outside 32..=8192.
pub fn render(scene: &Scene, size: usize) -> Result<RgbImage, ScenesError> {
    if !(MIN_SIZE..=MAX_SIZE).contains(&size) {
        return Err(ScenesError::Image { expected: format!("a size of {MIN_SIZE} to {MAX_SIZE} pixels"), got: size.to_string() });
    }
    let mut data = scene.background.rgb().repeat(size * size);
    let second = scene.background.texture_rgb();
    for object in &scene.objects {
        draw(&mut data, size, object, second);
    }
    RgbImage::new(size, size, data)
}

/// Lays one object over the image.
fn draw(data: &mut [u8], size: usize, object: &PlacedObject, second: [u8; 3]) {
    let scale = CANVAS / size as f32;
    let half = object.extent / 2.0;
    let span = |middle: f32| {
        let low = ((middle - half) / scale).floor().max(0.0) as usize;
        let high = ((middle + half) / scale).ceil().max(0.0) as usize;
        low.min(size)..high.min(size)
    };
    let [cx, cy] = object.center;
    // Points of the pixel in the object's own coordinates, in which its bounding box is -1..1.
    let own = |pixel: usize, sub: usize, middle: f32| ((pixel as f32 + (sub as f32 + 0.5) / SUB as f32) * scale - middle) / half;
    let first = object.color.rgb();
    for y in span(cy) {
        for x in span(cx) {
            let (mut in_first, mut in_second) = (0u32, 0u32);
            for sub_y in 0..SUB {
                let v = own(y, sub_y, cy);
                for sub_x in 0..SUB {
                    let u = own(x, sub_x, cx);
                    if object.shape.contains(u, v) {
                        if is_second(object.texture, u, v) {
                            in_second += 1;
                        } else {
                            in_first += 1;
                        }
                    }
                }
            }
            let all = (SUB * SUB) as u32;
            let behind = all - in_first - in_second;
            let at = (y * size + x) * 3;
            for channel in 0..3 {
                let sum =
                    in_first * u32::from(first[channel]) + in_second * u32::from(second[channel]) + behind * u32::from(data[at + channel]);
                // A mean of bytes, rounded: it fits in a byte.
                data[at + channel] = ((sum + all / 2) / all) as u8;
            }
        }
    }
}

/// Whether a point of the object has the texture's second colour; the outermost bands have the first.
fn is_second(texture: Option<Texture>, u: f32, v: f32) -> bool {
    let band = |w: f32| ((w + 1.0) / 2.0 * BANDS).floor() as i32;
    match texture {
        None => false,
        Some(Texture::Striped) => band(v) % 2 == 1,
        Some(Texture::Checkered) => (band(u) + band(v)) % 2 == 1,
    }
}
