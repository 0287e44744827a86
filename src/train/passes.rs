//! The forward and backward passes of one optimizer step: they add up gradients, and nothing else.
//!
//! With [`ContrastiveBatch::Total`] the loss compares all rows of the step although only one micro-batch is in memory at a time:
//! a first round computes the features without gradients; the loss over all of them gives each feature's gradient; a
//! second round computes the features again, one micro-batch at a time, and sends those gradients through the model. The
//! sum is the gradient of the whole batch. Drop path and augmentation are keyed by sample, so both rounds agree.
//!
//! Several processes compare the rows of all of them: each gathers the features of the others, computes the whole loss, and
//! sends its own features' gradients through the model. The gradients of the step are the sums over the processes, which
//! c10d's Reducer makes while the last backward pass still runs.

use super::evaluation::distinct;
use super::loader::{Batch, Part};
use super::loss::{Targets, positive_groups, unicl_loss};
use super::precision::Mode;
use crate::config::parameters::ContrastiveBatch;
use crate::data::ImageTextPairs;
use crate::distributed::World;
use crate::error::Result;
use crate::infer::Encoder;
use crate::model::droppath::DropPath;
use crate::model::{TchResult, engine, engine_text};
use medtune_native::Reducer;
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
    pub(super) world: &'a World,
    /// Of all trained parameters but the logit scale; there is one where there are several processes.
    pub(super) reducer: Option<&'a Reducer<'a>>,
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
        // the reducer gives means, and sums are asked for
        let scale = scale * self.world.size() as f64;
        let compared = if count == 1 || self.contrast == ContrastiveBatch::Micro {
            (0..count).map(|i| self.one(&next()?, (i + 1 == count, count), scale)).collect::<Result<Vec<_>>>()?
        } else {
            let batches = (0..count).map(|_| next()).collect::<Result<Vec<_>>>()?;
            vec![self.total(&batches, scale)?]
        };
        self.share_logit_scale()?;
        Ok(compared)
    }

    fn one(&self, batch: &Batch, (last, count): (bool, usize), scale: f64) -> Result<Compared> {
        let (images, texts) = self.features(batch)?;
        let (images, texts) = (self.of_all(images)?, self.of_all(texts)?);
        let logit_scale = self.encoder.model().logit_scale();
        let loss = unicl_loss(&images, &texts, &logit_scale, &self.targets(&batch.round))?;
        let part = loss.f_div_scalar(count as f64).map_err(engine)?;
        self.backward(last, || backward(&part, scale))?;
        Ok(Compared { rows: rows(&batch.round), loss: part.f_double_value(&[]).map_err(engine)? })
    }

    /// A backward pass; the last of a step adds up the gradients of all processes.
    fn backward(&self, last: bool, run: impl FnOnce() -> TchResult<()>) -> Result<()> {
        let Some(reducer) = self.reducer.filter(|_| last) else { return run().map_err(engine) };
        let expected = reducer.expect().map_err(|text| engine_text(&text));
        expected.and_then(|()| run().map_err(engine)).map_err(|error| self.world.blame(error))?;
        self.world.settle(self.device)
    }

    /// `[B, d]` features of this process to those of all, `[size * B, d]` by rank; the others' are constants.
    fn of_all(&self, own: Tensor) -> Result<Tensor> {
        if self.world.size() == 1 {
            return Ok(own);
        }
        let own = own.f_to_kind(Kind::Float).map_err(engine)?;
        let gathered = self.world.gather(&own.f_detach().map_err(engine)?)?;
        let part = |rank: usize| {
            if rank == self.world.rank() { Ok(own.shallow_clone()) } else { gathered.f_select(0, rank as i64) }
        };
        let parts = (0..self.world.size()).map(part).collect::<TchResult<Vec<_>>>().map_err(engine)?;
        Tensor::f_cat(&parts, 0).map_err(engine)
    }

    /// Every process has computed the whole gradient of the logit scale, times the number of processes: the mean of what they
    /// have, so that all have the same bits.
    fn share_logit_scale(&self) -> Result<()> {
        let gradient = self.encoder.model().logit_scale().f_grad().map_err(engine)?;
        if self.world.size() == 1 || !gradient.defined() {
            return Ok(());
        }
        let gradient = gradient.detach();
        self.world.sum(std::slice::from_ref(&gradient))?;
        let size = self.world.size() as f64;
        medtune_native::scale(&[gradient], 1.0 / (size * size)).map_err(|text| engine_text(&text))
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
        let (images, texts) = (self.leaf(&images)?, self.leaf(&texts)?);
        let all: Vec<Part> = batches.iter().flat_map(|b| b.round.iter().cloned()).collect();
        let loss = unicl_loss(&images, &texts, &self.encoder.model().logit_scale(), &self.targets(&all))?;
        backward(&loss, scale).map_err(engine)?;
        let (rank, size) = (self.world.rank() as i64, self.world.size() as i64);
        for (index, batch) in batches.iter().enumerate() {
            let (image, text) = self.features(batch)?;
            let length = batch.rows.len() as i64;
            let first = (index as i64 * size + rank) * length;
            let pull = |features: &Tensor, leaf: &Tensor| {
                let gradient = leaf.f_grad()?.f_narrow(0, first, length)?;
                features.f_to_kind(Kind::Float)?.f_mul(&gradient)?.f_sum(Kind::Float)
            };
            self.backward(index + 1 == batches.len(), || {
                pull(&image, &images)?.f_add(&pull(&text, &texts)?)?.f_backward()
            })?;
        }
        Ok(Compared { rows: rows(&all), loss: loss.f_double_value(&[]).map_err(engine)? })
    }

    /// The features of all micro-batches of a step, each `[B, d]`, and those of the other processes, as one leaf in the order of
    /// the rows: the ranks of the first round, then those of the second, and so on.
    fn leaf(&self, parts: &[Tensor]) -> Result<Tensor> {
        let own = Tensor::f_stack(parts, 0).map_err(engine)?;
        let all = self.world.gather(&own)?;
        let width = all.size().last().copied().unwrap_or(1);
        let rows = all.f_transpose(0, 1).and_then(|t| t.f_reshape([-1, width])?.f_set_requires_grad(true));
        rows.map_err(engine)
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

    /// What the rows of these parts are drawn to, compared all together.
    fn targets(&self, parts: &[Part]) -> Targets {
        let rows = self.pairs.rows();
        let all = parts.iter().flat_map(|p| &p.rows);
        let groups = positive_groups(all.map(|&r| rows[r].positive()));
        let mut mixed = Vec::new();
        if parts.iter().any(|p| p.mix.is_some()) {
            for part in parts {
                let (first, count) = (mixed.len(), part.rows.len());
                // an image that is not mixed is mixed with itself
                mixed.extend((0..count).map(|i| part.mix.map_or((first + i, 1.0), |own| (first + count - 1 - i, own))));
            }
        }
        Targets { groups, mixed }
    }
}

fn rows(parts: &[Part]) -> Vec<usize> {
    parts.iter().flat_map(|p| p.rows.iter().copied()).collect()
}

fn backward(loss: &Tensor, scale: f64) -> TchResult<()> {
    if scale == 1.0 { loss.f_backward() } else { loss.f_mul_scalar(scale)?.f_backward() }
}
