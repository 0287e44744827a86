//! The training loop, and nothing but the loop: every part it uses is a module beside it.

use super::ema::Ema;
use super::evaluation::{Accuracies, Evaluation, distinct};
use super::loader::{AHEAD, Batch, Loader, next};
use super::loss::{positive_groups, unicl_loss};
use super::optimizer::{AdamW, Rules, Settings};
use super::schedule::{Cosine, Schedule};
use crate::config::training::TrainingConfig;
use crate::error::{Error, Result};
use crate::infer::Encoder;
use crate::model::droppath::DropPath;
use crate::model::params::Params;
use crate::model::{engine, weights};
use crate::telemetry::Progress;
use serde::Serialize;
use serde_json::{Value, json};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};
use tch::{Device, Tensor};

/// File of the weights with the best tracked accuracy.
pub const BEST: &str = "best.safetensors";
/// File of the weights after the last step.
pub const LAST: &str = "last.safetensors";
/// File with one JSON object a logged step or evaluation.
pub const SERIES: &str = "metrics.jsonl";

/// Everything a run needs.
#[derive(Debug)]
pub struct Training<'a> {
    /// How to train.
    pub config: &'a TrainingConfig,
    /// The parameters, updated in place.
    pub params: &'a mut Params,
    /// An encoder over the same parameters.
    pub encoder: &'a Encoder,
    /// Batches.
    pub loader: &'a Loader<'a>,
    /// Evaluation.
    pub evaluation: &'a Evaluation<'a>,
    /// Where the parameters are.
    pub device: Device,
    /// Where weights and the series go.
    pub folder: &'a Path,
}

/// How a run ended.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// Optimizer steps taken.
    pub steps: u64,
    /// The step whose weights are the best.
    pub best_step: u64,
    /// What the best was chosen by.
    pub track_metric: &'static str,
    /// Its value at the best step.
    pub best: f64,
    /// Accuracies before the first step, when configured.
    pub start: Option<Accuracies>,
    /// Accuracies after the last step.
    pub last: Accuracies,
    /// Mean loss of the last logged steps.
    pub last_loss: f64,
    /// Numbers that are trained, and that are frozen.
    pub trained_parameters: usize,
    /// Numbers that do not change.
    pub frozen_parameters: usize,
    /// Share of the time that the model waited for data.
    pub data_wait_share: f64,
    /// Whether the saved weights are the moving average.
    pub smoothed: bool,
}

impl Training<'_> {
    /// Optimizer steps an epoch: whole batches only.
    #[must_use]
    pub fn steps_per_epoch(config: &TrainingConfig, rows: usize) -> usize {
        rows / config.batch_total
    }

    /// Trains to the end.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Data`] naming an image that cannot be read, [`crate::ErrorKind::Config`] when the loss is no longer
    /// a number, [`crate::ErrorKind::Engine`], and those of writing.
    pub fn run(mut self) -> Result<Outcome> {
        let config = self.config;
        let steps_per_epoch = Self::steps_per_epoch(config, self.loader.pairs.len());
        let total = (config.epochs * steps_per_epoch) as u64;
        self.params.set_requires_grad(true)?;
        let settings = Settings {
            lr: config.learning_rate,
            beta1: config.betas[0],
            beta2: config.betas[1],
            eps: config.eps,
            weight_decay: config.weight_decay,
        };
        let rules = Rules {
            no_weight_decay_modules: config.no_weight_decay_modules.clone(),
            weight_decay_patterns: config.weight_decay_patterns.clone(),
            lr_scale_patterns: config.lr_scale_patterns.clone(),
            freeze_patterns: config.freeze_patterns.clone(),
        };
        let optimizer = AdamW::new(&self.params.entries(), settings, &rules)?;
        for pattern in optimizer.unmatched() {
            tracing::warn!(%pattern, "a pattern of the training configuration matches no parameter");
        }
        let ema = config.smoothing.map(|s| Ema::new(&self.params.entries(), s.decay, None)).transpose()?;
        let schedule = Schedule::Cosine(Cosine {
            total,
            warmup: config.warmup_steps as u64,
            warmup_lr: config.warmup_lr,
            min_lr: config.min_lr,
        });
        let series = self.folder.join(SERIES);
        let series = File::create(&series).map_err(|e| Error::io("create", &series, e))?;
        let (sender, receiver) = sync_channel(AHEAD);
        let loader = self.loader;
        std::thread::scope(|scope| {
            scope.spawn(move || loader.feed(config.epochs, &sender));
            let run = Loop { t: &mut self, optimizer, ema, schedule, series, total, waited: Duration::ZERO };
            run.all(receiver)
        })
    }
}

struct Loop<'a, 'b> {
    t: &'a mut Training<'b>,
    optimizer: AdamW,
    ema: Option<Ema>,
    schedule: Schedule,
    series: File,
    total: u64,
    waited: Duration,
}

struct Best {
    step: u64,
    value: f64,
}

impl Loop<'_, '_> {
    fn all(mut self, receiver: Receiver<Result<Batch>>) -> Result<Outcome> {
        let config = self.t.config;
        let micro = config.batch_total / config.batch_size;
        let start = if config.eval_at_start { Some(self.evaluate(0)?.0) } else { None };
        let bar = Progress::new("train", self.total, "steps");
        let started = Instant::now();
        let mut best: Option<Best> = None;
        let mut recent: Vec<f64> = Vec::new();
        let mut last_loss = f64::NAN;
        for step in 1..=self.total {
            let lr = |base: f64| self.schedule.lr(base, step - 1);
            let shown_lr = lr(config.learning_rate);
            self.optimizer.zero_grad()?;
            let mut loss = 0.0;
            for _ in 0..micro {
                let asked = Instant::now();
                let batch = next(&receiver)?.ok_or_else(|| Error::internal("the loader ended early"))?;
                self.waited += asked.elapsed();
                loss += self.backward(&batch, micro)?;
            }
            // without a limit the norm is only measured
            let limit = if config.grad_clipping > 0.0 { config.grad_clipping } else { f64::INFINITY };
            let norm = self.optimizer.clip(limit)?;
            if !loss.is_finite() || !norm.is_finite() {
                return Err(Error::config(format!(
                    "the loss is {loss} and the gradient's norm {norm} at step {step}: lower START_LEARNING_RATE, raise \
                     warmup_steps or set GRAD_CLIPPING"
                )));
            }
            let schedule = &self.schedule;
            self.optimizer.step(|base| schedule.lr(base, step - 1))?;
            if let Some(ema) = &mut self.ema {
                ema.update()?;
            }
            recent.push(loss);
            bar.advance(1, &format!("loss {loss:.3}"));
            if step.is_multiple_of(config.log_every as u64) || step == self.total {
                last_loss = recent.iter().sum::<f64>() / recent.len() as f64;
                recent.clear();
                self.log(json!({ "step": step, "loss": last_loss, "lr": shown_lr, "grad_norm": norm }))?;
            }
            let due = config.eval_every > 0 && step.is_multiple_of(config.eval_every as u64);
            if due && step != self.total {
                self.track(step, &mut best)?;
            }
        }
        let train_time = started.elapsed();
        let last = self.track(self.total, &mut best)?;
        self.save(LAST)?;
        bar.finish();
        let best = best.ok_or_else(|| Error::internal("training ended without an evaluation"))?;
        let count = |names: &[String]| -> usize {
            self.t.params.iter().filter(|(n, _)| names.iter().any(|m| m == n)).map(|(_, t)| t.numel()).sum()
        };
        let frozen = count(self.optimizer.frozen());
        Ok(Outcome {
            steps: self.total,
            best_step: best.step,
            track_metric: last.tracked().0,
            best: best.value,
            start,
            last,
            last_loss,
            trained_parameters: self.t.params.count() - frozen,
            frozen_parameters: frozen,
            data_wait_share: self.waited.as_secs_f64() / train_time.as_secs_f64().max(1e-9),
            smoothed: self.smoothed(),
        })
    }

    /// Forward and backward of one micro-batch; returns its share of the step's loss.
    fn backward(&self, batch: &Batch, micro: usize) -> Result<f64> {
        let t = &self.t;
        let pixels = t.encoder.pixels();
        let shape = [batch.rows.len() as i64, 3, pixels.height() as i64, pixels.width() as i64];
        let input = Tensor::f_from_slice(&batch.pixels).and_then(|x| x.f_view(shape)?.f_to_device(t.device));
        let drop_path = DropPath {
            seed: t.loader.seed,
            epoch: batch.epoch as u64,
            samples: batch.rows.iter().map(|&r| r as u64).collect(),
        };
        let model = t.encoder.model();
        let images = model.encode_image(&input.map_err(engine)?, Some(&drop_path))?;
        // rows with the same text share one pass of the text tower: the gradient is the same sum
        let (texts, rows) = distinct(&batch.texts)?;
        let (ids, mask) = t.encoder.tokens(&texts)?;
        let rows = Tensor::f_from_slice(&rows).and_then(|r| r.f_to_device(t.device)).map_err(engine)?;
        let texts = model.encode_text(&ids, &mask)?.f_index_select(0, &rows).map_err(engine)?;
        let class_rows = t.loader.pairs.rows();
        let groups = positive_groups(batch.rows.iter().map(|&r| Some((&class_rows[r].source, class_rows[r].class_id))));
        let loss = unicl_loss(&images, &texts, &model.logit_scale(), &groups)?;
        let part = loss.f_div_scalar(micro as f64).map_err(engine)?;
        part.f_backward().map_err(engine)?;
        part.f_double_value(&[]).map_err(engine)
    }

    /// Evaluates, and keeps the weights when they are the best so far; a later step wins a tie.
    fn track(&mut self, step: u64, best: &mut Option<Best>) -> Result<Accuracies> {
        let (accuracies, value) = self.evaluate(step)?;
        if best.as_ref().is_none_or(|b| value >= b.value) {
            self.save(BEST)?;
            *best = Some(Best { step, value });
        }
        Ok(accuracies)
    }

    fn evaluate(&mut self, step: u64) -> Result<(Accuracies, f64)> {
        let started = Instant::now();
        let accuracies = self.with_average(|t| t.evaluation.run(t.encoder))?;
        let (name, value) = accuracies.tracked();
        tracing::info!(step, zero_shot = ?accuracies.zero_shot, knn = ?accuracies.knn, took = ?started.elapsed(), "evaluated");
        self.write(&json!({ "step": step, "evaluation": accuracies, "tracked": name }))?;
        Ok((accuracies, value))
    }

    fn save(&mut self, name: &str) -> Result<()> {
        let path: PathBuf = self.t.folder.join(name);
        self.with_average(|t| weights::write(&path, t.params))
    }

    fn smoothed(&self) -> bool {
        self.ema.is_some() && self.t.config.smoothing.is_some_and(|s| s.evaluate)
    }

    /// Runs `work` with the moving average in place of the weights, where it is kept for that.
    fn with_average<T>(&mut self, work: impl FnOnce(&Training<'_>) -> Result<T>) -> Result<T> {
        let swap = self.smoothed();
        if let (true, Some(ema)) = (swap, &mut self.ema) {
            ema.swap()?;
        }
        let result = work(self.t);
        if let (true, Some(ema)) = (swap, &mut self.ema) {
            ema.swap()?;
        }
        result
    }

    fn log(&mut self, values: Value) -> Result<()> {
        tracing::info!(step = %values["step"], of = self.total, loss = %values["loss"], lr = %values["lr"], "training");
        self.write(&values)
    }

    fn write(&mut self, values: &Value) -> Result<()> {
        writeln!(self.series, "{values}").map_err(|e| Error::io("write", self.t.folder.join(SERIES), e))
    }
}
