//! Peak signal-to-noise ratio of a student's image against the teacher's of the same prompt and seed. Evaluation stage.

use image::RgbImage;

use crate::error::{Error, Result};

/// The value of equal images, whose ratio is infinite, so that means exist; one byte of a 64-pixel image off gives 89 dB.
pub const PSNR_OF_EQUAL: f64 = 100.0;

/// `10 log10(255^2 / mean squared difference)` over all bytes, in decibels, at most [`PSNR_OF_EQUAL`].
///
/// It tells how near a student stays to the teacher's very image; a good image of the prompt may still be far from it.
///
/// # Errors
/// [`Error::Input`] when the sizes differ or a side is zero.
pub fn psnr(a: &RgbImage, b: &RgbImage) -> Result<f64> {
    if a.dimensions() != b.dimensions() || a.as_raw().is_empty() {
        return Err(Error::input("images", format!("two of {:?} pixels", a.dimensions()), format!("{:?}", b.dimensions())));
    }
    let squares: f64 = a.as_raw().iter().zip(b.as_raw()).map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).sum();
    let mse = squares / a.as_raw().len() as f64;
    Ok((10.0 * (255.0 * 255.0 / mse).log10()).min(PSNR_OF_EQUAL))
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    #[test]
    fn known_values() {
        let at = |v: u8| RgbImage::from_pixel(4, 2, Rgb([v, v, v]));
        assert_eq!(psnr(&at(9), &at(9)).unwrap(), PSNR_OF_EQUAL);
        assert_eq!(psnr(&at(0), &at(255)).unwrap(), 0.0);
        // A difference of 1 everywhere: 20 log10 255.
        assert!((psnr(&at(9), &at(10)).unwrap() - 48.130803608679344).abs() < 1e-9);
        assert!(psnr(&at(1), &RgbImage::new(3, 2)).is_err());
    }
}
