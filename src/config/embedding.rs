//! The parameters of Embed.

use super::parameters::{in_range, one_label};
use crate::error::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The number type in which the towers compute. Embeddings are f32 in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum InferencePrecision {
    /// 32-bit floats.
    #[default]
    F32,
    /// bfloat16; norms, softmax and sums in f32. Faster on GPUs and on processors with AVX512-BF16, at 8 bits of precision.
    Bf16,
}

impl InferencePrecision {
    /// Its name in job files and records.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            InferencePrecision::F32 => "f32",
            InferencePrecision::Bf16 => "bf16",
        }
    }
}

/// A form that vectors are written in besides Parquet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum EmbedForm {
    /// A NumPy array.
    Npy,
    /// A pickled pandas DataFrame, as the original component writes it.
    Pickle,
}

/// The share of bad images that is allowed when a job sets no limit.
const MAX_BAD_SHARE: f64 = 0.01;

/// Parameters of Embed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EmbedParameters {
    /// JPEG quality of the standardisation before the model; the package's own value when left out.
    pub image_standardization_jpeg_compression_ratio: Option<u8>,
    /// Side in pixels of the standardised square; the package's own value when left out.
    pub image_standardization_image_size: Option<u32>,
    /// The column of encoded images of Parquet and Arrow files; when left out, the only one that can be, or one with a usual name.
    pub image_column: Option<String>,
    /// The column of keys of Parquet and Arrow files; when left out, one with a usual name, or else the path beside the
    /// image, or file name and row number.
    pub key_column: Option<String>,
    /// Images a forward pass.
    pub batch_size: usize,
    /// The text that a label becomes, when label_file is given; `{}` is the label.
    pub text_template: String,
    /// The number type of the computation.
    pub precision: InferencePrecision,
    /// What is written besides Parquet.
    pub formats: Vec<EmbedForm>,
    /// Rows of a part: what is kept when a run is killed, and one Parquet file; when left out, 512 on a CPU and 8192 on a GPU.
    pub shard_rows: Option<usize>,
    /// More bad images than this fail the job; no limit of this kind when left out.
    pub max_bad_images: Option<u64>,
    /// A larger share of bad images than this, 0 to 1, fails the job; 0.01 when neither limit is given.
    pub max_bad_share: Option<f64>,
    /// Whether vectors of the newest version of the output are taken over for images that it has already.
    pub reuse: bool,
}

impl Default for EmbedParameters {
    fn default() -> Self {
        EmbedParameters {
            image_standardization_jpeg_compression_ratio: None,
            image_standardization_image_size: None,
            image_column: None,
            key_column: None,
            batch_size: 32,
            text_template: "{}.".to_owned(),
            precision: InferencePrecision::default(),
            formats: Vec::new(),
            shard_rows: None,
            max_bad_images: None,
            max_bad_share: None,
            reuse: true,
        }
    }
}

impl EmbedParameters {
    pub(super) fn validate(&self) -> Result<()> {
        in_range("batch_size", self.batch_size as u64, 1, 65_536)?;
        if let Some(quality) = self.image_standardization_jpeg_compression_ratio {
            in_range("image_standardization_jpeg_compression_ratio", quality.into(), 1, 100)?;
        }
        if let Some(size) = self.image_standardization_image_size {
            in_range("image_standardization_image_size", size.into(), 8, 4096)?;
        }
        if let Some(rows) = self.shard_rows {
            in_range("shard_rows", rows as u64, 1, 1 << 20)?;
        }
        one_label("text_template", &self.text_template)?;
        match self.max_bad_share.filter(|share| !(0.0..=1.0).contains(share)) {
            Some(share) => Err(Error::config(format!("parameters.max_bad_share: {share} is not a share from 0 to 1"))),
            None => Ok(()),
        }
    }

    /// What attempts that go on from one another must share: the others, which no vector depends on, have their defaults.
    #[must_use]
    pub fn for_resuming(&self) -> EmbedParameters {
        let EmbedParameters { formats, max_bad_images, max_bad_share, reuse, text_template, .. } =
            EmbedParameters::default();
        EmbedParameters { formats, max_bad_images, max_bad_share, reuse, text_template, ..self.clone() }
    }

    /// Whether so many bad ones among so many images are too many; the parameter that says so.
    #[must_use]
    pub fn too_many(&self, bad: u64, images: u64) -> Option<String> {
        if let Some(limit) = self.max_bad_images.filter(|limit| bad > *limit) {
            return Some(format!("max_bad_images is {limit}"));
        }
        let share = self.max_bad_share.or_else(|| self.max_bad_images.is_none().then_some(MAX_BAD_SHARE))?;
        (images > 0 && bad as f64 / images as f64 > share).then(|| format!("max_bad_share is {share}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_counts_and_shares() {
        let parameters = |count, share| EmbedParameters {
            max_bad_images: count,
            max_bad_share: share,
            ..EmbedParameters::default()
        };
        assert_eq!(parameters(None, None).too_many(1, 100), None);
        assert!(parameters(None, None).too_many(2, 100).unwrap().contains("max_bad_share is 0.01"));
        assert!(parameters(Some(0), None).too_many(1, 100).unwrap().contains("max_bad_images is 0"));
        assert_eq!(parameters(Some(3), None).too_many(3, 3), None);
        assert!(parameters(Some(3), Some(0.5)).too_many(3, 3).unwrap().contains("max_bad_share is 0.5"));
        assert_eq!(parameters(None, Some(0.0)).too_many(0, 0), None);
        assert_eq!(parameters(None, Some(0.29)).too_many(29, 100), None);
        assert!(
            parameters(None, Some(f64::NAN)).validate().is_err() && parameters(None, Some(1.5)).validate().is_err()
        );
    }
}
