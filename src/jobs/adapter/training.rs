//! The training of an adapter, epoch by epoch.
//!
//! Guarantees: the same parameters and rows make the same weights on the same machine, whether the training was stopped in between or not; the weights
//! that are kept are those of the best epoch, the earliest of equal ones; nothing is chosen by anything but the validation rows.

use super::super::StepContext;
use super::super::labelled::LabelledEmbeddings;
use super::checkpoint::{Checkpoint, Done, Partial, Tensors, copies};
use crate::config::adapter::{AdapterParameters, TrackMetric};
use crate::data::Labels;
use crate::error::{Error, Result};
use crate::evaluation::{Extras, Labelled, Method, Scores, evaluate_method};
use crate::imaging::SampleRng;
use crate::model::adapter::Adapter;
use crate::model::engine;
use crate::registry::{Earlier, Series, SeriesFolder};
use crate::telemetry::Progress;
use crate::telemetry::stop::{StopSignal, stopped};
use crate::train::optimizer::{AdamW, Rules, Settings};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

/// AdamW's weight decay, as the original has it.
const WEIGHT_DECAY: f64 = 0.01;
/// Rows of a validation pass are independent: passes of at least so many.
const VALIDATION_ROWS: usize = 256;
/// A checkpoint is written so long after the last one.
const BETWEEN_CHECKPOINTS: Duration = Duration::from_secs(60);

/// One epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Epoch {
    /// From 1.
    pub(super) epoch: usize,
    /// Mean over the training rows, by their weight.
    loss: f64,
    /// Accuracy on the validation rows.
    acc: f64,
    /// Area under the ROC curve on the validation rows, macro, one versus rest.
    auc: Option<f64>,
}

/// The best epoch so far.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Best {
    pub(super) epoch: usize,
    pub(super) value: f64,
}

/// What a training came to.
pub(super) struct Trained {
    pub(super) curve: Vec<Epoch>,
    pub(super) best: Best,
    /// The weights of the best epoch.
    pub(super) weights: Tensors,
    /// Whether it ended before `max_epochs`.
    pub(super) stopped_early: bool,
}

/// A training: what it reads, and where it stands.
pub(super) struct Training<'a> {
    parameters: &'a AdapterParameters,
    adapter: &'a Adapter,
    optimizer: AdamW,
    device: Device,
    /// [rows, dim] and [rows].
    train: (Tensor, Tensor),
    validation: &'a LabelledEmbeddings,
    labels: &'a Labels,
    /// Factors on the loss of each class, [classes].
    class_weights: Option<Tensor>,
    /// Where it is kept; nowhere when no later run would find it.
    checkpoint: Option<Checkpoint>,
    saved: Instant,
    series: Series,
    stop: StopSignal,
    done: Done,
}

impl<'a> Training<'a> {
    /// A training that begins, or goes on where an earlier one was stopped.
    pub(super) fn new(
        context: &StepContext<'_>,
        parameters: &'a AdapterParameters,
        (adapter, device): (&'a Adapter, Device),
        (train, validation): (&LabelledEmbeddings, &'a LabelledEmbeddings),
        (labels, class_weights): (&'a Labels, Option<Vec<f32>>),
    ) -> Result<Training<'a>> {
        let stop = StopSignal::listen()?;
        let settings = Settings { lr: parameters.learning_rate, weight_decay: WEIGHT_DECAY, ..Settings::default() };
        let optimizer = AdamW::new(&adapter.parameters(), settings, &Rules::default())?;
        let there = |tensor: tch::Tensor| tensor.f_to_device(device);
        let shape = [train.embeddings.rows() as i64, train.embeddings.dim() as i64];
        let features = Tensor::f_from_slice(&train.embeddings.table.features).and_then(|t| there(t.f_view(shape)?));
        let classes: Vec<i64> = train.classes.iter().map(|&c| c as i64).collect();
        let classes = Tensor::f_from_slice(&classes).and_then(there).map_err(engine)?;
        let class_weights =
            class_weights.map(|w| Tensor::f_from_slice(&w).and_then(there)).transpose().map_err(engine)?;
        let scratch = context.folder("checkpoint")?;
        let checkpoint = context.lasting.then(|| Checkpoint::new(context.store, context.continuation, scratch));
        let batches = train.classes.len().div_ceil(parameters.train_dataloader_batch_size);
        let read = |from: &Checkpoint| from.read((adapter, &optimizer), (parameters.max_epochs, batches));
        let resumed = checkpoint.as_ref().map(read).transpose()?.flatten();
        if let Some(done) = &resumed {
            tracing::info!(
                epochs = done.curve.len(),
                batches = done.partial.batches,
                "going on where an earlier run was stopped"
            );
        }
        let done = resumed.unwrap_or_default();
        let place = SeriesFolder::new(context.store, context.run.0, context.run.1)?;
        let earlier = Earlier { text: done.series.as_bytes(), step: done.curve.len() as u64 };
        let series = Series::open(Some(place), &context.folder("series")?, Some(earlier))?;
        Ok(Training {
            parameters,
            adapter,
            optimizer,
            device,
            train: (features.map_err(engine)?, classes),
            validation,
            labels,
            class_weights,
            checkpoint,
            saved: Instant::now(),
            series,
            stop,
            done,
        })
    }

    /// Trains to the end.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Preempted`] when it was asked to stop, after a checkpoint where a later run can use one; [`crate::ErrorKind::Config`] when the loss is not finite;
    /// [`crate::ErrorKind::Data`] when the validation rows have no value of the tracked metric.
    pub(super) fn run(mut self) -> Result<Trained> {
        let epochs = self.parameters.max_epochs;
        let progress = Progress::new("adapter", epochs as u64, "epochs").starting_at(self.done.curve.len() as u64);
        while self.done.curve.len() < epochs && !self.is_stale() {
            let epoch = self.done.curve.len() + 1;
            let loss = self.epoch(epoch)?;
            let figures = self.validate(epoch, loss)?;
            progress.advance(1, &format!("loss {loss:.3}"));
            let line = json!({ "loss": loss, "evaluation": { "acc": figures.acc, "auc": figures.auc } });
            self.series.write(epoch as u64, &line, &json!({}))?;
            self.done.curve.push(figures);
            self.done.partial = Partial::default();
        }
        // whoever asked does not want what comes after this step either
        if self.stop.requested().is_some() {
            self.look_up()?;
        }
        let stopped_early = self.done.curve.len() < epochs;
        let (best, weights) = self.done.best.ok_or_else(|| Error::internal("training without an epoch"))?;
        tracing::info!(epoch = best.epoch, value = best.value, stopped_early, "best adapter chosen");
        Ok(Trained { curve: self.done.curve, best, weights, stopped_early })
    }

    /// Whether so many epochs were no better than the best one that more are not worth while.
    fn is_stale(&self) -> bool {
        let since = self.done.best.as_ref().map_or(0, |(best, _)| self.done.curve.len().saturating_sub(best.epoch));
        self.parameters.early_stopping_patience.is_some_and(|patience| since >= patience)
    }

    /// What is left of a pass over the training rows: the mean loss of all of it.
    fn epoch(&mut self, epoch: usize) -> Result<f64> {
        let rows = self.train.1.numel();
        let mut order: Vec<i64> = (0..rows as i64).collect();
        SampleRng::new(self.parameters.seed, epoch as u64, u64::MAX).shuffle(&mut order);
        for batch in order.chunks(self.parameters.train_dataloader_batch_size).skip(self.done.partial.batches) {
            self.look_up()?;
            let (loss, weight) = self.step(batch)?;
            let partial = &mut self.done.partial;
            *partial = Partial {
                batches: partial.batches + 1,
                loss: partial.loss + loss * weight,
                weight: partial.weight + weight,
            };
        }
        let loss = self.done.partial.loss / self.done.partial.weight;
        if !loss.is_finite() {
            return Err(Error::config(format!("the loss is {loss} in epoch {epoch}: lower parameters.learning_rate")));
        }
        Ok(loss)
    }

    /// One step: the loss of its rows, their mean by weight, and the sum of their weights.
    fn step(&mut self, batch: &[i64]) -> Result<(f64, f64)> {
        let (features, classes) = &self.train;
        let taken = || {
            let index = Tensor::f_from_slice(batch)?.f_to_device(self.device)?;
            Ok((features.f_index_select(0, &index)?, classes.f_index_select(0, &index)?))
        };
        let (x, y): (Tensor, Tensor) = taken().map_err(engine)?;
        self.optimizer.zero_grad()?;
        let logits = self.adapter.forward(&x)?;
        let loss = logits
            .f_cross_entropy_loss(&y, self.class_weights.as_ref(), tch::Reduction::Mean, -100, 0.0)
            .and_then(|l| l.f_backward().map(|()| l))
            .map_err(engine)?;
        let number = |tensor: &Tensor| tensor.f_to_kind(Kind::Double)?.f_double_value(&[]);
        let weight = match &self.class_weights {
            Some(weights) => {
                weights.f_index_select(0, &y).and_then(|w| number(&w.f_sum(Kind::Double)?)).map_err(engine)?
            }
            None => batch.len() as f64,
        };
        let loss = number(&loss).map_err(engine)?;
        self.optimizer.step(|base| base)?;
        Ok((loss, weight))
    }

    /// What the weights are worth on the validation rows; they are kept when they are the best so far.
    fn validate(&mut self, epoch: usize, loss: f64) -> Result<Epoch> {
        let table = &self.validation.embeddings.table;
        let rows = self.parameters.validation_dataloader_batch_size.max(VALIDATION_ROWS);
        let mut probabilities = Vec::with_capacity(self.validation.classes.len() * self.labels.len());
        for batch in table.features.chunks(rows * self.validation.embeddings.dim()) {
            probabilities.extend(self.adapter.predict(batch)?);
        }
        let scores = Scores::from_f32(&probabilities, self.labels.len())?;
        let labelled = Labelled::new(&scores, &self.validation.classes)?;
        let report = evaluate_method(Method::Adapter, None, labelled, self.labels.texts(), Extras::default())?;
        let (acc, auc) = (report.argmax.accuracy, report.mauc);
        let value = match self.parameters.track_metric {
            TrackMetric::Acc => acc,
            TrackMetric::Auc => auc.ok_or_else(|| {
                Error::data(
                    "validation_text_tsv: the area under the ROC curve needs rows of two classes; track acc instead",
                )
            })?,
        };
        if self.done.best.as_ref().is_none_or(|(best, _)| value > best.value) {
            self.done.best = Some((Best { epoch, value }, copies(&self.adapter.parameters())?));
        }
        Ok(Epoch { epoch, loss, acc, auc })
    }

    /// Between two steps: a checkpoint when it is time for one, and the end where it was asked to stop.
    fn look_up(&mut self) -> Result<()> {
        let signal = self.stop.requested();
        if signal.is_none() && self.saved.elapsed() < BETWEEN_CHECKPOINTS {
            return Ok(());
        }
        let saved = match &self.checkpoint {
            Some(to) => to.write((self.adapter, &self.optimizer), &self.done, self.series.text()).map(|()| true),
            None => Ok(false),
        };
        self.saved = Instant::now();
        let (epochs, all) = (self.done.curve.len(), self.parameters.max_epochs);
        match (signal, saved) {
            (None, Ok(_)) => Ok(()),
            (None, Err(error)) => {
                tracing::warn!(%error, "a checkpoint could not be kept; training goes on");
                Ok(())
            }
            (Some(signal), saved) => Err(stopped(&format!("stopped by {signal} after epoch {epochs} of {all}"), saved)),
        }
    }
}
