//! The adapter: a small classifier over image embeddings, with the parameter names of the public checkpoints.
//!
//! Layers, in order: `vision_embd.0` Linear(in, 512), GELU, `vision_embd.2` Linear(512, 512), `vision_embd.3`
//! LayerNorm(512), `retrieval_conv.0` Conv1d(512, hidden, 3, padding 1), GELU, `retrieval_conv.2` Conv1d(hidden, hidden, 3,
//! padding 1), `prediction_head.0` Linear(hidden, classes). An embedding is a sequence of length 1, so only the middle tap
//! of each convolution acts; the other taps are kept for checkpoints to interchange.

use crate::error::{Error, Result};
use crate::model::archive::Archive;
use crate::model::engine;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// File of the parameters inside an adapter's folder.
pub const WEIGHTS_FILE: &str = "adapter.safetensors";
/// The weights as the original's training writes them.
pub const IMPORTED_FILE: &str = "best_metric_model.pth";
/// File of [`AdapterConfig`] inside an adapter's folder.
pub const CONFIG_FILE: &str = "config.json";

/// Width of the embedding layers, fixed by the public checkpoints.
const EMBEDDING_WIDTH: i64 = 512;
/// Epsilon of its layer norm.
pub(super) const EPS: f64 = 1e-5;

/// Sizes of an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdapterConfig {
    /// Length of an embedding.
    pub input_channels: i64,
    /// Channels of the convolutions.
    pub hidden_dimensions: i64,
    /// Number of classes.
    pub classes: i64,
}

impl AdapterConfig {
    /// Names and shapes of all parameters, in the network's order.
    fn shapes(self) -> [(&'static str, Vec<i64>); 12] {
        let (w, h) = (EMBEDDING_WIDTH, self.hidden_dimensions);
        [
            ("vision_embd.0.weight", vec![w, self.input_channels]),
            ("vision_embd.0.bias", vec![w]),
            ("vision_embd.2.weight", vec![w, w]),
            ("vision_embd.2.bias", vec![w]),
            ("vision_embd.3.weight", vec![w]),
            ("vision_embd.3.bias", vec![w]),
            ("retrieval_conv.0.weight", vec![h, w, 3]),
            ("retrieval_conv.0.bias", vec![h]),
            ("retrieval_conv.2.weight", vec![h, h, 3]),
            ("retrieval_conv.2.bias", vec![h]),
            ("prediction_head.0.weight", vec![self.classes, h]),
            ("prediction_head.0.bias", vec![self.classes]),
        ]
    }

    fn check(self) -> Result<()> {
        let sizes = [
            ("input_channels", self.input_channels),
            ("hidden_dimensions", self.hidden_dimensions),
            ("classes", self.classes),
        ];
        match sizes.into_iter().find(|(_, size)| !(1..=1 << 20).contains(size)) {
            None => Ok(()),
            Some((name, size)) => {
                Err(Error::config(format!("the adapter's {name} is {size}: give a number from 1 to {}", 1 << 20)))
            }
        }
    }
}

/// An adapter network with its parameters.
#[derive(Debug)]
pub struct Adapter {
    config: AdapterConfig,
    tensors: BTreeMap<String, Tensor>,
}

impl Adapter {
    /// A new adapter whose parameters follow PyTorch's defaults (uniform within 1/sqrt(fan in), LayerNorm ones and zeros),
    /// require gradients, and depend on nothing but `config` and `seed`.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Config`] for a size out of range, [`crate::ErrorKind::Engine`] when memory runs out.
    pub fn init(config: AdapterConfig, seed: u64, device: Device) -> Result<Adapter> {
        config.check()?;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut tensors = BTreeMap::new();
        let mut bound = 0.0;
        for (name, shape) in config.shapes() {
            let count: i64 = shape.iter().product();
            let values: Vec<f32> = match name {
                "vision_embd.3.weight" => vec![1.0; size(count)],
                "vision_embd.3.bias" => vec![0.0; size(count)],
                _ => {
                    if shape.len() > 1 {
                        // a bias follows its weight and has the same bound
                        bound = 1.0 / (shape[1..].iter().product::<i64>() as f64).sqrt();
                    }
                    (0..count).map(|_| uniform(&mut rng, bound)).collect()
                }
            };
            let tensor = Tensor::f_from_slice(&values)
                .and_then(|t| t.f_view(shape.as_slice()))
                .and_then(|t| t.f_to_device(device))
                .and_then(|t| t.f_set_requires_grad(true))
                .map_err(engine)?;
            tensors.insert(name.to_owned(), tensor);
        }
        Ok(Adapter { config, tensors })
    }

    /// Reads `adapter.safetensors` and `config.json` from `dir`.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`] when a file is not there; [`crate::ErrorKind::Package`] for a damaged one, missing
    /// or unexpected parameters, or shapes that do not fit the configuration.
    pub fn load(dir: &Path, device: Device) -> Result<Adapter> {
        let path = dir.join(CONFIG_FILE);
        let text = std::fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
        let config: AdapterConfig = serde_json::from_slice(&text)
            .map_err(|e| Error::package(format!("'{}' is not an adapter configuration: {e}", path.display())))?;
        config.check().map_err(|e| e.with_kind(crate::ErrorKind::Package).context(path.display()))?;
        let path = dir.join(WEIGHTS_FILE);
        Adapter::of(config, read(&path, device)?, &format!("'{}'", path.display()))
    }

    /// Reads the original's `best_metric_model.pth`, a flat state dict with the same names; the sizes are those of its tensors. Nothing
    /// is unpickled.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`] when it is not there; [`crate::ErrorKind::Package`] for another file, or parameters that are no
    /// adapter's.
    pub fn import(path: &Path) -> Result<Adapter> {
        let archive = Archive::open(path, true)?;
        let source = format!("'{}'", path.display());
        let mut found = BTreeMap::new();
        for entry in &archive.entries {
            let name = entry.name.strip_prefix("module.").unwrap_or(&entry.name);
            if found.insert(name.to_owned(), entry).is_some() {
                return Err(Error::package(format!("{source} has the parameter '{name}' under two names")));
            }
        }
        let length = |name: &str, dimension: usize| {
            let length = found.get(name).and_then(|entry| entry.shape.get(dimension).copied());
            length.ok_or_else(|| Error::package(format!("{source} has no parameter '{name}' of an adapter")))
        };
        let config = AdapterConfig {
            input_channels: length("vision_embd.0.weight", 1)?,
            hidden_dimensions: length("retrieval_conv.0.weight", 0)?,
            classes: length("prediction_head.0.weight", 0)?,
        };
        config.check().map_err(|e| e.with_kind(crate::ErrorKind::Package).context(path.display()))?;
        // all of them fit before the first is copied
        let entries = fitting(config, found, &source, |entry| &entry.shape)?;
        let load = |(name, entry)| Ok((name, archive.load(entry)?));
        Ok(Adapter { config, tensors: entries.into_iter().map(load).collect::<Result<_>>()? })
    }

    /// An adapter of all the tensors of `source`.
    fn of(config: AdapterConfig, found: BTreeMap<String, Tensor>, source: &str) -> Result<Adapter> {
        let shaped = found.into_iter().map(|(name, tensor)| (name, (tensor.size(), tensor))).collect();
        let tensors = fitting(config, shaped, source, |(shape, _): &(Vec<i64>, Tensor)| shape)?;
        Ok(Adapter { config, tensors: tensors.into_iter().map(|(name, (_, tensor))| (name, tensor)).collect() })
    }

    /// Writes `adapter.safetensors` and `config.json` into `dir`, which must exist.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Storage`] or [`crate::ErrorKind::NoSpace`].
    pub fn save(&self, dir: &Path) -> Result<()> {
        write(&dir.join(WEIGHTS_FILE), &self.tensors)?;
        let path = dir.join(CONFIG_FILE);
        let text = serde_json::to_string_pretty(&self.config)
            .map_err(|e| Error::internal("cannot write an adapter configuration").with_source(e))?;
        std::fs::write(&path, text + "\n").map_err(|e| Error::io("write", &path, e))
    }

    /// The same network with other weights, all of them.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Package`] for a name that is missing or too many, or another shape.
    pub fn with(&self, weights: Vec<(String, Tensor)>) -> Result<Adapter> {
        Adapter::of(self.config, weights.into_iter().collect(), "the weights")
    }

    /// The sizes.
    #[must_use]
    pub fn config(&self) -> AdapterConfig {
        self.config
    }

    /// The parameters by name, sharing memory with this object.
    #[must_use]
    pub fn parameters(&self) -> Vec<(String, Tensor)> {
        self.tensors.iter().map(|(name, t)| (name.clone(), t.shallow_clone())).collect()
    }

    /// Logits `[B, classes]` of embeddings `[B, input_channels]`, both f32 on the adapter's device.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Engine`] for another shape or device.
    pub fn forward(&self, embeddings: &Tensor) -> Result<Tensor> {
        let t = |name: &str| &self.tensors[name];
        let linear =
            |x: &Tensor, layer: &str| x.f_linear(t(&format!("{layer}.weight")), Some(t(&format!("{layer}.bias"))));
        let middle = |x: &Tensor, layer: &str| {
            x.f_linear(&t(&format!("{layer}.weight")).f_select(2, 1)?, Some(t(&format!("{layer}.bias"))))
        };
        (|| {
            let x = linear(&linear(embeddings, "vision_embd.0")?.f_gelu("none")?, "vision_embd.2")?;
            let norm = (Some(t("vision_embd.3.weight")), Some(t("vision_embd.3.bias")));
            let x = x.f_layer_norm([EMBEDDING_WIDTH], norm.0, norm.1, EPS, false)?;
            let x = middle(&middle(&x, "retrieval_conv.0")?.f_gelu("none")?, "retrieval_conv.2")?;
            linear(&x, "prediction_head.0")
        })()
        .map_err(engine)
    }

    /// Class probabilities `n * classes` of `n` embeddings given row after row.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Data`] when `embeddings` is not a whole number of rows, [`crate::ErrorKind::Engine`] when
    /// libtorch fails.
    pub fn predict(&self, embeddings: &[f32]) -> Result<Vec<f32>> {
        let width = size(self.config.input_channels);
        if !embeddings.len().is_multiple_of(width) {
            let count = embeddings.len();
            return Err(Error::data(format!(
                "{count} numbers are not embeddings of length {width}, the adapter's input"
            )));
        }
        if embeddings.is_empty() {
            return Ok(Vec::new());
        }
        tch::no_grad(|| {
            let device = self.tensors["prediction_head.0.bias"].device();
            let x = Tensor::f_from_slice(embeddings)
                .and_then(|x| x.f_view([-1, self.config.input_channels]))
                .and_then(|x| x.f_to_device(device))
                .map_err(engine)?;
            let scores = self.forward(&x)?.f_softmax(-1, Kind::Float).map_err(engine)?;
            host(&scores)
        })
    }
}

/// What an adapter of these sizes consists of: every parameter of it, with its shape, and nothing else.
fn fitting<T>(
    config: AdapterConfig,
    mut found: BTreeMap<String, T>,
    source: &str,
    shape: impl Fn(&T) -> &Vec<i64>,
) -> Result<BTreeMap<String, T>> {
    let mut fitting = BTreeMap::new();
    for (name, need) in config.shapes() {
        let Some(part) = found.remove(name) else {
            return Err(Error::package(format!("{source} has no parameter '{name}'")));
        };
        let have = shape(&part);
        if *have != need {
            return Err(Error::package(format!(
                "{source}: '{name}' has shape {have:?}, an adapter of its sizes has {need:?} there"
            )));
        }
        fitting.insert(name.to_owned(), part);
    }
    match found.keys().next() {
        Some(name) => Err(Error::package(format!("{source} has an unexpected parameter '{name}'"))),
        None => Ok(fitting),
    }
}

fn size(value: i64) -> usize {
    usize::try_from(value).unwrap_or(0)
}

/// A number in [-bound, bound) from 24 random bits.
fn uniform(rng: &mut ChaCha8Rng, bound: f64) -> f32 {
    let unit = f64::from(rng.next_u32() >> 8) / f64::from(1u32 << 24);
    ((2.0 * unit - 1.0) * bound) as f32
}

/// The values of an f32 tensor, wherever it lives, row by row.
fn host(tensor: &Tensor) -> Result<Vec<f32>> {
    let tensor = tensor.f_to_device(Device::Cpu).and_then(|t| t.f_contiguous()).map_err(engine)?;
    let mut values = vec![0f32; tensor.numel()];
    let count = values.len();
    tensor.f_copy_data(&mut values, count).map_err(engine)?;
    Ok(values)
}

/// The f32 tensors of a safetensors file.
fn read(path: &Path, device: Device) -> Result<BTreeMap<String, Tensor>> {
    let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|e| Error::package(format!("'{}' is not a safetensors file", path.display())).with_source(e))?;
    let mut out = BTreeMap::new();
    for (name, view) in file.iter() {
        if view.dtype() != Dtype::F32 {
            let (file, dtype) = (path.display(), view.dtype());
            return Err(Error::package(format!("'{file}': '{name}' is {dtype:?}, convert it to float32")));
        }
        let shape: Vec<i64> = view.shape().iter().map(|&n| i64::try_from(n).unwrap_or(i64::MAX)).collect();
        let tensor = Tensor::f_from_data_size(view.data(), &shape, Kind::Float)
            .and_then(|t| t.f_to_device(device))
            .map_err(engine)?;
        out.insert(name.to_owned(), tensor);
    }
    Ok(out)
}

/// Writes f32 tensors as a safetensors file.
fn write(path: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    let failed = |e| Error::internal(format!("cannot write '{}'", path.display())).with_source(e);
    let mut values = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let bytes: Vec<u8> = host(&tensor.detach())?.iter().flat_map(|v| v.to_le_bytes()).collect();
        values.push((name, tensor.size().into_iter().map(size).collect::<Vec<_>>(), bytes));
    }
    let views = values
        .iter()
        .map(|(name, shape, bytes)| Ok((name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes)?)))
        .collect::<std::result::Result<Vec<_>, safetensors::SafeTensorError>>()
        .map_err(failed)?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let bytes = safetensors::serialize(views, Some(metadata)).map_err(failed)?;
    std::fs::write(path, bytes).map_err(|e| Error::io("write", path, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: AdapterConfig = AdapterConfig { input_channels: 6, hidden_dimensions: 8, classes: 3 };

    fn adapter(seed: u64) -> Adapter {
        Adapter::init(CONFIG, seed, Device::Cpu).unwrap()
    }

    fn embeddings() -> Vec<f32> {
        (0..24).map(|i| (i as f32 * 0.7).sin()).collect()
    }

    #[test]
    fn equals_the_layers_with_real_convolutions() {
        let adapter = adapter(1);
        let x = Tensor::from_slice(&embeddings()).view([4, 6]);
        let t = |name: &str| &adapter.tensors[name];
        let x1 = x.linear(t("vision_embd.0.weight"), Some(t("vision_embd.0.bias"))).gelu("none");
        let x2 = x1.linear(t("vision_embd.2.weight"), Some(t("vision_embd.2.bias")));
        let x3 = x2.layer_norm([512], Some(t("vision_embd.3.weight")), Some(t("vision_embd.3.bias")), 1e-5, false);
        let conv = |x: &Tensor, layer: &str| {
            let (w, b) = (t(&format!("{layer}.weight")), t(&format!("{layer}.bias")));
            x.conv1d(w, Some(b), 1, 1, 1, 1)
        };
        let x4 = conv(&conv(&x3.unsqueeze(2), "retrieval_conv.0").gelu("none"), "retrieval_conv.2").squeeze_dim(2);
        let expected = x4.linear(t("prediction_head.0.weight"), Some(t("prediction_head.0.bias")));
        let difference = (adapter.forward(&x).unwrap() - expected).abs().max().double_value(&[]);
        assert!(difference < 1e-5, "{difference}");
    }

    #[test]
    fn a_seed_decides_the_parameters() {
        let same = |a: &Adapter, b: &Adapter| a.tensors.iter().all(|(name, t)| *t == b.tensors[name]);
        assert!(same(&adapter(7), &adapter(7)));
        assert!(!same(&adapter(7), &adapter(8)));
        let weight = &adapter(7).tensors["retrieval_conv.0.weight"];
        let bound = 1.0 / (512.0f64 * 3.0).sqrt();
        let (largest, deviation) = (weight.abs().max().double_value(&[]), weight.std(true).double_value(&[]));
        assert!(largest <= bound && (deviation - bound / 3f64.sqrt()).abs() < 0.02 * bound);
    }

    #[test]
    fn round_trip_and_probabilities() {
        let dir = tempfile::tempdir().unwrap();
        adapter(2).save(dir.path()).unwrap();
        let read = Adapter::load(dir.path(), Device::Cpu).unwrap();
        let scores = read.predict(&embeddings()).unwrap();
        assert_eq!(scores, adapter(2).predict(&embeddings()).unwrap());
        assert_eq!(scores.len(), 12);
        assert!(scores.chunks(3).all(|row| (row.iter().sum::<f32>() - 1.0).abs() < 1e-6));
        assert!(read.predict(&[0.0; 7]).is_err());
        assert!(read.predict(&[]).unwrap().is_empty());
    }

    #[test]
    fn a_file_of_other_sizes_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        adapter(2).save(dir.path()).unwrap();
        let config = r#"{"input_channels": 6, "hidden_dimensions": 8, "classes": 4}"#;
        std::fs::write(dir.path().join(CONFIG_FILE), config).unwrap();
        let error = Adapter::load(dir.path(), Device::Cpu).unwrap_err();
        assert!(error.to_string().contains("prediction_head.0.weight"), "{error}");
        std::fs::write(dir.path().join(WEIGHTS_FILE), b"PK\x03\x04 a zip").unwrap();
        assert_eq!(Adapter::load(dir.path(), Device::Cpu).unwrap_err().kind(), crate::ErrorKind::Package);
    }
}
