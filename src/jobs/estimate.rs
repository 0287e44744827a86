//! What a training will take, said before it starts: parameters, steps, memory and time.
//!
//! Parameters and steps are exact: the code that trains decides them. Memory and time are estimates by arithmetic, explained
//! in `docs/training.md`; the machine's speed at matrix products is measured in a fraction of a second.

mod cost;
mod speed;

use self::cost::{Layer, image_kept, image_layers, text_kept, text_layers};
use super::ResolvedInput;
use super::finetune::{Sets, open_sets, training_for};
use crate::config::compute::Compute;
use crate::config::parameters::{ContrastiveBatch, FinetuneParameters};
use crate::config::training::TrainingConfig;
use crate::error::{Context, Result};
use crate::imaging::SampleRng;
use crate::infer::{check_vocabulary, device, model_config};
use crate::model::config::ModelConfig;
use crate::model::engine;
use crate::model::init::expected;
use crate::model::tokenizer::Tokenizer;
use crate::package::read_package;
use crate::train::loader::AHEAD;
use crate::train::optimizer::{AdamW, Rules, Settings};
use crate::train::precision::Mode;
use crate::train::trainer::Training;
use serde::Serialize;
use std::collections::{BTreeMap, HashSet};
use tch::{Device, Kind, Tensor};

/// Captions and tags that are looked at for the length of texts.
const MOST_TEXTS: usize = 20_000;

/// Bytes of the program itself with libtorch's libraries and buffers.
const PROGRAM: f64 = 0.4e9;

/// Numbers that are trained and that are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ParameterCount {
    /// All.
    pub total: usize,
    /// Those that the optimizer changes.
    pub trainable: usize,
    /// Those that FREEZE_PATTERNS freezes.
    pub frozen: usize,
}

/// How long the training is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Steps {
    /// Rows to train on.
    pub rows: usize,
    /// Rows to evaluate on.
    pub validation_rows: usize,
    /// Passes over the rows.
    pub epochs: usize,
    /// Optimizer steps in all.
    pub optimizer_steps: usize,
    /// Rows of a step.
    pub rows_a_step: usize,
    /// Forward passes of a step.
    pub passes_a_step: usize,
    /// Evaluations, those before the first and after the last step included.
    pub evaluations: usize,
}

/// Bytes at the peak, in the memory of the device that computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// The weights, in f32.
    pub weights: u64,
    /// Gradients of what is trained.
    pub gradients: u64,
    /// AdamW's two moments.
    pub moments: u64,
    /// The moving average.
    pub average: u64,
    /// Copies of the weights in 16 bits, where products are computed in them.
    pub casts: u64,
    /// Activations that the backward pass needs, and its own intermediate results.
    pub activations: u64,
    /// Images loaded ahead, and the program.
    pub other: u64,
    /// All of it.
    pub total: u64,
}

/// How long it takes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Time {
    /// Floating-point operations of an optimizer step.
    pub flop_a_step: f64,
    /// Operations a second of large matrix products on this machine, measured.
    pub flop_per_second: f64,
    /// Share of that rate which a training is taken to reach.
    pub efficiency: f64,
    /// Seconds of an optimizer step.
    pub step_s: f64,
    /// Seconds of all steps.
    pub training_s: f64,
    /// Seconds of all evaluations.
    pub evaluation_s: f64,
}

/// What a Finetune step will take.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Estimate {
    /// Numbers that are trained.
    pub parameters: ParameterCount,
    /// Patterns of the training configuration that match no parameter, as `KEY: pattern`.
    pub unmatched_patterns: Vec<String>,
    /// What the training configuration's reader should know.
    pub warnings: Vec<String>,
    /// Rows and steps.
    pub steps: Steps,
    /// Where it computes, and in which numbers.
    pub device: String,
    /// The number type of the forward passes.
    pub precision: Mode,
    /// The memory.
    pub memory: Memory,
    /// The time.
    pub time: Time,
}

/// What the arithmetic needs to know of a training.
#[derive(Debug, Clone, Copy)]
struct Shape<'a> {
    config: &'a TrainingConfig,
    sizes: &'a ModelConfig,
    half: bool,
    /// Whether features are computed once before, for the contrast of all rows.
    twice: bool,
    /// Different texts of a forward pass, and the tokens of the longest.
    texts: (usize, i64),
}

/// Reads the inputs of a Finetune step, as far as that takes no time, and works out what it will take.
///
/// # Errors
/// Those of the step itself that can be known beforehand: of the configuration, the labels, the rows and the base package.
pub(super) fn of_finetune(
    inputs: &BTreeMap<String, ResolvedInput>,
    parameters: &FinetuneParameters,
    compute: &Compute,
) -> Result<Estimate> {
    let path = |name: &str| -> Result<&std::path::Path> { Ok(super::resolved(inputs, name)?.path.as_path()) };
    let base = read_package(path("mlflow_model_path")?).context(|| "input mlflow_model_path")?;
    let parsed = training_for(&base, path("conf_files")?, parameters)?;
    let (config, shared) = parsed.config.shared_by(device::processes(compute))?;
    let mut warnings: Vec<String> = parsed.warnings.into_iter().chain(shared).collect();
    let sets = open_sets(inputs, &config, parameters.repeated)?;
    let (train, validation) = (&sets.train, &sets.validation);
    let reference = sets.reference.as_ref().unwrap_or(train).len();
    let sizes = model_config(&base)?;
    let tokenizer = Tokenizer::load(&base.tokenizer())?;
    check_vocabulary(&tokenizer, &sizes)?;
    let texts = texts(&tokenizer, &sets, (parameters, &sizes, config.batch_size))?;

    let device = device::select(compute)?;
    let mode = Mode::resolve(parameters.precision, config.fp16, device)?;
    let half = mode != Mode::F32;
    warnings.extend(mode.substitution(parameters.precision, config.fp16).map(str::to_owned));
    let (trained, unmatched) = trained(&sizes, &config)?;
    let twice = parameters.contrastive_batch == ContrastiveBatch::Total && config.micro_batches() > 1;
    let shape = Shape { config: &config, sizes: &sizes, half, twice, texts };
    let steps = steps(&config, train.len(), validation.len());
    let memory = memory(&shape, &trained);
    let flop_a_step = flop_a_step(&shape, &trained);
    let (flop_per_second, efficiency) = (speed::measure(device, half)?, speed::efficiency(device, half));
    let rate = flop_per_second * efficiency;
    let knn_rows = if config.eval_knn.is_some() { reference } else { 0 };
    let forward: f64 = image_layers(&sizes).iter().map(|l| l.flop).sum();
    let evaluation = forward * ((validation.len() + knn_rows) * steps.evaluations) as f64 / rate;
    Ok(Estimate {
        parameters: trained.count(&sizes),
        unmatched_patterns: unmatched,
        warnings,
        steps,
        device: device::name(device),
        precision: mode,
        memory,
        time: Time {
            flop_a_step,
            flop_per_second,
            efficiency,
            step_s: flop_a_step / rate,
            training_s: flop_a_step / rate * steps.optimizer_steps as f64,
            evaluation_s: evaluation,
        },
    })
}

/// Names of the parameters that are trained.
struct Trained(HashSet<String>);

impl Trained {
    fn has(&self, name: &str) -> bool {
        self.0.contains(name)
    }

    fn count(&self, sizes: &ModelConfig) -> ParameterCount {
        let mut count = ParameterCount { total: 0, trainable: 0, frozen: 0 };
        for (name, shape, _) in expected(sizes) {
            let numbers = shape.iter().product::<i64>() as usize;
            count.total += numbers;
            *(if self.has(&name) { &mut count.trainable } else { &mut count.frozen }) += numbers;
        }
        count
    }
}

/// What the optimizer will train, and the patterns that match nothing. The optimizer itself decides, over empty tensors.
fn trained(sizes: &ModelConfig, config: &TrainingConfig) -> Result<(Trained, Vec<String>)> {
    let empty = |name: String| -> Result<(String, Tensor)> {
        let tensor = Tensor::f_zeros([0i64], (Kind::Float, Device::Cpu));
        Ok((name, tensor.and_then(|t| t.f_set_requires_grad(true)).map_err(engine)?))
    };
    let params = expected(sizes).into_iter().map(|(name, ..)| empty(name)).collect::<Result<Vec<_>>>()?;
    let optimizer = AdamW::new(&params, Settings::default(), &Rules::from(config))?;
    let names = optimizer.groups().iter().flat_map(|g| g.names.iter().cloned()).collect();
    Ok((Trained(names), optimizer.unmatched().to_vec()))
}

/// Different texts that a forward pass holds at most, and the tokens of the longest.
fn texts(
    tokenizer: &Tokenizer,
    sets: &Sets,
    (parameters, sizes, batch): (&FinetuneParameters, &ModelConfig, usize),
) -> Result<(usize, i64)> {
    let templates = parameters.prompt_templates.texts();
    let labels = sets.labels.texts().iter();
    let mut all: HashSet<String> =
        labels.flat_map(|label| templates.iter().map(move |t| t.replace("{}", label))).collect();
    // captions and tags: as the first epoch draws them
    let others = sets.train.rows().iter().enumerate().filter(|(_, row)| row.class().is_none()).take(MOST_TEXTS);
    all.extend(others.map(|(i, row)| row.text(&templates, &mut SampleRng::new(parameters.seed, 0, i as u64))));
    let all: Vec<String> = all.into_iter().collect();
    let mut longest = 1;
    for part in all.chunks(1024) {
        let (_, mask) = tokenizer.encode(part, sizes.text.context_length)?;
        let tokens = mask.f_sum_dim_intlist(&[1i64][..], false, Kind::Int64);
        longest = longest.max(tokens.and_then(|n| n.f_max()?.f_int64_value(&[])).map_err(engine)?);
    }
    Ok((all.len().min(batch), longest))
}

fn steps(config: &TrainingConfig, rows: usize, validation_rows: usize) -> Steps {
    let total = Training::steps_per_epoch(config, rows) * config.epochs;
    let between = total.saturating_sub(1).checked_div(config.eval_every).unwrap_or(0);
    Steps {
        rows,
        validation_rows,
        epochs: config.epochs,
        optimizer_steps: total,
        rows_a_step: config.batch_total,
        passes_a_step: config.micro_batches(),
        evaluations: usize::from(config.eval_at_start) + between + 1,
    }
}

/// Operations of an optimizer step: forward, backward to the inputs, backward to the weights that are trained; blocks once
/// more when they are computed again, and everything once more when features are computed before.
fn flop_a_step(shape: &Shape<'_>, trained: &Trained) -> f64 {
    let Shape { config, sizes, twice, texts: (count, length), .. } = *shape;
    let factor = |layer: &Layer| {
        let weight = layer.weight.as_ref().is_none_or(|name| trained.has(name));
        let again = config.activation_checkpoint && layer.in_block;
        2.0 + f64::from(u8::from(weight)) + f64::from(u8::from(again)) + f64::from(u8::from(twice))
    };
    let sum = |layers: Vec<Layer>| layers.iter().map(|l| l.flop * factor(l)).sum::<f64>();
    let passes = config.micro_batches() as f64;
    passes * (config.batch_size as f64 * sum(image_layers(sizes)) + count as f64 * sum(text_layers(sizes, length)))
}

fn memory(shape: &Shape<'_>, trained: &Trained) -> Memory {
    let Shape { config, sizes, half, twice, texts: (count, length) } = *shape;
    let numbers = trained.count(sizes);
    let weights = numbers.total as f64 * 4.0;
    // several processes send gradients from buffers of their own
    let copies = if config.processes > 1 { 2.0 } else { 1.0 };
    let trainable = numbers.trainable as f64 * 4.0;
    let matrices: i64 =
        expected(sizes).iter().filter(|(_, s, _)| s.len() > 1).map(|(_, s, _)| s.iter().product::<i64>()).sum();
    let table = sizes.text.vocab_size * sizes.text.width;
    let casts = if half { (matrices - table) as f64 * 2.0 } else { 0.0 };
    let batch = config.batch_size as f64;
    let kept = image_kept(&sizes.image, half);
    // the backward pass of the largest block holds about as much again as gradients
    let transient = 0.5 * kept.largest;
    let activations = batch * (kept.bytes(config.activation_checkpoint) + transient)
        + count as f64 * text_kept(&sizes.text, length, half);
    let [h, w] = sizes.image.image_size;
    // with the contrast of a whole step, its images wait for the second round
    let waiting = if twice { config.micro_batches() } else { 1 };
    let images = (AHEAD + 1 + waiting) as f64 * batch * (3 * h * w) as f64 * 4.0;
    let average = if config.smoothing.is_some() { weights } else { 0.0 };
    let parts = [weights, copies * trainable, 2.0 * trainable, average, casts, activations, images + PROGRAM];
    let total = parts.iter().sum::<f64>();
    let [weights, gradients, moments, average, casts, activations, other] = parts.map(|b| b as u64);
    Memory { weights, gradients, moments, average, casts, activations, other, total: total as u64 }
}

/// Bytes, operations and seconds for people, one line each.
impl Estimate {
    /// Lines for a terminal.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let (p, s, m, t) = (&self.parameters, &self.steps, &self.memory, &self.time);
        let million = |n: usize| format!("{:.2} million", n as f64 / 1e6);
        let gb = |n: u64| format!("{:.2}", n as f64 / 1e9);
        let time = |s: f64| crate::telemetry::duration(std::time::Duration::from_secs_f64(s.clamp(0.0, 1e9)));
        let mut lines = vec![
            format!(
                "parameters  {}: {} trainable, {} frozen",
                million(p.total),
                million(p.trainable),
                million(p.frozen)
            ),
            format!(
                "steps       {} of {} rows ({} forward passes each), {} times over {} rows; evaluated {} times on {} rows",
                s.optimizer_steps, s.rows_a_step, s.passes_a_step, s.epochs, s.rows, s.evaluations, s.validation_rows
            ),
            format!(
                "memory      about {} GB on {}: weights {}, gradients {}, moments {}, average {}, 16-bit copies {}, activations {}, other {}",
                gb(m.total),
                self.device,
                gb(m.weights),
                gb(m.gradients),
                gb(m.moments),
                gb(m.average),
                gb(m.casts),
                gb(m.activations),
                gb(m.other)
            ),
            format!(
                "time        about {} in {} and {} of evaluation: {:.1} TFLOP a step at {:.0} % of the measured {:.0} GFLOP/s",
                time(t.training_s),
                self.precision.name(),
                time(t.evaluation_s),
                t.flop_a_step / 1e12,
                t.efficiency * 100.0,
                t.flop_per_second / 1e9
            ),
        ];
        lines.extend(self.unmatched_patterns.iter().map(|p| format!("warning     matches no parameter: {p}")));
        lines.extend(self.warnings.iter().map(|w| format!("warning     {w}")));
        lines
    }
}

#[cfg(test)]
mod tests;
