//! The forward and backward passes of one optimizer step: they add up gradients, and nothing else.
//!
//! With [`ContrastiveBatch::Total`] the loss compares all rows of the step although only one micro-batch is in memory at a time:
//! a first round computes the features without gradients; the loss over all of them gives each feature's gradient; a
//! second round computes the features again, one micro-batch at a time, and sends those gradients through the model. The
//! sum is the gradient of the whole batch. Drop path and augmentation are keyed by sample, so both rounds agree.

use super::evaluation::distinct;
use super::loader::Batch;
use super::loss::{Targets, positive_groups, unicl_loss};
use super::precision::Mode;
use crate::config::parameters::ContrastiveBatch;
use crate::data::ImageTextPairs;
use crate::error::Result;
use crate::infer::Encoder;
use crate::model::droppath::DropPath;
use crate::model::{TchResult, engine};
use tch::{Device, Kind, Tensor};

/// How passes are computed.
#[derive(Debug)]
pub(super) struct Passes<'a> {
    pub(super) encoder: &'a Encoder,
    pub(super) pairs: &'a ImageTextPairs,
    pub(super) device: Device,
    pub(super) mode: Mode,
    pub(super) contrast: ContrastiveBatch,
    pub(super) seed: u64,
}

/// What one loss was computed over.
#[derive(Debug)]
pub(super) struct Compared {
    /// Row numbers in the training set.
    pub(super) rows: Vec<usize>,
    /// Its share of the step's loss, without the loss scale.
    pub(super) loss: f64,
}

impl Passes<'_> {
    /// Adds the gradients of a step of `count` micro-batches, times `scale`, to those of the parameters.
    pub(super) fn run(
        &self,
        count: usize,
        scale: f64,
        next: &mut dyn FnMut() -> Result<Batch>,
    ) -> Result<Vec<Compared>> {
        if count == 1 || self.contrast == ContrastiveBatch::Micro {
            return (0..count).map(|_| self.one(&next()?, count, scale)).collect();
        }
        let batches = (0..count).map(|_| next()).collect::<Result<Vec<_>>>()?;
        Ok(vec![self.total(&batches, scale)?])
    }

    fn one(&self, batch: &Batch, count: usize, scale: f64) -> Result<Compared> {
        let (images, texts) = self.features(batch)?;
        let loss = unicl_loss(&images, &texts, &self.encoder.model().logit_scale(), &self.targets(std::slice::from_ref(batch)))?;
        let part = loss.f_div_scalar(count as f64).map_err(engine)?;
        backward(&part, scale).map_err(engine)?;
        Ok(Compared { rows: batch.rows.clone(), loss: part.f_double_value(&[]).map_err(engine)? })
    }

    fn total(&self, batches: &[Batch], scale: f64) -> Result<Compared> {
        let (mut images, mut texts) = (Vec::new(), Vec::new());
        {
            let _guard = tch::no_grad_guard();
            for batch in batches {
                let (image, text) = self.features(batch)?;
                images.push(image.f_to_kind(Kind::Float).map_err(engine)?);
                texts.push(text.f_to_kind(Kind::Float).map_err(engine)?);
            }
        }
        let leaf = |parts: &[Tensor]| Tensor::f_cat(parts, 0)?.f_set_requires_grad(true);
        let (images, texts) = (leaf(&images).map_err(engine)?, leaf(&texts).map_err(engine)?);
        let loss = unicl_loss(&images, &texts, &self.encoder.model().logit_scale(), &self.targets(batches))?;
        backward(&loss, scale).map_err(engine)?;
        let mut first = 0;
        for batch in batches {
            let (image, text) = self.features(batch)?;
            let length = batch.rows.len() as i64;
            let pull = |features: &Tensor, leaf: &Tensor| {
                let gradient = leaf.f_grad()?.f_narrow(0, first, length)?;
                features.f_to_kind(Kind::Float)?.f_mul(&gradient)?.f_sum(Kind::Float)
            };
            (|| pull(&image, &images)?.f_add(&pull(&text, &texts)?)?.f_backward())().map_err(engine)?;
            first += length;
        }
        let rows = batches.iter().flat_map(|b| b.rows.iter().copied()).collect();
        Ok(Compared { rows, loss: loss.f_double_value(&[]).map_err(engine)? })
    }

    /// Image and text features of a micro-batch, both [B, d].
    fn features(&self, batch: &Batch) -> Result<(Tensor, Tensor)> {
        let pixels = self.encoder.pixels();
        let shape = [batch.rows.len() as i64, 3, pixels.height() as i64, pixels.width() as i64];
        let input = Tensor::f_from_slice(&batch.pixels).and_then(|x| x.f_view(shape)?.f_to_device(self.device));
        let input = input.map_err(engine)?;
        let samples = batch.rows.iter().map(|&r| r as u64).collect();
        let drop_path = DropPath { seed: self.seed, epoch: batch.epoch as u64, samples };
        // rows with the same text share one pass of the text tower: the gradient is the same sum
        let (texts, rows) = distinct(&batch.texts)?;
        let (ids, mask) = self.encoder.tokens(&texts)?;
        let rows = Tensor::f_from_slice(&rows).and_then(|r| r.f_to_device(self.device)).map_err(engine)?;
        let model = self.encoder.model();
        self.mode.cast(self.device, || {
            let images = model.encode_image(&input, Some(&drop_path))?;
            let texts = model.encode_text(&ids, &mask)?.f_index_select(0, &rows).map_err(engine)?;
            Ok((images, texts))
        })
    }

    /// What the rows of these micro-batches are drawn to, compared all together.
    fn targets(&self, batches: &[Batch]) -> Targets {
        let rows = self.pairs.rows();
        let all = batches.iter().flat_map(|b| &b.rows);
        let groups = positive_groups(all.map(|&r| rows[r].positive()));
        let mut mixed = Vec::new();
        if batches.iter().any(|b| b.mix.is_some()) {
            for batch in batches {
                let (first, count) = (mixed.len(), batch.rows.len());
                // an image that is not mixed is mixed with itself
                mixed.extend((0..count).map(|i| batch.mix.map_or((first + i, 1.0), |own| (first + count - 1 - i, own))));
            }
        }
        Targets { groups, mixed }
    }
}

fn backward(loss: &Tensor, scale: f64) -> TchResult<()> {
    if scale == 1.0 { loss.f_backward() } else { loss.f_mul_scalar(scale)?.f_backward() }
}
