//! Decoding of image files to 8-bit RGB.
//!
//! Guarantees: pixels of JPEG files, and of losslessly stored PNG, BMP, TIFF and WebP files of every mode that is read, are
//! those that Pillow's `ImageOps.exif_transpose(image).convert("RGB")` gives (16-bit grey, which Pillow does not scale, is
//! rounded to 8 bits); a truncated file is an error, never a half-grey image; the size in the header is checked before any memory
//! is reserved.

use std::io::Cursor;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader};

use super::{jpeg, tiff};
use crate::error::{Error, Result};

/// The largest image that is decoded, in pixels: the size at which Pillow refuses a file as a decompression bomb.
pub const MAX_PIXELS: usize = 178_956_970;

/// The longest side that is read, JPEG's own limit: resizing a longer one by one axis at a time could take any memory.
pub const MAX_SIDE: usize = 65_535;

/// An 8-bit RGB image: `height` rows of `width` pixels of three bytes, no padding.
#[derive(Clone, PartialEq, Eq)]
pub struct RgbImage {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) pixels: Vec<u8>,
}

impl RgbImage {
    /// An image over `pixels` [height, width, 3].
    ///
    /// # Errors
    /// `Data` when a side is 0 or `pixels` has another length.
    pub fn new(width: usize, height: usize, pixels: Vec<u8>) -> Result<Self> {
        let expected = width.checked_mul(height).and_then(|n| n.checked_mul(3));
        if width == 0 || height == 0 || expected != Some(pixels.len()) {
            return Err(Error::data(format!("an image of {width} x {height} pixels has {} bytes", pixels.len())));
        }
        Ok(RgbImage { width, height, pixels })
    }

    /// Pixels in a row.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows.
    #[must_use]
    pub fn height(&self) -> usize {
        self.height
    }

    /// The bytes [height, width, 3].
    #[must_use]
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// The bytes [height, width, 3], without a copy.
    #[must_use]
    pub fn into_pixels(self) -> Vec<u8> {
        self.pixels
    }

    /// The rectangle whose upper left corner is (`x`, `y`).
    ///
    /// # Errors
    /// `Data` when it is empty or leaves the image.
    pub fn crop(&self, x: usize, y: usize, width: usize, height: usize) -> Result<RgbImage> {
        self.check_crop([x, y, width, height])?;
        let rows = self.pixels.chunks_exact(self.width * 3).skip(y).take(height);
        let pixels = rows.flat_map(|row| &row[x * 3..(x + width) * 3]).copied().collect();
        RgbImage::new(width, height, pixels)
    }

    /// Refuses a rectangle (x, y, width, height) that is empty or leaves the image.
    pub(super) fn check_crop(&self, [x, y, width, height]: [usize; 4]) -> Result<()> {
        let inside = x.checked_add(width).is_some_and(|end| end <= self.width)
            && y.checked_add(height).is_some_and(|end| end <= self.height);
        if inside && width > 0 && height > 0 {
            return Ok(());
        }
        Err(Error::data(format!(
            "a crop of {width} x {height} pixels at ({x}, {y}) is empty or leaves the image of {} x {} pixels",
            self.width, self.height
        )))
    }

    /// Mirrors every row.
    pub fn flip_horizontal(&mut self) {
        for row in self.pixels.chunks_exact_mut(self.width * 3) {
            for x in 0..self.width / 2 {
                let other = self.width - 1 - x;
                for channel in 0..3 {
                    row.swap(x * 3 + channel, other * 3 + channel);
                }
            }
        }
    }

    /// Reverses the order of the rows.
    pub fn flip_vertical(&mut self) {
        let stride = self.width * 3;
        for y in 0..self.height / 2 {
            let (upper, lower) = self.pixels.split_at_mut((self.height - 1 - y) * stride);
            upper[y * stride..(y + 1) * stride].swap_with_slice(&mut lower[..stride]);
        }
    }
}

/// Shows the size only: pixels do not belong into logs.
impl std::fmt::Debug for RgbImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RgbImage({} x {})", self.width, self.height)
    }
}

/// Decodes a JPEG, PNG, TIFF, BMP or WebP file to RGB: EXIF orientation applied, alpha dropped, grey replicated. 16-bit
/// grey becomes `(v + 128) / 257`; of other 16-bit values the high byte is taken, as Pillow does.
///
/// # Errors
/// `Data`, without the image's name (the caller knows it): unknown format or mode, truncated or damaged file, too many
/// pixels.
pub fn decode(bytes: &[u8]) -> Result<RgbImage> {
    if jpeg::is_jpeg(bytes) {
        return oriented(jpeg::decode(bytes)?, jpeg::orientation(bytes));
    }
    if tiff::is_tiff(bytes) {
        let (image, orientation) = tiff::decode(bytes)?;
        return oriented(image, orientation);
    }
    let mut decoder = open(bytes)?;
    let mut orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    if orientation == Orientation::NoTransforms {
        let xmp = decoder.xmp_metadata().ok().flatten();
        orientation = xmp.and_then(|xmp| xmp_orientation(&xmp)).unwrap_or(orientation);
    }
    let mut image = DynamicImage::from_decoder(decoder).map_err(failure)?;
    image.apply_orientation(orientation);
    let image = into_rgb8(image);
    let (width, height) = (image.width() as usize, image.height() as usize);
    RgbImage::new(width, height, image.into_raw())
}

/// Checks without decoding pixels that `bytes` are an image that [`decode`] can read: format, header, size limit and, for
/// JPEG, that the end of the file is there. Returns (width, height) as stored, before any EXIF rotation.
///
/// # Errors
/// `Data`, as [`decode`].
pub fn check_image(bytes: &[u8]) -> Result<(usize, usize)> {
    if jpeg::is_jpeg(bytes) {
        let size = jpeg::size(bytes)?;
        jpeg::check_end(bytes)?;
        return Ok(size);
    }
    if tiff::is_tiff(bytes) {
        return tiff::size(bytes);
    }
    let (width, height) = open(bytes)?.dimensions();
    Ok((width as usize, height as usize))
}

/// Refuses images of no pixel, of more than [`MAX_PIXELS`], or with a side longer than [`MAX_SIDE`].
pub(super) fn check_pixels(width: usize, height: usize) -> Result<()> {
    if width.max(height) > MAX_SIDE || width.checked_mul(height).is_none_or(|n| n == 0 || n > MAX_PIXELS) {
        return Err(Error::data(format!(
            "the image is {width} x {height} pixels; the limit is {MAX_PIXELS} pixels and {MAX_SIDE} a side: make it smaller"
        )));
    }
    Ok(())
}

fn open(bytes: &[u8]) -> Result<impl ImageDecoder> {
    if bytes.is_empty() {
        return Err(Error::data("the image is empty (0 bytes): replace it"));
    }
    let format = match image::guess_format(bytes) {
        Ok(format @ (ImageFormat::Png | ImageFormat::Bmp | ImageFormat::WebP)) => format,
        _ => return Err(Error::data("not an image in a known format: use JPEG, PNG, TIFF, BMP or WebP")),
    };
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = image::Limits::default();
    // eight bytes a pixel is the most that a 16-bit RGBA image needs
    limits.max_alloc = Some(MAX_PIXELS as u64 * 8);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(failure)?;
    let (width, height) = decoder.dimensions();
    check_pixels(width as usize, height as usize)?;
    Ok(decoder)
}

fn into_rgb8(image: DynamicImage) -> image::RgbImage {
    let high = |value: u16| (value >> 8) as u8;
    match image {
        DynamicImage::ImageRgb16(_) | DynamicImage::ImageRgba16(_) => {
            let image = image.into_rgb16();
            image::RgbImage::from_fn(image.width(), image.height(), |x, y| {
                image::Rgb(image.get_pixel(x, y).0.map(high))
            })
        }
        DynamicImage::ImageLumaA16(image) => image::RgbImage::from_fn(image.width(), image.height(), |x, y| {
            image::Rgb([high(image.get_pixel(x, y).0[0]); 3])
        }),
        other => other.into_rgb8(),
    }
}

/// The orientation that XMP metadata name, as attribute or as element.
pub(super) fn xmp_orientation(xmp: &[u8]) -> Option<Orientation> {
    const NAME: &[u8] = b"tiff:Orientation";
    let after = xmp.windows(NAME.len()).position(|w| w == NAME)? + NAME.len();
    let rest = &xmp[after..];
    let digit = rest.strip_prefix(b"=\"").or_else(|| rest.strip_prefix(b">"))?.first()?;
    Orientation::from_exif(digit.checked_sub(b'0')?)
}

fn failure(error: image::ImageError) -> Error {
    Error::data("the image cannot be decoded, it is truncated or damaged: replace it").with_source(error)
}

fn oriented(image: RgbImage, orientation: Orientation) -> Result<RgbImage> {
    if orientation == Orientation::NoTransforms {
        return Ok(image);
    }
    let (width, height) = (image.width as u32, image.height as u32);
    let buffer = image::RgbImage::from_raw(width, height, image.pixels)
        .ok_or_else(|| Error::internal("an image's size does not fit its bytes"))?;
    let mut image = DynamicImage::ImageRgb8(buffer);
    image.apply_orientation(orientation);
    let image = image.into_rgb8();
    RgbImage::new(image.width() as usize, image.height() as usize, image.into_raw())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_very_long_side_is_refused() {
        for (width, height) in [(1, 70_000), (70_000, 1)] {
            let mut png = Vec::new();
            let line = image::GrayImage::new(width, height);
            line.write_to(&mut Cursor::new(&mut png), ImageFormat::Png).unwrap();
            let error = decode(&png).unwrap_err().to_string();
            assert!(error.contains("70000") && error.contains("65535 a side"), "{error}");
            assert!(check_image(&png).is_err());
        }
    }
}
