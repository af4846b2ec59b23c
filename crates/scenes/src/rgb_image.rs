//! An image in memory, the form in which scenes leave the renderer and generated images reach the checker.

use crate::error::ScenesError;

/// An image of 8-bit red, green and blue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RgbImage {
    width: usize,
    height: usize,
    data: Vec<u8>,
}

impl RgbImage {
    /// Takes a buffer of `width * height * 3` bytes, rows from the top, pixels from the left, red first.
    ///
    /// # Errors
    /// [`ScenesError::Image`] if a side is zero or the buffer has another length.
    pub fn new(width: usize, height: usize, data: Vec<u8>) -> Result<RgbImage, ScenesError> {
        let needed = width.checked_mul(height).and_then(|n| n.checked_mul(3));
        if width == 0 || height == 0 || needed != Some(data.len()) {
            return Err(ScenesError::Image {
                expected: "two sides of at least one pixel and 3 bytes per pixel".to_owned(),
                got: format!("{width} x {height} pixels and {} bytes", data.len()),
            });
        }
        Ok(RgbImage { width, height, data })
    }

    /// Width in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Height in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The bytes, `height x width x 3`.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// The bytes, without a copy.
    pub fn into_data(self) -> Vec<u8> {
        self.data
    }
}
