//! The pixel contract of a model: from an image file to the f32 values that enter the network.

use serde::{Deserialize, Serialize};

use super::decode::{RgbImage, decode};
use super::resize::resize_bicubic;
use super::standardise::standardise;
use crate::error::{Error, Result};

/// How pixels are interpolated; there is one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    /// Pillow's antialiased bicubic.
    #[default]
    Bicubic,
}

/// What a model expects of its pixels: the `pixels` object of a package's `medtune.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PixelContract {
    /// JPEG quality of the standardised image, 1 to 100.
    #[serde(rename = "image_standardization_jpeg_compression_ratio")]
    pub jpeg_quality: u8,
    /// Side of the standardised image, in pixels.
    #[serde(rename = "image_standardization_image_size")]
    pub standard_size: u32,
    /// [height, width] of the model's input, in pixels.
    pub image_size: [u32; 2],
    /// Mean of each channel (red, green, blue) on the scale 0 to 1.
    pub mean: [f32; 3],
    /// Standard deviation of each channel on the scale 0 to 1.
    pub std: [f32; 3],
    /// How images are resized.
    #[serde(default)]
    pub interpolation: Interpolation,
}

/// The contract of the published base model: 512 pixels at quality 75, then 480 pixels, ImageNet mean and deviation.
impl Default for PixelContract {
    fn default() -> Self {
        PixelContract {
            jpeg_quality: 75,
            standard_size: 512,
            image_size: [480, 480],
            mean: [0.485, 0.456, 0.406],
            std: [0.229, 0.224, 0.225],
            interpolation: Interpolation::Bicubic,
        }
    }
}

impl PixelContract {
    /// Checks that the numbers make sense.
    ///
    /// # Errors
    /// `Config`, naming the key.
    pub fn validate(&self) -> Result<()> {
        let side = 1..=4096;
        if !(1..=100).contains(&self.jpeg_quality) {
            return Err(Error::config(format!(
                "image_standardization_jpeg_compression_ratio is {}; it must be within 1 to 100",
                self.jpeg_quality
            )));
        }
        if !side.contains(&self.standard_size) {
            return Err(Error::config(format!(
                "image_standardization_image_size is {}; it must be within 1 to 4096",
                self.standard_size
            )));
        }
        if !self.image_size.iter().all(|s| side.contains(s)) {
            return Err(Error::config(format!(
                "image_size is {:?}; both sides must be within 1 to 4096",
                self.image_size
            )));
        }
        if !(self.mean.iter().all(|m| m.is_finite()) && self.std.iter().all(|s| s.is_finite() && *s > 0.0)) {
            return Err(Error::config("mean must be finite and std positive, one number for each of three channels"));
        }
        Ok(())
    }

    /// The settings as JSON, numbers as short as they were written.
    ///
    /// # Errors
    /// `Internal`.
    pub fn to_json(&self) -> Result<serde_json::Value> {
        // through text: a f32 made a JSON value directly shows the digits of its f64 neighbour
        let text = serde_json::to_string(self);
        text.and_then(|t| serde_json::from_str(&t))
            .map_err(|e| Error::internal("pixel settings are no JSON").with_source(e))
    }

    /// Height of the model's input, in pixels.
    #[must_use]
    pub fn height(&self) -> usize {
        self.image_size[0] as usize
    }

    /// Width of the model's input, in pixels.
    #[must_use]
    pub fn width(&self) -> usize {
        self.image_size[1] as usize
    }

    /// Values of one image's tensor: 3 x height x width.
    #[must_use]
    pub fn tensor_len(&self) -> usize {
        3 * self.height() * self.width()
    }

    /// Takes one image file through the whole pixel path but for its last step: decode, resize to the standard size, JPEG, decode,
    /// resize to the model's size. Writes red, green and blue of each pixel, [height, width, 3], to `out`.
    ///
    /// # Errors
    /// `Data` as [`decode`], without the image's name; `Internal` when `out` has not [`tensor_len`](Self::tensor_len) bytes.
    pub fn load_rgb(&self, bytes: &[u8], out: &mut [u8]) -> Result<()> {
        let standard = standardise(bytes, self.standard_size as usize, self.jpeg_quality)?;
        let image = resize_bicubic(&decode(&standard)?, self.width(), self.height());
        if image.pixels().len() != out.len() {
            return Err(Error::internal(format!("{image:?} does not fit {} bytes", out.len())));
        }
        out.copy_from_slice(image.pixels());
        Ok(())
    }

    /// Takes a file that was standardised before (image TSVs as `Prepare` writes them) to the model's input: decode, resize to the
    /// model's size, normalise. Writes [3, height, width] to `out`.
    ///
    /// # Errors
    /// As [`load_rgb`](Self::load_rgb).
    pub fn load_standardised(&self, bytes: &[u8], out: &mut [f32]) -> Result<()> {
        self.normalise(&resize_bicubic(&decode(bytes)?, self.width(), self.height()), out)
    }

    /// Writes `(v / 255 - mean) / std` in f32 to `out` [3, height, width].
    ///
    /// # Errors
    /// `Internal` when the image has not the model's size, or `out` not [`tensor_len`](Self::tensor_len) values.
    pub fn normalise(&self, image: &RgbImage, out: &mut [f32]) -> Result<()> {
        if (image.width(), image.height()) != (self.width(), self.height()) || out.len() != self.tensor_len() {
            return Err(Error::internal(format!(
                "pixels of {image:?} do not fit {} values of a {} x {} input",
                out.len(),
                self.width(),
                self.height()
            )));
        }
        self.normalise_rgb(image.pixels(), out);
        Ok(())
    }

    /// [`normalise`](Self::normalise) of what [`load_rgb`](Self::load_rgb) writes; both have [`tensor_len`](Self::tensor_len) values.
    pub(crate) fn normalise_rgb(&self, rgb: &[u8], out: &mut [f32]) {
        for (channel, plane) in out.chunks_exact_mut(self.height() * self.width()).enumerate() {
            let table = self.table(channel);
            for (value, pixel) in plane.iter_mut().zip(rgb.chunks_exact(3)) {
                *value = table[usize::from(pixel[channel])];
            }
        }
    }

    /// The normalised value of each byte: 256 divisions instead of one a pixel, with the same result.
    fn table(&self, channel: usize) -> [f32; 256] {
        std::array::from_fn(|byte| (byte as f32 / 255.0 - self.mean[channel]) / self.std[channel])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_the_names_of_the_package() {
        let text = r#"{"image_standardization_jpeg_compression_ratio":75,"image_standardization_image_size":512,
            "image_size":[480,480],"mean":[0.485,0.456,0.406],"std":[0.229,0.224,0.225],"interpolation":"bicubic"}"#;
        let contract: PixelContract = serde_json::from_str(text).unwrap();
        assert_eq!(contract, PixelContract::default());
        let again: PixelContract = serde_json::from_str(&serde_json::to_string(&contract).unwrap()).unwrap();
        assert_eq!(again, contract);
        assert!(serde_json::from_str::<PixelContract>(&text.replace("bicubic", "nearest")).is_err());
    }

    #[test]
    fn normalises_planes_in_channel_order() {
        let contract =
            PixelContract { image_size: [1, 2], mean: [0.5; 3], std: [0.5, 0.25, 1.0], ..PixelContract::default() };
        let image = RgbImage::new(2, 1, vec![255, 0, 51, 0, 255, 102]).unwrap();
        let mut out = vec![0.0; contract.tensor_len()];
        contract.normalise(&image, &mut out).unwrap();
        assert_eq!(out, [1.0, -1.0, -2.0, 2.0, 51.0_f32 / 255.0 - 0.5, 102.0_f32 / 255.0 - 0.5]);
        assert!(contract.normalise(&image, &mut out[1..]).is_err());
    }

    #[test]
    fn wrong_numbers_are_refused_by_name() {
        let wrong = PixelContract { jpeg_quality: 0, ..PixelContract::default() };
        assert!(wrong.validate().unwrap_err().to_string().contains("jpeg_compression_ratio"));
        let wrong = PixelContract { std: [0.1, 0.0, 0.1], ..PixelContract::default() };
        assert!(wrong.validate().is_err());
        assert!(PixelContract::default().validate().is_ok());
    }
}
