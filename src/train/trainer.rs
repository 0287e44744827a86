//! The training loop, and nothing but the loop: every part it uses is a module beside it.
//!
//! Guarantees:
//! - A run that is interrupted in any way and started again ends with the same bits as one that is not, on the same kind
//!   of processor with the same number of threads: every step depends on the checkpointed state and on streams keyed by
//!   (seed, epoch, row) alone.
//! - Asked to stop, it finishes its step, saves a checkpoint, and returns [`crate::ErrorKind::Preempted`].
//! - A step with a loss or gradient that is not finite changes nothing.
//! - Several processes have the same weights, to the bit, after every step; the first of them writes.

use super::checkpoint::{self, Best, Checkpoints, Restored, State};
use super::ema::Ema;
use super::evaluation::{Accuracies, Evaluation};
use super::loader::{AHEAD, Batch, Loader, next};
use super::non_finite::NonFinite;
use super::optimizer::{AdamW, Rules, Settings};
use super::passes::Passes;
use super::precision::Mode;
use super::schedule::{Cosine, Schedule};
use super::together;
use super::watch::Watch;
use crate::config::parameters::{FinetuneParameters, OnNonFinite};
use crate::config::training::TrainingConfig;
use crate::distributed::World;
use crate::error::{Error, ErrorKind, Result};
use crate::infer::Encoder;
use crate::model::params::Params;
use crate::model::weights;
use crate::telemetry::stop::{StopSignal, stopped};
use medtune_native::Reducer;
use serde::Serialize;
use serde_json::json;
use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Instant;
use tch::{Device, Tensor};

/// File of the weights with the best tracked accuracy.
pub const BEST: &str = checkpoint::BEST;
/// File of the weights after the last step.
pub const LAST: &str = "last.safetensors";
/// File with one JSON object a logged step or evaluation.
pub const SERIES: &str = checkpoint::SERIES;

/// Everything a run needs.
#[derive(Debug)]
pub struct Training<'a> {
    /// How to train.
    pub config: &'a TrainingConfig,
    /// What the job says beside that.
    pub parameters: &'a FinetuneParameters,
    /// The number type of the computation.
    pub mode: Mode,
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
    /// Where checkpoints go to and come from.
    pub checkpoints: Checkpoints,
    /// Whether a later run can go on from checkpoints, so that they are written; counts in the first process only.
    pub keep: bool,
    /// Where the course of the run is shown meanwhile.
    pub watch: Watch,
    /// The processes that share the training.
    pub world: &'a World,
    /// About how many bytes of gradients they send at a time.
    pub bucket_bytes: usize,
}

/// How a run ended.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// Optimizer steps taken.
    pub steps: u64,
    /// Steps among them that were left out, since a loss or gradient was not finite.
    pub skipped_steps: u64,
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
    /// The number type of the computation.
    pub precision: Mode,
    /// Share of the time that the model waited for data.
    pub data_wait_share: f64,
    /// Training images a second, evaluations and checkpoints left out.
    pub images_per_s: f64,
    /// Whether the saved weights are the moving average.
    pub smoothed: bool,
}

impl Training<'_> {
    /// Optimizer steps an epoch: whole batches only.
    #[must_use]
    pub fn steps_per_epoch(config: &TrainingConfig, rows: usize) -> usize {
        rows / config.batch_total
    }

    /// Trains to the end, from the newest checkpoint or else from the start.
    ///
    /// # Errors
    /// [`ErrorKind::Preempted`] after a signal, [`ErrorKind::Data`] naming an image that cannot be read,
    /// [`ErrorKind::Config`] when the loss is no longer a number, [`ErrorKind::Engine`], and those of writing.
    pub fn run(mut self) -> Result<Outcome> {
        let stop = StopSignal::listen()?;
        let config = self.config;
        let total = (config.epochs * Self::steps_per_epoch(config, self.loader.pairs.len())) as u64;
        self.params.set_requires_grad(true)?;
        let optimizer = AdamW::new(&self.params.entries(), Settings::from(config), &Rules::from(config))?;
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
        let world = self.world;
        let restored = if config.resume && world.is_first() { self.checkpoints.newest()? } else { None };
        let mut state = match restored {
            Some(restored) => self.restore(restored, &optimizer, ema.as_ref(), total)?,
            None => {
                self.watch.open(self.folder, None)?;
                State::fresh(total, config.batch_total, self.loader.seed, self.mode)
            }
        };
        if world.size() > 1 {
            let all = self.params.entries().into_iter().chain(optimizer.state());
            let all: Vec<Tensor> = all.chain(ema.iter().flat_map(Ema::tensors)).map(|(_, t)| t).collect();
            state = together::share(world, &state, &all)?;
        }
        let reducer = together::reducer(world, &self.params.entries(), &optimizer, self.bucket_bytes)?;
        let (sender, receiver) = sync_channel(AHEAD);
        let (loader, epochs) = (self.loader, config.epochs);
        let skip = state.step as usize * config.micro_batches();
        let non_finite = NonFinite::new(self.parameters.on_non_finite);
        std::thread::scope(|scope| {
            scope.spawn(move || loader.feed(epochs, skip, &sender));
            let parts = Loop { t: &mut self, optimizer, ema, schedule, state, stop, agreed: None, non_finite, reducer };
            parts.all(receiver)
        })
    }

    /// The tensors of a checkpoint, by file: after the last step no more than what is evaluated and handed over.
    fn checkpointed(&self, going_on: bool, optimizer: &AdamW, ema: Option<&Ema>) -> Vec<(&'static str, Named)> {
        let smoothed = self.smoothed(ema);
        let weights = (going_on || !smoothed).then(|| (checkpoint::WEIGHTS, self.params.entries()));
        let optimizer = going_on.then(|| (checkpoint::OPTIMIZER, optimizer.state()));
        let average = ema.filter(|_| going_on || smoothed).map(|ema| (checkpoint::AVERAGE, ema.tensors()));
        weights.into_iter().chain(optimizer).chain(average).collect()
    }

    /// Whether the moving average takes the place of the weights in what is evaluated and saved.
    fn smoothed(&self, ema: Option<&Ema>) -> bool {
        ema.is_some() && self.config.smoothing.is_some_and(|s| s.evaluate)
    }

    /// Puts everything back to where a checkpoint was written.
    fn restore(&mut self, restored: Restored, optimizer: &AdamW, ema: Option<&Ema>, total: u64) -> Result<State> {
        let Restored { state, folder } = restored;
        if (state.rows, state.total) != (self.config.batch_total, total) {
            return Err(Error::config(format!(
                "the checkpoint is of a training with {} rows a step, this run takes {}: take the same number of processes, set TRAIN.BATCH_SIZE_PER_GPU so that the rows are the same, or start anew with RESUME: false",
                state.rows, self.config.batch_total
            )));
        }
        if state.skipped > 0 && self.parameters.on_non_finite == OnNonFinite::Stop {
            return Err(Error::config(format!(
                "the checkpoint is of a training that left out {} steps, which on_non_finite: stop does not allow: set skip, or start anew with RESUME: false",
                state.skipped
            )));
        }
        for (file, tensors) in self.checkpointed(state.step < state.total, optimizer, ema) {
            weights::load_into(&folder.join(file), tensors)?;
        }
        if state.best.is_some() {
            let to = self.folder.join(BEST);
            std::fs::rename(folder.join(BEST), &to).map_err(|e| Error::io("restore", &to, e))?;
        }
        let series = folder.join(SERIES);
        let text = std::fs::read(&series).map_err(|e| Error::io("read", &series, e))?;
        self.watch.open(self.folder, Some((&text, state.step)))?;
        let (threads, now) = (state.threads, tch::get_num_threads());
        if threads != now {
            tracing::warn!(
                "the checkpoint was written with {threads} threads, this run has {now}: the result may differ in the last digits; set compute.threads to repeat it"
            );
        }
        if state.mode != self.mode {
            tracing::warn!(
                "the checkpoint was computed in {:?}, this run goes on in {:?}: the result differs; set parameters.precision to repeat it",
                state.mode,
                self.mode
            );
        }
        tracing::info!(step = state.step, of = state.total, "resuming from a checkpoint");
        drop(std::fs::remove_dir_all(folder));
        let loss_scale = self.mode.loss_scale(state.loss_scale);
        Ok(State { mode: self.mode, threads: now, loss_scale, ..state })
    }
}

/// Tensors by name.
type Named = Vec<(String, Tensor)>;

struct Loop<'a, 'b> {
    t: &'a mut Training<'b>,
    optimizer: AdamW,
    ema: Option<Ema>,
    schedule: Schedule,
    state: State,
    stop: StopSignal,
    /// Why all processes stop after this step, if they do.
    agreed: Option<String>,
    non_finite: NonFinite,
    reducer: Option<Reducer<'b>>,
}

impl Loop<'_, '_> {
    fn all(mut self, receiver: Receiver<Result<Batch>>) -> Result<Outcome> {
        let config = self.t.config;
        let total = self.state.total;
        if self.state.step == 0 && config.eval_at_start {
            self.state.start = Some(self.evaluate()?.0);
        }
        self.t.watch.start(self.state.step, total);
        if !self.state.evaluated {
            // the checkpoint is from a run that was stopped before it could evaluate
            self.track_or_save()?;
        }
        let mut first = true;
        while self.state.step < total {
            self.step(&receiver)?;
            let step = self.state.step;
            if std::mem::take(&mut first) && self.t.world.size() > 1 {
                // unlike machines are found now, not at the end
                together::same_weights(self.t.world, &self.t.params.entries())?;
            }
            let every = |n: usize| n > 0 && step.is_multiple_of(n as u64);
            self.state.evaluated = !(every(config.eval_every) || step == total);
            if let Some(signal) = self.asked_to_stop() {
                return Err(self.preempted(&signal));
            }
            if !self.state.evaluated {
                self.track_or_save()?;
            }
            // what has been learned outlives whatever happens to its package
            if every(config.save_every) || step == total {
                let (world, keep) = (self.t.world, self.t.keep);
                // the others wait: it may take longer than a step may
                if let Some(Err(error)) = world.first(|| Ok(if keep { self.save() } else { Ok(()) }))? {
                    tracing::warn!(step, of = total, %error, "a checkpoint could not be written; the run goes on without");
                }
            }
        }
        let world = self.t.world;
        if world.size() > 1 {
            together::same_weights(world, &self.t.params.entries())?;
        }
        world.first(|| self.save_weights(LAST))?;
        self.t.checkpoints.wait().unwrap_or_else(|error| tracing::warn!(%error, "a checkpoint could not be kept"));
        self.outcome()
    }

    /// One optimizer step, or the decision to leave it out.
    fn step(&mut self, receiver: &Receiver<Result<Batch>>) -> Result<()> {
        let (config, step) = (self.t.config, self.state.step);
        self.optimizer.zero_grad()?;
        let scale = self.state.loss_scale.map_or(1.0, |s| s.scale);
        let watch = &mut self.t.watch;
        let mut fetch = || {
            let asked = Instant::now();
            let batch = next(receiver)?.ok_or_else(|| Error::internal("the loader ended early"))?;
            watch.fetched(asked.elapsed(), batch.round.iter().map(|part| part.rows.len()).sum());
            Ok(batch)
        };
        let passes = Passes {
            encoder: self.t.encoder,
            pairs: self.t.loader.pairs,
            device: self.t.device,
            mode: self.t.mode,
            contrast: self.t.parameters.contrastive_batch,
            seed: self.t.loader.seed,
            world: self.t.world,
            reducer: self.reducer.as_ref(),
        };
        let compared = passes.run(config.micro_batches(), scale, &mut fetch)?;
        if scale != 1.0 {
            self.optimizer.scale_grad(1.0 / scale)?;
        }
        // without a limit the norm is only measured
        let limit = if config.grad_clipping > 0.0 { config.grad_clipping } else { f64::INFINITY };
        let several = self.t.world.size() > 1;
        let mut norm = self.optimizer.clip(if several { f64::INFINITY } else { limit })?;
        let loss: f64 = compared.iter().map(|c| c.loss).sum();
        self.state.step += 1;
        if several {
            (norm, self.agreed) = together::agree(self.t.world, self.state.step, (loss, norm), self.stop.requested())?;
            if norm.is_finite() && norm > limit {
                self.optimizer.scale_grad(limit / (norm + 1e-6))?;
            }
        }
        let overflow = loss.is_finite() && !norm.is_finite() && self.state.loss_scale.is_some_and(|s| !s.exhausted());
        if let Some(scale) = &mut self.state.loss_scale {
            scale.update(!norm.is_finite());
        }
        let usable = loss.is_finite() && norm.is_finite();
        if usable {
            let schedule = &self.schedule;
            self.optimizer.step(|base| schedule.lr(base, step))?;
            if let Some(ema) = &mut self.ema {
                ema.update()?;
            }
            self.non_finite.good();
            self.state.recent.push(loss);
        } else if !overflow {
            self.state.skipped += 1;
            self.non_finite.bad(&self.t.watch, self.t.loader.pairs, (step + 1, norm), &compared)?;
        }
        let lr = self.schedule.lr(config.learning_rate, step);
        self.t.watch.advance(loss, lr);
        self.log(lr, norm)
    }

    /// Why the training is to end now, if it is.
    fn asked_to_stop(&self) -> Option<String> {
        if self.t.world.size() == 1 { self.stop.requested().map(str::to_owned) } else { self.agreed.clone() }
    }

    fn log(&mut self, lr: f64, norm: f64) -> Result<()> {
        let state = &mut self.state;
        if !state.step.is_multiple_of(self.t.config.log_every as u64) && state.step != state.total {
            return Ok(());
        }
        if !state.recent.is_empty() {
            state.last_loss = Some(state.recent.iter().sum::<f64>() / state.recent.len() as f64);
            state.recent.clear();
        }
        let mut line = json!({ "step": state.step, "loss": state.last_loss, "lr": lr, "grad_norm": norm });
        if let Some(scale) = state.loss_scale {
            line["loss_scale"] = json!(scale.scale);
        }
        self.t.watch.write(state.step, &line)
    }

    /// Evaluates; a stop in between saves a checkpoint that says that the evaluation is still to be done.
    fn track_or_save(&mut self) -> Result<()> {
        match self.track() {
            Err(error) if error.kind() == ErrorKind::Preempted => {
                let signal = self.stop.requested().unwrap_or("a signal");
                Err(self.preempted(signal))
            }
            other => other,
        }
    }

    /// Evaluates, and keeps the weights when they are the best so far; a later step wins a tie.
    fn track(&mut self) -> Result<()> {
        let (accuracies, value) = self.evaluate()?;
        if self.state.best.is_none_or(|b| value >= b.value) {
            let world = self.t.world;
            world.first(|| self.save_weights(BEST))?;
            self.state.best = Some(Best { step: self.state.step, value });
        }
        self.state.last = Some(accuracies);
        self.state.evaluated = true;
        Ok(())
    }

    fn evaluate(&mut self) -> Result<(Accuracies, f64)> {
        let (started, step) = (Instant::now(), self.state.step);
        let accuracies = self.with_average(|t| t.mode.cast(t.device, || t.evaluation.run(t.encoder, t.world)))?;
        // one answer for all, who decide by it what to do next
        let accuracies = together::one_answer(self.t.world, accuracies)?;
        let (name, value) = accuracies.tracked();
        tracing::info!(step, zero_shot = ?accuracies.zero_shot, knn = ?accuracies.knn, took = ?started.elapsed(), "evaluated");
        self.t.watch.paused(started.elapsed());
        self.t.watch.write(step, &json!({ "step": step, "evaluation": accuracies, "tracked": name }))?;
        Ok((accuracies, value))
    }

    /// Saves where that is of use, and says why the run ends.
    fn preempted(&mut self, signal: &str) -> Error {
        let (step, total) = (self.state.step, self.state.total);
        let (world, keep) = (self.t.world, self.t.keep);
        let saved = world.first(|| {
            if keep {
                self.save()?;
                self.t.checkpoints.wait()?;
            }
            Ok(keep)
        });
        let after = format!("stopped by {signal} after step {step} of {total}");
        match saved.transpose() {
            // the first process says how it goes on
            None => Error::new(ErrorKind::Preempted, after),
            Some(saved) => stopped(&after, saved),
        }
    }

    /// Writes a checkpoint aside and sends it on its way.
    fn save(&mut self) -> Result<()> {
        let started = Instant::now();
        let draft = self.t.checkpoints.draft()?;
        let going_on = self.state.step < self.state.total;
        for (file, tensors) in self.t.checkpointed(going_on, &self.optimizer, self.ema.as_ref()) {
            weights::write_tensors(&draft.join(file), tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)))?;
        }
        let series = draft.join(SERIES);
        std::fs::write(&series, self.t.watch.text()).map_err(|e| Error::io("write", &series, e))?;
        if self.state.best.is_some() {
            // a link: a better one later replaces the name, not the bytes
            let (from, to) = (self.t.folder.join(BEST), draft.join(BEST));
            std::fs::hard_link(&from, &to)
                .or_else(|_| std::fs::copy(&from, &to).map(drop))
                .map_err(|e| Error::io("write", &to, e))?;
        }
        let published = self.t.checkpoints.publish(draft, &self.state);
        self.t.watch.paused(started.elapsed());
        published
    }

    fn save_weights(&mut self, name: &str) -> Result<()> {
        let path = self.t.folder.join(name);
        let part = self.t.folder.join(format!(".{name}.partial"));
        self.with_average(|t| weights::write(&part, t.params))?;
        std::fs::rename(&part, &path).map_err(|e| Error::io("write", &path, e))
    }

    /// Runs `work` with the moving average in place of the weights, where it is kept for that.
    fn with_average<T>(&mut self, work: impl FnOnce(&Training<'_>) -> Result<T>) -> Result<T> {
        let swap = self.t.smoothed(self.ema.as_ref());
        if let (true, Some(ema)) = (swap, &mut self.ema) {
            ema.swap()?;
        }
        let result = work(self.t);
        if let (true, Some(ema)) = (swap, &mut self.ema) {
            ema.swap()?;
        }
        result
    }

    fn outcome(&mut self) -> Result<Outcome> {
        let ended = || Error::internal("training ended without an evaluation");
        let (best, last) = (self.state.best.ok_or_else(ended)?, self.state.last.ok_or_else(ended)?);
        let frozen: usize = {
            let names = self.optimizer.frozen();
            self.t.params.iter().filter(|(n, _)| names.iter().any(|m| m == n)).map(|(_, t)| t.numel()).sum()
        };
        let (data_wait_share, images_per_s) = self.t.watch.finish();
        Ok(Outcome {
            steps: self.state.total,
            skipped_steps: self.state.skipped,
            best_step: best.step,
            track_metric: last.tracked().0,
            best: best.value,
            start: self.state.start,
            last,
            last_loss: self.state.last_loss.unwrap_or(f64::NAN),
            trained_parameters: self.t.params.count() - frozen,
            frozen_parameters: frozen,
            precision: self.t.mode,
            data_wait_share,
            images_per_s,
            smoothed: self.t.smoothed(self.ema.as_ref()),
        })
    }
}
