//! Standardisation: every image becomes a square JPEG of one size and quality, so that what a model sees does not depend on
//! the device that took the image.

use super::decode::{RgbImage, decode};
use super::jpeg;
use super::resize::resize_bicubic;
use crate::error::{Error, Result};

/// Encodes as baseline JPEG with 4:2:0 chroma, as Pillow's `save(format="JPEG", quality=quality)`.
///
/// # Errors
/// `Config` when `quality` is not within 1..=100; `Data` when the image is too large for JPEG (a side above 65,500).
pub fn encode_jpeg(image: &RgbImage, quality: u8) -> Result<Vec<u8>> {
    if !(1..=100).contains(&quality) {
        return Err(Error::config(format!("JPEG quality {quality} is not within 1 to 100")));
    }
    jpeg::encode(image, quality)
}

/// Decodes `bytes`, resizes to `size` x `size` pixels (the aspect ratio is not kept) and encodes as JPEG.
///
/// # Errors
/// `Data` as [`decode`]; `Config` as [`encode_jpeg`].
pub fn standardise(bytes: &[u8], size: usize, quality: u8) -> Result<Vec<u8>> {
    encode_jpeg(&resize_bicubic(&decode(bytes)?, size, size), quality)
}
