//! AdamW over parameter groups, with state that this program owns: it is saved and restored exactly.
//!
//! Guarantees: a parameter is in one group or frozen, never both; groups depend only on names and rules; a parameter
//! without a gradient in a step is left as it is, its state too. The arithmetic is PyTorch's fused AdamW.

use crate::config::training::TrainingConfig;
use crate::error::{Error, Result};
use crate::model::{engine, engine_text};
use regex::Regex;
use tch::{Kind, Tensor};

/// Hyper-parameters of AdamW; the defaults are PyTorch's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Base learning rate, before group scales and the schedule.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the denominator.
    pub eps: f64,
    /// Decoupled weight decay of parameters that no rule gives another.
    pub weight_decay: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 }
    }
}

/// Which parameters are frozen, and which have a weight decay or learning rate of their own.
///
/// Patterns are regular expressions searched anywhere in the parameter's name; the first that matches counts.
/// A parameter of `no_weight_decay_modules` has weight decay 0 whatever the patterns say.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rules {
    /// `dw` (the weights of depthwise convolutions), `norm` (weights and biases of every normalisation layer), or any
    /// other component of a parameter's path.
    pub no_weight_decay_modules: Vec<String>,
    /// Weight decay by pattern.
    pub weight_decay_patterns: Vec<(String, f64)>,
    /// Factor on the learning rate by pattern.
    pub lr_scale_patterns: Vec<(String, f64)>,
    /// Parameters that do not train.
    pub freeze_patterns: Vec<String>,
}

impl From<&TrainingConfig> for Settings {
    fn from(config: &TrainingConfig) -> Settings {
        let [beta1, beta2] = config.betas;
        Settings { lr: config.learning_rate, beta1, beta2, eps: config.eps, weight_decay: config.weight_decay }
    }
}

impl From<&TrainingConfig> for Rules {
    fn from(config: &TrainingConfig) -> Rules {
        Rules {
            no_weight_decay_modules: config.no_weight_decay_modules.clone(),
            weight_decay_patterns: config.weight_decay_patterns.clone(),
            lr_scale_patterns: config.lr_scale_patterns.clone(),
            freeze_patterns: config.freeze_patterns.clone(),
        }
    }
}

/// AdamW with its state.
#[derive(Debug)]
pub struct AdamW {
    settings: Settings,
    groups: Vec<Group>,
    frozen: Vec<String>,
    unmatched: Vec<String>,
}

/// Parameters that share weight decay and learning-rate scale.
#[derive(Debug)]
pub struct Group {
    /// Weight decay of the group.
    pub weight_decay: f64,
    /// Factor on the base learning rate.
    pub lr_scale: f64,
    /// Parameter names, in the order given.
    pub names: Vec<String>,
    params: Vec<Tensor>,
    exp_avgs: Vec<Tensor>,
    exp_avg_sqs: Vec<Tensor>,
    steps: Vec<Tensor>,
}

impl AdamW {
    /// Sorts `params` into groups, with zero state; frozen parameters stop requiring gradients, and those that require none
    /// already are left out.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Config`] for a pattern that is no regular expression, a value out of range, or when nothing is
    /// left to train; [`crate::ErrorKind::Engine`] when memory for the state runs out.
    pub fn new(params: &[(String, Tensor)], settings: Settings, rules: &Rules) -> Result<AdamW> {
        settings.check()?;
        let rules = Compiled::new(rules)?;
        let mut optimizer = AdamW { settings, groups: Vec::new(), frozen: Vec::new(), unmatched: Vec::new() };
        optimizer.unmatched = rules.unmatched(params);
        for (name, param) in params {
            if rules.freeze.iter().any(|r| r.is_match(name)) {
                let _ = param.f_set_requires_grad(false).map_err(engine)?;
            }
            if !param.requires_grad() {
                optimizer.frozen.push(name.clone());
                continue;
            }
            let decay = rules.weight_decay(name).unwrap_or(settings.weight_decay);
            optimizer.group(decay, rules.lr_scale(name)).push(name, param)?;
        }
        if optimizer.groups.is_empty() {
            return Err(Error::config("FREEZE_PATTERNS freezes every parameter: leave at least one to train"));
        }
        Ok(optimizer)
    }

    fn group(&mut self, weight_decay: f64, lr_scale: f64) -> &mut Group {
        let same = |g: &Group| g.weight_decay == weight_decay && g.lr_scale == lr_scale;
        let index = self.groups.iter().position(same).unwrap_or_else(|| {
            self.groups.push(Group::new(weight_decay, lr_scale));
            self.groups.len() - 1
        });
        &mut self.groups[index]
    }

    /// The groups, in the order of their first parameter.
    #[must_use]
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// Names of the parameters that do not train.
    #[must_use]
    pub fn frozen(&self) -> &[String] {
        &self.frozen
    }

    /// Rules that matched no parameter, as `KEY: pattern`, for a warning.
    #[must_use]
    pub fn unmatched(&self) -> &[String] {
        &self.unmatched
    }

    /// The hyper-parameters.
    #[must_use]
    pub fn settings(&self) -> Settings {
        self.settings
    }

    fn gradients(&self) -> Result<Vec<Tensor>> {
        let mut out = Vec::new();
        for param in self.groups.iter().flat_map(|g| &g.params) {
            let grad = param.f_grad().map_err(engine)?;
            if grad.defined() {
                out.push(grad);
            }
        }
        Ok(out)
    }

    /// Lets go of the gradients: they take no memory in the next forward pass.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Engine`] when libtorch fails.
    pub fn zero_grad(&mut self) -> Result<()> {
        let params: Vec<Tensor> = self.groups.iter().flat_map(|g| &g.params).map(Tensor::shallow_clone).collect();
        medtune_native::drop_gradients(&params).map_err(|text| engine_text(&text))
    }

    /// Multiplies the gradients by `factor`: the inverse of a loss scale, or of the number of accumulation steps.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Engine`] when libtorch fails.
    pub fn scale_grad(&mut self, factor: f64) -> Result<()> {
        medtune_native::scale(&self.gradients()?, factor).map_err(|text| engine_text(&text))
    }

    /// Scales the gradients so that their global L2 norm is at most `max_norm`; returns the norm before. A norm that is not
    /// finite leaves nothing usable: the caller must skip the step. `f64::INFINITY` only measures.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Engine`] when libtorch fails.
    pub fn clip(&mut self, max_norm: f64) -> Result<f64> {
        medtune_native::clip_grad_norm(&self.gradients()?, max_norm).map_err(|text| engine_text(&text))
    }

    /// One update; `lr` maps a group's base rate (the base rate times its scale) to the rate of this update.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Engine`] when libtorch fails.
    pub fn step(&mut self, lr: impl Fn(f64) -> f64) -> Result<()> {
        let s = self.settings;
        for group in &self.groups {
            let lr = lr(s.lr * group.lr_scale);
            let weight_decay = group.weight_decay;
            group.step(medtune_native::AdamW { lr, beta1: s.beta1, beta2: s.beta2, weight_decay, eps: s.eps })?;
        }
        Ok(())
    }

    /// The state by name (`exp_avg.NAME`, `exp_avg_sq.NAME`, `step.NAME`), sharing memory with this object, for a checkpoint.
    #[must_use]
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let mut out = Vec::new();
        for group in &self.groups {
            for (i, name) in group.names.iter().enumerate() {
                out.push((format!("exp_avg.{name}"), group.exp_avgs[i].shallow_clone()));
                out.push((format!("exp_avg_sq.{name}"), group.exp_avg_sqs[i].shallow_clone()));
                out.push((format!("step.{name}"), group.steps[i].shallow_clone()));
            }
        }
        out
    }
}

impl Group {
    fn new(weight_decay: f64, lr_scale: f64) -> Group {
        let (params, exp_avgs, exp_avg_sqs, steps) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Group { weight_decay, lr_scale, names: Vec::new(), params, exp_avgs, exp_avg_sqs, steps }
    }

    fn push(&mut self, name: &str, param: &Tensor) -> Result<()> {
        let zeros = || param.f_detach().and_then(|p| p.f_zeros_like()).map_err(engine);
        self.exp_avgs.push(zeros()?);
        self.exp_avg_sqs.push(zeros()?);
        // the fused kernel reads the counts where the parameters are
        self.steps.push(Tensor::f_zeros([0i64; 0], (Kind::Float, param.device())).map_err(engine)?);
        self.params.push(param.shallow_clone());
        self.names.push(name.to_owned());
        Ok(())
    }

    fn step(&self, hyper: medtune_native::AdamW) -> Result<()> {
        let mut lists: [Vec<Tensor>; 5] = Default::default();
        for (i, param) in self.params.iter().enumerate() {
            let grad = param.f_grad().map_err(engine)?;
            if !grad.defined() {
                continue;
            }
            let state = [&self.exp_avgs[i], &self.exp_avg_sqs[i], &self.steps[i]];
            let row = [param.shallow_clone(), grad].into_iter().chain(state.map(Tensor::shallow_clone));
            for (list, tensor) in lists.iter_mut().zip(row) {
                list.push(tensor);
            }
        }
        let [params, grads, exp_avgs, exp_avg_sqs, steps] = &lists;
        let group = medtune_native::AdamWGroup { params, grads, exp_avgs, exp_avg_sqs, steps };
        medtune_native::fused_adamw(&group, hyper).map_err(|text| engine_text(&text))
    }
}

impl Settings {
    fn check(&self) -> Result<()> {
        let fraction = |v: f64| (0.0..1.0).contains(&v);
        let amount = |v: f64| v.is_finite() && v >= 0.0;
        let checks = [
            ("learning rate", self.lr, amount(self.lr)),
            ("beta1", self.beta1, fraction(self.beta1)),
            ("beta2", self.beta2, fraction(self.beta2)),
            ("eps", self.eps, amount(self.eps)),
            ("weight_decay", self.weight_decay, amount(self.weight_decay)),
        ];
        match checks.into_iter().find(|(_, _, good)| !good) {
            None => Ok(()),
            Some((name, value, _)) => Err(Error::config(format!(
                "the optimizer's {name} is {value}: give a finite number that is not negative (betas: below 1)"
            ))),
        }
    }
}

/// Path components that are normalisation layers in this model.
const NORM_LAYERS: [&str; 5] = ["norm", "norms", "ln_1", "ln_2", "ln_final"];

struct Compiled {
    modules: Vec<String>,
    decay: Vec<(Regex, f64)>,
    scale: Vec<(Regex, f64)>,
    freeze: Vec<Regex>,
}

impl Compiled {
    fn new(rules: &Rules) -> Result<Compiled> {
        let valued = |key: &str, list: &[(String, f64)]| {
            list.iter()
                .map(|(pattern, value)| {
                    if !value.is_finite() || *value < 0.0 {
                        let place = format!("CUSTOMIZED_PARAMS_CONF.{key}.'{pattern}'");
                        return Err(Error::config(format!(
                            "{place} is {value}: give a finite number that is not negative"
                        )));
                    }
                    Ok((compile(key, pattern)?, *value))
                })
                .collect::<Result<Vec<_>>>()
        };
        Ok(Compiled {
            modules: rules.no_weight_decay_modules.clone(),
            decay: valued("WEIGHT_DECAY_PATTERNS", &rules.weight_decay_patterns)?,
            scale: valued("LR_SCALE_PATTERNS", &rules.lr_scale_patterns)?,
            freeze: rules.freeze_patterns.iter().map(|p| compile("FREEZE_PATTERNS", p)).collect::<Result<_>>()?,
        })
    }

    fn weight_decay(&self, name: &str) -> Option<f64> {
        if self.modules.iter().any(|module| in_module(name, module)) {
            return Some(0.0);
        }
        self.decay.iter().find(|(pattern, _)| pattern.is_match(name)).map(|&(_, value)| value)
    }

    fn lr_scale(&self, name: &str) -> f64 {
        self.scale.iter().find(|(pattern, _)| pattern.is_match(name)).map_or(1.0, |&(_, value)| value)
    }

    fn unmatched(&self, params: &[(String, Tensor)]) -> Vec<String> {
        let none = |test: &dyn Fn(&str) -> bool| !params.iter().any(|(name, _)| test(name));
        let modules = self.modules.iter().filter(|m| none(&|name| in_module(name, m)));
        let mut out: Vec<String> = modules.map(|m| format!("NO_WEIGHT_DECAY_MODULES: {m}")).collect();
        let decay = self.decay.iter().map(|(r, _)| ("WEIGHT_DECAY_PATTERNS", r));
        let scale = self.scale.iter().map(|(r, _)| ("LR_SCALE_PATTERNS", r));
        let freeze = self.freeze.iter().map(|r| ("FREEZE_PATTERNS", r));
        let patterns = decay.chain(scale).chain(freeze).filter(|(_, r)| none(&|name| r.is_match(name)));
        out.extend(patterns.map(|(key, r)| format!("{key}: {r}")));
        out
    }
}

fn compile(key: &str, pattern: &str) -> Result<Regex> {
    Regex::new(pattern).map_err(|e| {
        let reason = e.to_string();
        let reason = reason.lines().last().unwrap_or_default().trim().trim_start_matches("error: ").to_owned();
        Error::config(format!("CUSTOMIZED_PARAMS_CONF.{key}: '{pattern}' is not a regular expression: {reason}"))
    })
}

fn in_module(name: &str, module: &str) -> bool {
    let mut path = name.split('.');
    match module {
        "norm" => path.any(|part| NORM_LAYERS.contains(&part)),
        "dw" => path.any(|part| part == "dw") && name.ends_with(".weight"),
        _ => path.any(|part| part == module),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::weights;

    fn param(name: &str) -> (String, Tensor) {
        (name.to_owned(), Tensor::from_slice(&[1f32, -2.0, 0.5]).set_requires_grad(true))
    }

    fn backward(p: &Tensor) {
        (p * p * Tensor::from_slice(&[1f32, 2.0, 3.0])).sum(Kind::Float).backward();
    }

    fn values(t: &Tensor) -> Vec<f32> {
        Vec::try_from(t).unwrap()
    }

    #[test]
    fn groups_follow_the_shipped_rules() {
        let names = [
            "image_encoder.blocks.0.0.spatial_block.conv1.fn.dw.weight",
            "image_encoder.blocks.0.0.spatial_block.window_attn.norm.weight",
            "image_encoder.blocks.0.0.spatial_block.window_attn.fn.qkv.weight",
            "image_encoder.blocks.0.0.spatial_block.window_attn.fn.qkv.bias",
            "image_encoder.norms.weight",
            "lang_encoder.resblocks.0.ln_1.weight",
            "lang_encoder.resblocks.3.ln_1.weight",
            "logit_scale",
            "image_projection",
        ];
        let params: Vec<_> = names.iter().map(|n| param(n)).collect();
        let strings = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let rules = Rules {
            no_weight_decay_modules: strings(&["dw", "norm"]),
            weight_decay_patterns: vec![(r"\.bias$".to_owned(), 0.0), ("logit_scale".to_owned(), 0.0)],
            lr_scale_patterns: vec![("_projection$".to_owned(), 0.1), ("image".to_owned(), 1.0)],
            freeze_patterns: strings(&[r"^lang_encoder.resblocks.0\.", r"^convs\.", r"^blocks.0\."]),
        };
        let settings = Settings { weight_decay: 0.4, ..Settings::default() };
        let optimizer = AdamW::new(&params, settings, &rules).unwrap();
        let groups: Vec<_> = optimizer.groups().iter().map(|g| (g.weight_decay, g.lr_scale, g.names.len())).collect();
        assert_eq!(groups, [(0.0, 1.0, 6), (0.4, 1.0, 1), (0.4, 0.1, 1)]);
        assert_eq!(optimizer.frozen(), [names[5]]);
        assert!(!params[5].1.requires_grad());
        assert_eq!(optimizer.unmatched(), [r"FREEZE_PATTERNS: ^convs\.", r"FREEZE_PATTERNS: ^blocks.0\."]);
    }

    #[test]
    fn steps_equal_pytorch() {
        // torch.optim.AdamW([p], lr=0.1, weight_decay=0.4) of torch 2.11 on sum(p^2 * [1, 2, 3]), three steps.
        let params = [param("w")];
        let settings = Settings { lr: 0.1, weight_decay: 0.4, ..Settings::default() };
        let mut optimizer = AdamW::new(&params, settings, &Rules::default()).unwrap();
        for _ in 0..3 {
            optimizer.zero_grad().unwrap();
            backward(&params[0].1);
            optimizer.step(|base| base).unwrap();
        }
        let expected = [0.599_145_4, -1.482_633_2, 0.160_800_2];
        for (ours, theirs) in values(&params[0].1).into_iter().zip(expected) {
            assert!((f64::from(ours) - theirs).abs() < 1e-6, "{ours} instead of {theirs}");
        }
    }

    #[test]
    fn a_restored_state_continues_exactly() {
        let first = [param("w")];
        let mut a = AdamW::new(&first, Settings::default(), &Rules::default()).unwrap();
        for _ in 0..2 {
            a.zero_grad().unwrap();
            backward(&first[0].1);
            a.step(|base| base).unwrap();
        }
        let second = [("w".to_owned(), first[0].1.detach().copy().set_requires_grad(true))];
        let mut b = AdamW::new(&second, Settings::default(), &Rules::default()).unwrap();
        // through a file, as a checkpoint does
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.safetensors");
        let state = a.state();
        weights::write_tensors(&path, state.iter().map(|(n, t)| (n.as_str(), t))).unwrap();
        weights::load_into(&path, b.state()).unwrap();
        for (optimizer, params) in [(&mut a, &first), (&mut b, &second)] {
            optimizer.zero_grad().unwrap();
            backward(&params[0].1);
            optimizer.step(|base| base).unwrap();
        }
        assert_eq!(values(&first[0].1), values(&second[0].1));
        weights::write_tensors(&path, state[1..].iter().map(|(n, t)| (n.as_str(), t))).unwrap();
        let error = weights::load_into(&path, b.state()).unwrap_err();
        assert!(error.to_string().contains("exp_avg.w"), "{error}");
    }

    #[test]
    fn clips_to_the_global_norm_and_skips_what_has_no_gradient() {
        let params = [param("a"), param("b"), param("unused")];
        let mut optimizer = AdamW::new(&params, Settings::default(), &Rules::default()).unwrap();
        backward(&params[0].1);
        backward(&params[1].1);
        // gradients are [2, -8, 3] twice
        let norm = optimizer.clip(1.0).unwrap();
        assert!((norm - (2.0f64 * 77.0).sqrt()).abs() < 1e-5);
        assert!((optimizer.clip(f64::INFINITY).unwrap() - 1.0).abs() < 1e-5);
        optimizer.scale_grad(2.0).unwrap();
        assert!((optimizer.clip(f64::INFINITY).unwrap() - 2.0).abs() < 1e-5);
        optimizer.step(|base| base).unwrap();
        assert_eq!(values(&params[2].1), [1.0, -2.0, 0.5]);
        assert_ne!(values(&params[0].1), [1.0, -2.0, 0.5]);
        optimizer.zero_grad().unwrap();
        assert!(!params[0].1.grad().defined());
    }

    #[test]
    fn wrong_rules_are_refused() {
        let freeze_all = Rules { freeze_patterns: vec![".".to_owned()], ..Rules::default() };
        assert!(AdamW::new(&[param("w")], Settings::default(), &freeze_all).is_err());
        let broken = Rules { freeze_patterns: vec!["(".to_owned()], ..Rules::default() };
        let error = AdamW::new(&[param("w")], Settings::default(), &broken).unwrap_err();
        assert!(error.to_string().contains("FREEZE_PATTERNS") && !error.to_string().contains('\n'), "{error}");
        let settings = Settings { beta2: 1.0, ..Settings::default() };
        assert!(AdamW::new(&[param("w")], settings, &Rules::default()).is_err());
    }
}
