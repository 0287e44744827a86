//! Batched encoding of images and texts: the engine of embed, evaluate and predict.
//!
//! No tensor crosses this seam: plain vectors go in and come out. An [`Encoder`] owns its model and is used by one thread.

pub mod device;
mod pixels;
mod precision;

use pixels::Pixels;
pub use precision::InferencePrecision;

use crate::data::Labels;
use crate::error::{Context, Error, Result};
use crate::imaging::PixelContract;
use crate::model::config::ModelConfig;
use crate::model::params::Params;
use crate::model::tokenizer::Tokenizer;
use crate::model::unicl::UniCl;
use crate::model::{TchResult, engine, engine_text, weights};
use crate::package::{MODEL_CONFIG_FILE, Package, PackageConfig};
use medtune_native::Download;
use rayon::prelude::*;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// Texts a forward pass.
const TEXT_BATCH: usize = 64;

/// Both towers of a package, ready to encode.
#[derive(Debug)]
pub struct Encoder {
    config: ModelConfig,
    model: UniCl,
    tokenizer: Tokenizer,
    pixels: Pixels,
    device: Device,
    precision: InferencePrecision,
}

/// Unit vectors [count, dim] that are being computed: [`Encoder::finish`] waits for them.
#[derive(Debug)]
pub struct Encoding(Vectors);

#[derive(Debug)]
enum Vectors {
    Here(Tensor),
    Coming(Download),
}

impl Encoder {
    /// Loads a package's model onto `device`, to encode in f32.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Package`] when a file is damaged or does not fit; [`crate::ErrorKind::Engine`].
    pub fn load(package: &Package, device: Device) -> Result<Encoder> {
        Encoder::load_with(package, device, InferencePrecision::F32)
    }

    /// Loads a package's model onto `device`, to encode in `precision` or what [`InferencePrecision::on`] puts in its place.
    /// Its weights are laid out for that once: nothing can train them.
    ///
    /// # Errors
    /// As [`Encoder::load`].
    pub fn load_with(package: &Package, device: Device, precision: InferencePrecision) -> Result<Encoder> {
        let config = model_config(package)?;
        let tokenizer = Tokenizer::load(&package.tokenizer())?;
        check_vocabulary(&tokenizer, &config)?;
        let params = weights::read(&package.weights(), &config)?.to_device(device)?;
        let computed = precision.on(device);
        if computed != precision {
            tracing::info!(
                "this processor multiplies no matrices of bf16: computing in f32, which is faster here and more exact"
            );
        }
        let model = UniCl::for_inference(&config, params, computed == InferencePrecision::Bf16)?;
        let pixels = Pixels::new(package.config.pixels.clone(), device)?;
        Ok(Encoder { config, model, tokenizer, pixels, device, precision: computed })
    }

    /// The model in a folder of checkpoints, on the CPU and in f32, by the layers that training goes through: slower than
    /// [`Encoder::load`], which has layers of its own, so that either can be held against the other.
    ///
    /// # Errors
    /// As [`Encoder::load`]; [`crate::ErrorKind::Package`] naming a parameter that is not finite.
    pub fn plain(checkpoints: &Path, package: &PackageConfig) -> Result<Encoder> {
        let config = read_model_config(&checkpoints.join(MODEL_CONFIG_FILE))?;
        let tokenizer = Tokenizer::load(&checkpoints.join(&package.tokenizer))?;
        check_vocabulary(&tokenizer, &config)?;
        let params = weights::read(&checkpoints.join(&package.weights), &config)?;
        weights::check_finite(params.iter(), &package.weights)?;
        Encoder::over(&params, config, tokenizer, package.pixels.clone(), Device::Cpu)
    }

    /// An encoder over parameters that somebody else holds, e.g. a running training.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Package`] naming a missing parameter; [`crate::ErrorKind::Engine`].
    pub fn over(
        params: &Params,
        config: ModelConfig,
        tokenizer: Tokenizer,
        pixels: PixelContract,
        device: Device,
    ) -> Result<Encoder> {
        let model = UniCl::new(&config, params)?;
        let pixels = Pixels::new(pixels, device)?;
        Ok(Encoder { config, model, tokenizer, pixels, device, precision: InferencePrecision::F32 })
    }

    /// What this encoder computes in.
    #[must_use]
    pub fn precision(&self) -> InferencePrecision {
        self.precision
    }

    /// The pixel path of the package.
    #[must_use]
    pub fn pixels(&self) -> &PixelContract {
        self.pixels.contract()
    }

    /// Length of an embedding.
    #[must_use]
    pub fn dim(&self) -> usize {
        self.config.projection as usize
    }

    /// The model that this encoder runs.
    #[must_use]
    pub fn model(&self) -> &UniCl {
        &self.model
    }

    /// The logarithm of the factor on cosine similarities.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Engine`].
    pub fn logit_scale(&self) -> Result<f64> {
        self.model.logit_scale().f_double_value(&[]).map_err(engine)
    }

    /// Images as [`PixelContract::load_rgb`] writes them, [H, W, 3] bytes each, one after the other, on their way to unit vectors. A
    /// GPU goes on with them after this call.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Internal`] when these are not whole images; [`crate::ErrorKind::Engine`].
    pub fn begin(&self, rgb: &[u8]) -> Result<Encoding> {
        let _guard = tch::no_grad_guard();
        let vectors = self.model.encode_image(&self.pixels.normalised(rgb)?, None)?;
        Ok(Encoding(match self.device.is_cuda() {
            true => Vectors::Coming(Download::begin(&vectors).map_err(|text| engine_text(&text))?),
            false => Vectors::Here(vectors),
        }))
    }

    /// The unit vectors [count, dim] of what was begun, when they are there.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Engine`], also for what has failed on a GPU since it was begun.
    pub fn finish(&self, begun: Encoding) -> Result<Vec<f32>> {
        let vectors = match begun.0 {
            Vectors::Here(vectors) => vectors,
            Vectors::Coming(vectors) => vectors.wait().map_err(|text| engine_text(&text))?,
        };
        to_vec(&vectors).map_err(engine)
    }

    /// Encoded image files to unit vectors [count, dim]; the images of a batch are decoded in parallel. An item's first part
    /// names it in errors.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Data`] naming the first image that cannot be read; [`crate::ErrorKind::Engine`].
    pub fn encode_images(&self, images: &[(String, Vec<u8>)]) -> Result<Vec<f32>> {
        // a tensor must not be shared between threads: only the contract goes to them
        let contract = self.pixels.contract();
        let length = contract.tensor_len();
        let mut rgb = vec![0; images.len() * length];
        let first = rgb
            .par_chunks_mut(length)
            .zip(images.par_iter())
            .find_map_first(|(out, (name, bytes))| contract.load_rgb(bytes, out).context(|| name).err());
        match first {
            Some(error) => Err(error),
            None => self.finish(self.begin(&rgb)?),
        }
    }

    /// Texts to unit vectors [count, dim].
    ///
    /// # Errors
    /// [`crate::ErrorKind::Engine`].
    pub fn encode_texts(&self, texts: &[String]) -> Result<Vec<f32>> {
        let _guard = tch::no_grad_guard();
        let mut out = Vec::with_capacity(texts.len() * self.dim());
        for batch in texts.chunks(TEXT_BATCH) {
            let (ids, mask) = self.tokens(batch)?;
            out.extend(to_vec(&self.model.encode_text(&ids, &mask)?).map_err(engine)?);
        }
        Ok(out)
    }

    /// Texts to token ids and mask, both [B, L] on the model's device, L the longest of the batch.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Data`] for a text that cannot be encoded; [`crate::ErrorKind::Engine`].
    pub fn tokens(&self, texts: &[String]) -> Result<(Tensor, Tensor)> {
        let (ids, mask) = self.tokenizer.encode(texts, self.config.text.context_length)?;
        self.trim(&ids, &mask).map_err(engine)
    }

    /// Cuts off the columns that are padding in every row: padding is masked and never pooled, so only time is saved.
    fn trim(&self, ids: &Tensor, mask: &Tensor) -> TchResult<(Tensor, Tensor)> {
        let longest = mask.f_sum_dim_intlist(&[1i64][..], false, Kind::Int64)?.f_max()?.f_int64_value(&[])?.max(1);
        let cut = |t: &Tensor| t.f_narrow(1, 0, longest)?.f_to_device(self.device);
        Ok((cut(ids)?, cut(mask)?))
    }

    /// One unit vector a label, [labels, dim]; `template` holds `{}` for the label.
    ///
    /// # Errors
    /// As [`Encoder::encode_texts`].
    pub fn class_embeddings(&self, labels: &Labels, template: &str) -> Result<Vec<f32>> {
        let texts: Vec<String> = labels.texts().iter().map(|l| template.replace("{}", l)).collect();
        self.encode_texts(&texts)
    }
}

/// A package's model sizes.
///
/// # Errors
/// [`crate::ErrorKind::Package`] when `config.yaml` is missing, no YAML, or impossible.
pub fn model_config(package: &Package) -> Result<ModelConfig> {
    read_model_config(&package.model_config())
}

/// As [`model_config`], of that file.
pub(crate) fn read_model_config(path: &Path) -> Result<ModelConfig> {
    let yaml = crate::config::read_yaml(path).map_err(|e| e.with_kind(crate::ErrorKind::Package))?;
    ModelConfig::from_yaml(&yaml, &path.display().to_string())
}

/// A tokenizer whose ids the token embedding does not have would read beyond it.
///
/// # Errors
/// [`crate::ErrorKind::Package`].
pub fn check_vocabulary(tokenizer: &Tokenizer, config: &ModelConfig) -> Result<()> {
    let (have, need) = (config.text.vocab_size, tokenizer.vocab_size());
    if need > have {
        return Err(Error::package(format!("the tokenizer has {need} tokens, the token embedding only {have} rows")));
    }
    Ok(())
}

/// Cosine scores of zero-shot classification: `exp(logit_scale) * image . class`, [rows, classes].
#[must_use]
pub fn zero_shot_logits(images: &[f32], classes: &[f32], dim: usize, logit_scale: f64) -> Vec<f32> {
    let factor = logit_scale.exp() as f32;
    let rows: Vec<&[f32]> = images.chunks_exact(dim).collect();
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>() * factor;
    rows.par_iter().flat_map_iter(|image| classes.chunks_exact(dim).map(move |class| dot(image, class))).collect()
}

/// A tensor's values in row-major order, as f32.
pub(crate) fn to_vec(tensor: &Tensor) -> TchResult<Vec<f32>> {
    let flat = tensor.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?.f_view(-1)?;
    Vec::<f32>::try_from(&flat)
}
