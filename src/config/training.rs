//! The training configuration (`conf_files`): the original's YAML keys, each honoured, accepted at its neutral value, or
//! refused by name with the reason. Nothing is ignored silently.

use super::suggest::did_you_mean;
use super::training_rules::{RULES, Rule, rule_of};
use crate::error::{Error, Result};
use serde::Serialize;
use serde_yaml_ng::Value;

/// A regular expression on parameter names and the number that goes with it.
pub type PatternValue = (String, f64);

/// Exponential moving average of the weights.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Smoothing {
    /// `average = decay * average + (1 - decay) * weights` after every optimizer step.
    pub decay: f64,
    /// Whether evaluation and export use the average.
    pub evaluate: bool,
}

/// Mixing of training images, timm's Mixup in batch mode: a batch is blended with itself in reverse order.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Mixup {
    /// Probability that a batch is mixed.
    pub probability: f64,
    /// Both parameters of the Beta distribution of mixup's share; 0 leaves mixup out.
    pub mixup_alpha: f64,
    /// The same of CutMix's.
    pub cutmix_alpha: f64,
    /// Smallest and largest side of CutMix's rectangle as a share of the image; instead of `cutmix_alpha`.
    pub cutmix_minmax: Option<[f64; 2]>,
    /// Probability of CutMix where both are possible.
    pub switch_probability: f64,
}

/// Everything that a training run is configured by.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrainingConfig {
    /// Passes over the training rows.
    pub epochs: usize,
    /// Rows an optimizer step, all micro-batches together.
    pub batch_total: usize,
    /// Rows a forward pass; the contrast of the loss is within it.
    pub batch_size: usize,
    /// Whether rows are drawn in a new order each epoch.
    pub shuffle: bool,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Learning rate at step 0.
    pub warmup_lr: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: usize,
    /// Learning rate at the end of the cosine.
    pub min_lr: f64,
    /// AdamW's decoupled weight decay.
    pub weight_decay: f64,
    /// AdamW's betas.
    pub betas: [f64; 2],
    /// AdamW's epsilon.
    pub eps: f64,
    /// Module names without weight decay.
    pub no_weight_decay_modules: Vec<String>,
    /// Weight decay by parameter name; the first match counts.
    pub weight_decay_patterns: Vec<PatternValue>,
    /// Learning-rate factor by parameter name; the first match counts.
    pub lr_scale_patterns: Vec<PatternValue>,
    /// Parameters that are not trained.
    pub freeze_patterns: Vec<String>,
    /// Largest global gradient norm; 0 does not clip.
    pub grad_clipping: f64,
    /// Moving average, if any.
    pub smoothing: Option<Smoothing>,
    /// Drop-path rate, when it differs from the base package's.
    pub drop_path_rate: Option<f64>,
    /// Area share of RandomResizedCrop.
    pub crop_scale: [f64; 2],
    /// Aspect ratio of RandomResizedCrop.
    pub crop_ratio: [f64; 2],
    /// Probability of a horizontal flip.
    pub hflip: f64,
    /// Probability of a vertical flip.
    pub vflip: f64,
    /// Probability of RandomErasing.
    pub erase: f64,
    /// TrivialAugmentWide: one of its 14 operations at a random strength for each image.
    pub auto_augment: bool,
    /// Mixup and CutMix, if any.
    pub mixup: Option<Mixup>,
    /// Evaluate before the first step.
    pub eval_at_start: bool,
    /// Optimizer steps between evaluations; 0 evaluates at the end only.
    pub eval_every: usize,
    /// Images a forward pass in evaluation.
    pub eval_batch_size: usize,
    /// Zero-shot evaluation with the label texts.
    pub eval_zero_shot: bool,
    /// Neighbours of kNN evaluation, when configured.
    pub eval_knn: Option<usize>,
    /// Optimizer steps between log lines.
    pub log_every: usize,
    /// Mixed precision; which number type is the job's parameter `precision`.
    pub fp16: bool,
    /// Recompute the image blocks' activations in the backward pass instead of keeping them.
    pub activation_checkpoint: bool,
    /// Continue an interrupted training of the same job at its newest checkpoint.
    pub resume: bool,
    /// Optimizer steps between checkpoints; 0 writes one only when the run is told to stop.
    pub save_every: usize,
    /// How many processes share every step.
    #[serde(skip)]
    pub processes: usize,
}

impl TrainingConfig {
    /// Forward passes of each process in an optimizer step.
    #[must_use]
    pub fn micro_batches(&self) -> usize {
        self.batch_total / (self.batch_size * self.processes)
    }

    /// The same shared by several processes, each with a part of every step; and what the reader should be told.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Config`] when a step has fewer rows than there are processes.
    pub fn shared_by(mut self, processes: usize) -> Result<(TrainingConfig, Option<String>)> {
        let (total, most) = (self.batch_total, self.batch_total / processes);
        if most == 0 {
            return Err(Error::config(format!(
                "TRAIN.BATCH_SIZE_TOTAL: {total} rows cannot be shared by {processes} processes: give it at least one row for each"
            )));
        }
        let asked = self.batch_size;
        self.processes = processes;
        self.batch_size = asked.min(most);
        self.batch_total = self.batch_size * processes * (total / (self.batch_size * processes));
        let several = if processes > 1 { format!(" in each of {processes} processes") } else { String::new() };
        let told = if self.batch_total != total {
            Some(format!(
                "TRAIN.BATCH_SIZE_TOTAL {total} is not a multiple of BATCH_SIZE_PER_GPU {}{several}: a step takes {}",
                self.batch_size, self.batch_total
            ))
        } else {
            let less = self.batch_size != asked && asked != total;
            less.then(|| format!("TRAIN.BATCH_SIZE_PER_GPU {asked}{several} is too much: it takes {most}"))
        };
        Ok((self, told))
    }
}

/// A parsed training configuration with what its reader should be told.
#[derive(Debug, Clone)]
pub struct Parsed {
    /// The typed configuration.
    pub config: TrainingConfig,
    /// Keys that describe the model, to be compared with the base package: path and value.
    pub model_keys: Vec<(String, Value)>,
    /// Warnings, one sentence each, naming the key.
    pub warnings: Vec<String>,
}

/// Sections whose values are maps from patterns, not further keys.
const PATTERN_MAPS: [&str; 2] =
    ["CUSTOMIZED_PARAMS_CONF.WEIGHT_DECAY_PATTERNS", "CUSTOMIZED_PARAMS_CONF.LR_SCALE_PATTERNS"];

/// Checks every key of `document` and builds the configuration; `origin` names the file in errors.
///
/// # Errors
/// [`crate::ErrorKind::Config`] naming the key, why it is refused and what would be accepted.
pub fn parse(document: &Value, origin: &str) -> Result<Parsed> {
    let mut leaves = Vec::new();
    flatten(document, "", &mut leaves);
    if leaves.is_empty() {
        return Err(Error::config(format!("{origin}: holds no keys; it must be a training configuration")));
    }
    let (mut model_keys, mut idle) = (Vec::new(), Vec::new());
    for (path, value) in &leaves {
        let Some((rule, note)) = rule_of(path) else {
            let known = RULES.iter().map(|(p, ..)| *p).filter(|p| !p.contains('*'));
            return Err(Error::config(format!("{origin}: unknown key '{path}': {}", did_you_mean(path, known))));
        };
        match rule {
            Rule::NoEffect if !note.is_empty() && surprising(path, value, &leaves) => {
                idle.push(format!("{path} ({note})"));
            }
            Rule::Honoured | Rule::NoEffect => {}
            Rule::Model => model_keys.push((path.clone(), value.clone())),
            Rule::Only(values) if values.contains(&text_of(value).as_str()) => {}
            Rule::Only(values) => {
                let accepted: Vec<String> = values.iter().filter(|v| !v.is_empty()).map(|v| (*v).to_owned()).collect();
                return Err(Error::config(format!(
                    "{origin}: {path}: {} is not supported: {note}; accepted: {}, or leave the key out",
                    text_of(value),
                    if accepted.is_empty() { "''".to_owned() } else { accepted.join(", ") }
                )));
            }
        }
    }
    let mut warnings = Vec::new();
    let keys = Keys { leaves: &leaves, origin };
    let config = keys.config(&mut warnings)?;
    if !idle.is_empty() {
        warnings.push(format!("without effect here: {}", idle.join(", ")));
    }
    let zips = leaves.iter().filter(|(path, value)| path.ends_with(".FORMAT") && text_of(value) == "zip");
    let zips: Vec<&str> = zips.map(|(path, _)| path.as_str()).collect();
    if !zips.is_empty() {
        warnings.push(format!(
            "{}: zip: such a section asks for its kind of evaluation; the rows are those of the job's eval_image_tsv and \
             eval_text_tsv",
            zips.join(", ")
        ));
    }
    Ok(Parsed { config, model_keys, warnings })
}

/// Whether somebody could believe that the key does something: a neutral value asks for nothing.
fn surprising(path: &str, value: &Value, leaves: &[(String, Value)]) -> bool {
    let number = |key: &str| leaves.iter().find(|(p, _)| p == key).and_then(|(_, v)| v.as_f64());
    match (path, text_of(value).as_str()) {
        (_, "" | "null" | "[]") => false,
        ("DATASET.TRAIN_SET", "full") | ("SET_SAMPLER_EPOCH", "true") | ("DONT_LOAD_MODEL", "false") => false,
        ("GRADIENT_ACCUMULATE_STEP", "-1" | "1") => false,
        ("LR_SCHEDULER_PARAMS.epochs", _) => value.as_f64() != number("MAX_NUM_EPOCHS"),
        ("LR_SCHEDULER_PARAMS.steps_update_per_epoch", "1") => false,
        ("IMAGE_ENCODER.SPEC.DROP_RATE", _) => value.as_f64() != Some(0.0),
        _ => true,
    }
}

fn flatten(value: &Value, path: &str, out: &mut Vec<(String, Value)>) {
    match value {
        Value::Mapping(map) if !PATTERN_MAPS.contains(&path) => {
            for (key, inner) in map {
                let key = key.as_str().map_or_else(|| text_of(key), str::to_owned);
                let path = if path.is_empty() { key } else { format!("{path}.{key}") };
                flatten(inner, &path, out);
            }
        }
        other if !path.is_empty() => out.push((path.to_owned(), other.clone())),
        _ => {}
    }
}

/// A value as it is written in YAML, on one line.
fn text_of(value: &Value) -> String {
    match value {
        Value::String(s) => s.clone(),
        Value::Sequence(items) => format!("[{}]", items.iter().map(text_of).collect::<Vec<_>>().join(", ")),
        Value::Mapping(map) => {
            let pairs = map.iter().map(|(k, v)| format!("{}: {}", text_of(k), text_of(v)));
            format!("{{{}}}", pairs.collect::<Vec<_>>().join(", "))
        }
        other => serde_yaml_ng::to_string(other).unwrap_or_default().trim().to_owned(),
    }
}

struct Keys<'a> {
    leaves: &'a [(String, Value)],
    origin: &'a str,
}

impl Keys<'_> {
    fn get(&self, path: &str) -> Option<&Value> {
        self.leaves.iter().find(|(p, _)| p == path).map(|(_, v)| v).filter(|v| !v.is_null())
    }

    fn wrong(&self, path: &str, what: &str) -> Error {
        let found = self.get(path).map(text_of).unwrap_or_default();
        Error::config(format!("{}: {path}: must be {what}, not '{found}'", self.origin))
    }

    fn number(&self, path: &str, default: f64, low: f64, high: f64) -> Result<f64> {
        let Some(value) = self.get(path) else { return Ok(default) };
        // YAML 1.1 readers take 1e-5 for text; accept it as the number that it is
        let number = value.as_f64().or_else(|| value.as_str().and_then(|s| s.parse().ok()));
        number
            .filter(|n| (low..=high).contains(n))
            .ok_or_else(|| self.wrong(path, &format!("a number from {low} to {high}")))
    }

    fn whole(&self, path: &str, default: usize, low: u64) -> Result<usize> {
        let Some(value) = self.get(path) else { return Ok(default) };
        let found = value.as_u64().filter(|n| *n >= low).and_then(|n| usize::try_from(n).ok());
        found.ok_or_else(|| self.wrong(path, &format!("a whole number of at least {low}")))
    }

    fn flag(&self, path: &str, default: bool) -> Result<bool> {
        let Some(value) = self.get(path) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.wrong(path, "true or false"))
    }

    fn pair(&self, path: &str, default: [f64; 2]) -> Result<[f64; 2]> {
        let Some(value) = self.get(path) else { return Ok(default) };
        let numbers: Option<Vec<f64>> = value.as_sequence().and_then(|s| s.iter().map(Value::as_f64).collect());
        match numbers.as_deref() {
            Some([a, b]) if *a >= 0.0 && a <= b => Ok([*a, *b]),
            _ => Err(self.wrong(path, "two rising numbers, e.g. [0.8, 1.0]")),
        }
    }

    fn texts(&self, path: &str) -> Result<Vec<String>> {
        let Some(value) = self.get(path) else { return Ok(Vec::new()) };
        let list: Option<Vec<String>> =
            value.as_sequence().and_then(|s| s.iter().map(|v| v.as_str().map(str::to_owned)).collect());
        list.ok_or_else(|| self.wrong(path, "a list of texts"))
    }

    fn patterns(&self, path: &str) -> Result<Vec<PatternValue>> {
        let Some(value) = self.get(path) else { return Ok(Vec::new()) };
        let pairs: Option<Vec<PatternValue>> = value
            .as_mapping()
            .and_then(|m| m.iter().map(|(k, v)| Some((k.as_str()?.to_owned(), v.as_f64()?))).collect());
        let pairs = pairs.ok_or_else(|| self.wrong(path, "a mapping from patterns to numbers"))?;
        for (pattern, value) in &pairs {
            if *value < 0.0 {
                return Err(Error::config(format!("{}: {path}: '{pattern}' must not be under 0", self.origin)));
            }
            self.check_pattern(path, pattern)?;
        }
        Ok(pairs)
    }

    fn check_pattern(&self, path: &str, pattern: &str) -> Result<()> {
        regex::Regex::new(pattern).map(|_| ()).map_err(|e| {
            Error::config(format!("{}: {path}: '{pattern}' is not a regular expression", self.origin)).with_source(e)
        })
    }

    /// A count for which the original also writes -1 when it means 0.
    fn count_or_off(&self, path: &str) -> Result<usize> {
        match self.get(path).and_then(Value::as_i64) {
            Some(-1) => Ok(0),
            _ => self.whole(path, 0, 0),
        }
    }

    fn mixup(&self) -> Result<Option<Mixup>> {
        let probability = self.number("AUG.MIXUP_PROB", 0.0, 0.0, 1.0)?;
        if probability == 0.0 {
            return Ok(None);
        }
        let minmax = "AUG.MIXCUT_MINMAX";
        let given = self.get(minmax).is_some_and(|v| v.as_sequence().is_none_or(|s| !s.is_empty()));
        let mixup = Mixup {
            probability,
            mixup_alpha: self.number("AUG.MIXUP", 0.8, 0.0, 100.0)?,
            cutmix_alpha: self.number("AUG.MIXCUT", 1.0, 0.0, 100.0)?,
            cutmix_minmax: given.then(|| self.pair(minmax, [0.0, 1.0])).transpose()?,
            switch_probability: self.number("AUG.MIXUP_SWITCH_PROB", 0.5, 0.0, 1.0)?,
        };
        if mixup.cutmix_minmax.is_some_and(|[_, high]| high > 1.0) {
            return Err(self.wrong(minmax, "two rising numbers from 0 to 1"));
        }
        if mixup.mixup_alpha == 0.0 && mixup.cutmix_alpha == 0.0 && mixup.cutmix_minmax.is_none() {
            return Err(self.wrong("AUG.MIXUP_PROB", "0 where AUG.MIXUP and AUG.MIXCUT are both 0"));
        }
        Ok(Some(mixup))
    }

    fn smoothing(&self) -> Result<Option<Smoothing>> {
        if !self.leaves.iter().any(|(p, v)| p.starts_with("WEIGHT_SMOOTHING.") && !v.is_null()) {
            return Ok(None);
        }
        let decay = self.number("WEIGHT_SMOOTHING.decay", 0.999, 0.0, 1.0)?;
        Ok(Some(Smoothing { decay, evaluate: self.flag("WEIGHT_SMOOTHING.eval_smoothed_weight", true)? }))
    }

    /// Which evaluations the EVALDATASET_ and ZEROSHOT_EVAL_DATASET sections ask for; both, with K 64, when there are none.
    fn evaluations(&self) -> Result<(bool, Option<usize>)> {
        let mut sections: Vec<&str> = self
            .leaves
            .iter()
            .filter(|(p, _)| p.starts_with("EVALDATASET_"))
            .filter_map(|(p, _)| p.split_once('.').map(|(s, _)| s))
            .collect();
        sections.dedup();
        let mut zero_shot = self.leaves.iter().any(|(p, _)| p.starts_with("ZEROSHOT_EVAL_DATASET."));
        if sections.is_empty() && !zero_shot {
            return Ok((true, Some(64)));
        }
        let mut knn = None;
        for section in sections {
            let path = format!("{section}.KNN");
            let by_text = self.whole(&format!("{section}.ZS_MODE"), 0, 0)? == 2;
            zero_shot |= by_text;
            if by_text && self.get(&path).is_none() {
                continue;
            }
            let k = self.whole(&path, 64, 1)?;
            if knn.is_some_and(|other| other != k) {
                return Err(Error::config(format!("{}: {path}: {k}, but another section has another K", self.origin)));
            }
            knn = Some(k);
        }
        Ok((zero_shot, knn))
    }

    fn config(&self, warnings: &mut Vec<String>) -> Result<TrainingConfig> {
        let batch_total = self.whole("TRAIN.BATCH_SIZE_TOTAL", 48, 2)?;
        let asked = self.whole("TRAIN.BATCH_SIZE_PER_GPU", batch_total, 2)?;
        if asked > batch_total {
            warnings.push(format!(
                "TRAIN.BATCH_SIZE_PER_GPU {asked} is more than BATCH_SIZE_TOTAL {batch_total}: it takes {batch_total}"
            ));
        }
        let batch_size = asked.min(batch_total);
        let freeze_patterns = self.texts("CUSTOMIZED_PARAMS_CONF.FREEZE_PATTERNS")?;
        for pattern in &freeze_patterns {
            self.check_pattern("CUSTOMIZED_PARAMS_CONF.FREEZE_PATTERNS", pattern)?;
        }
        let betas = self.pair("OPTIMIZER_PARAMS.betas", [0.9, 0.999])?;
        if betas[1] >= 1.0 {
            return Err(self.wrong("OPTIMIZER_PARAMS.betas", "two numbers from 0 to under 1"));
        }
        for path in ["AUG.SCALE", "AUG.RATIO"] {
            let [low, high] = self.pair(path, [1.0, 1.0])?;
            if low <= 0.0 || (path == "AUG.SCALE" && high > 1.0) {
                return Err(self.wrong(path, "two rising numbers over 0 (for SCALE up to 1)"));
            }
        }
        let (eval_zero_shot, eval_knn) = self.evaluations()?;
        let drop_path = "IMAGE_ENCODER.SPEC.DROP_PATH_RATE";
        let drop_path_rate = self.get(drop_path).map(|_| self.number(drop_path, 0.0, 0.0, 0.999)).transpose()?;
        Ok(TrainingConfig {
            epochs: self.whole("MAX_NUM_EPOCHS", 15, 1)?,
            batch_total,
            processes: 1,
            batch_size,
            shuffle: self.flag("TRAIN.SHUFFLE", true)?,
            learning_rate: self.number("START_LEARNING_RATE", 5e-6, 0.0, 10.0)?,
            warmup_lr: self.number("LR_SCHEDULER_PARAMS.warmup_lr", 1e-9, 0.0, 10.0)?,
            warmup_steps: self.whole("LR_SCHEDULER_PARAMS.warmup_steps", 0, 0)?,
            min_lr: self.number("LR_SCHEDULER_PARAMS.min_lr", 1e-9, 0.0, 10.0)?,
            weight_decay: self.number("OPTIMIZER_PARAMS.weight_decay", 0.01, 0.0, 100.0)?,
            betas,
            eps: self.number("OPTIMIZER_PARAMS.eps", 1e-8, 0.0, 1.0)?,
            no_weight_decay_modules: self.texts("CUSTOMIZED_PARAMS_CONF.NO_WEIGHT_DECAY_MODULES")?,
            weight_decay_patterns: self.patterns("CUSTOMIZED_PARAMS_CONF.WEIGHT_DECAY_PATTERNS")?,
            lr_scale_patterns: self.patterns("CUSTOMIZED_PARAMS_CONF.LR_SCALE_PATTERNS")?,
            freeze_patterns,
            grad_clipping: self.number("GRAD_CLIPPING", 0.0, 0.0, 1e9)?,
            smoothing: self.smoothing()?,
            drop_path_rate,
            crop_scale: self.pair("AUG.SCALE", [0.8, 1.0])?,
            crop_ratio: self.pair("AUG.RATIO", [0.75, 4.0 / 3.0])?,
            hflip: self.number("AUG.TORCHVISION_AUG.HFLIP", 0.0, 0.0, 1.0)?,
            vflip: self.number("AUG.TORCHVISION_AUG.VFLIP", 0.0, 0.0, 1.0)?,
            erase: self.number("AUG.TORCHVISION_AUG.RE_PROB", 0.0, 0.0, 1.0)?,
            auto_augment: self.get("AUG.TORCHVISION_AUG.AUTO_AUGMENT").map(text_of).as_deref() == Some("ta_wide"),
            mixup: self.mixup()?,
            eval_at_start: self.flag("EVAL_AT_START", true)?,
            eval_every: self.whole("EVAL_PER_OPTIM_STEPS", 0, 0)?,
            eval_batch_size: self.whole("TEST.BATCH_SIZE_PER_GPU", 8, 1)?,
            eval_zero_shot,
            eval_knn,
            log_every: self.whole("LOG_EVERY", 10, 1)?,
            fp16: self.flag("FP16", false)?,
            activation_checkpoint: self.flag("IMAGE_ENCODER.SPEC.ENABLE_CHECKPOINT", false)?,
            resume: self.flag("RESUME", true)?,
            save_every: self.count_or_off("SAVE_PER_OPTIM_STEPS")?,
        })
    }
}

/// Compares the keys that describe the model with the base package's configuration.
///
/// # Errors
/// [`crate::ErrorKind::Config`] naming the first key that says something else.
pub fn check_model_keys(keys: &[(String, Value)], base: &Value, origin: &str) -> Result<()> {
    for (path, wanted) in keys {
        let Some(found) = path.split('.').try_fold(base, |at, key| at.get(key)) else {
            return Err(Error::config(format!(
                "{origin}: unknown key '{path}': the base model package's config.yaml has no such key; leave it out"
            )));
        };
        if !same(found, wanted) {
            return Err(Error::config(format!(
                "{origin}: {path}: {} differs from the base model package, which has {}; leave the key out",
                text_of(wanted),
                text_of(found)
            )));
        }
    }
    Ok(())
}

/// Equal values, however numbers are written: 1 is 1.0.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Sequence(a), Value::Sequence(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        _ => a == b || a.as_f64().is_some_and(|n| Some(n) == b.as_f64()),
    }
}

#[cfg(test)]
#[path = "training_tests.rs"]
mod tests;
