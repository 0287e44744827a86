//! UniCL: both towers, projected into one space.

use super::config::ModelConfig;
use super::davit::gpu::{self, GpuDaVit};
use super::davit::{DaVit, FixedDaVit};
use super::droppath::DropPath;
use super::layers::LayerNorm;
use super::params::Params;
use super::text::TextTransformer;
use super::{TchResult, engine, engine_text};
use crate::error::Result;
use medtune_native::Autocast;
use tch::{Kind, Tensor};

/// The whole model; it sees in-place updates of the parameters that it was made of.
#[derive(Debug)]
pub struct UniCl {
    image_encoder: ImageEncoder,
    lang_encoder: TextTransformer,
    image_projection: Tensor,
    lang_projection: Tensor,
    logit_scale: Tensor,
    /// Both towers compute in bf16: their weights are bf16 already, and for each operation autocast decides as in training.
    bfloat16: bool,
}

#[derive(Debug)]
enum ImageEncoder {
    Trainable(DaVit),
    Fixed(FixedDaVit),
    Gpu(GpuDaVit),
}

impl UniCl {
    /// Builds the model over `params`.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Package`] naming a missing parameter.
    pub fn new(config: &ModelConfig, params: &Params) -> Result<UniCl> {
        Ok(UniCl {
            image_encoder: ImageEncoder::Trainable(DaVit::new(&config.image, params)?),
            lang_encoder: TextTransformer::new(&config.text, params)?,
            image_projection: params.get("image_projection")?,
            lang_projection: params.get("lang_projection")?,
            logit_scale: params.get("logit_scale")?,
            bfloat16: false,
        })
    }

    /// Builds a model that cannot be trained out of f32 parameters, which it takes: on a CPU the image encoder's weights are
    /// laid out for its products, on a GPU and in bf16 it has kernels of its own where there are any for its sizes, and else a warning. With `bfloat16` both towers compute in bf16, norms and projections in f32.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Package`] naming a missing parameter; [`crate::ErrorKind::Engine`].
    pub fn for_inference(config: &ModelConfig, mut params: Params, bfloat16: bool) -> Result<UniCl> {
        let (image_projection, lang_projection) = (params.take("image_projection")?, params.take("lang_projection")?);
        let logit_scale = params.take("logit_scale")?;
        let kind = if bfloat16 { Kind::BFloat16 } else { Kind::Float };
        let device = image_projection.device();
        let kernels = match device.is_cuda() && bfloat16 {
            true => gpu::kernels(&config.image, device)
                .map_err(|why| tracing::warn!("the image encoder runs without kernels of its own, slower: {why}"))
                .ok(),
            false => None,
        };
        let fixed = match kernels {
            Some(kernels) => Some(ImageEncoder::Gpu(GpuDaVit::new(&config.image, &mut params, kernels)?)),
            None if device.is_cuda() => None,
            None => Some(ImageEncoder::Fixed(FixedDaVit::new(&config.image, &mut params, kind)?)),
        };
        if bfloat16 {
            params.cast(kind, LayerNorm::owns)?;
        }
        Ok(UniCl {
            image_encoder: match fixed {
                Some(fixed) => fixed,
                None => ImageEncoder::Trainable(DaVit::new(&config.image, &params)?),
            },
            lang_encoder: TextTransformer::new(&config.text, &params)?,
            image_projection,
            lang_projection,
            logit_scale,
            bfloat16,
        })
    }

    /// Pixels [B, 3, H, W] to unit vectors [B, projection]. Drop path is for models that train.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Engine`].
    pub fn encode_image(&self, pixels: &Tensor, drop_path: Option<&DropPath>) -> Result<Tensor> {
        let features = match &self.image_encoder {
            ImageEncoder::Trainable(encoder) => self.in_its_type(pixels, || encoder.forward(pixels, drop_path))?,
            ImageEncoder::Fixed(encoder) => encoder.forward(pixels)?,
            ImageEncoder::Gpu(encoder) => encoder.forward(pixels)?,
        };
        project(&features, &self.image_projection).map_err(engine)
    }

    /// Token ids and mask, both [B, L], to unit vectors [B, projection].
    ///
    /// # Errors
    /// [`crate::ErrorKind::Engine`].
    pub fn encode_text(&self, ids: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let features = self.in_its_type(ids, || self.lang_encoder.forward(ids, mask))?;
        project(&features, &self.lang_projection).map_err(engine)
    }

    /// Runs a tower whose weights are bf16 under autocast, and makes its features f32; any other as it is.
    fn in_its_type(&self, input: &Tensor, tower: impl FnOnce() -> Result<Tensor>) -> Result<Tensor> {
        if !self.bfloat16 {
            return tower();
        }
        let autocast = Autocast::enter(input.device().is_cuda(), true).map_err(|text| engine_text(&text))?;
        let features = tower()?;
        drop(autocast);
        features.f_to_kind(Kind::Float).map_err(engine)
    }

    /// The logarithm of the factor on cosine similarities, a scalar parameter.
    pub fn logit_scale(&self) -> Tensor {
        self.logit_scale.shallow_clone()
    }
}

fn project(features: &Tensor, projection: &Tensor) -> TchResult<Tensor> {
    let x = features.f_matmul(projection)?;
    let norm = x.f_norm_scalaropt_dim_dtype(2.0, &[-1i64][..], true, Kind::Float)?;
    x.f_div(&norm.f_clamp_min(1e-12)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::config::tests::small;
    use crate::model::init::random;
    use tch::Device;

    fn model() -> (ModelConfig, Params, UniCl) {
        let config = small();
        let params = random(&config, 3).unwrap();
        let model = UniCl::new(&config, &params).unwrap();
        (config, params, model)
    }

    #[test]
    fn features_are_unit_vectors_and_do_not_depend_on_the_batch() {
        let (config, _, model) = model();
        let pixels = Tensor::randn([3, 3, 24, 20], (Kind::Float, Device::Cpu));
        let all = model.encode_image(&pixels, None).unwrap();
        assert_eq!(all.size(), [3, config.projection]);
        let norms = all.norm_scalaropt_dim(2.0, [1i64], false);
        assert!(norms.allclose(&Tensor::ones([3], (Kind::Float, Device::Cpu)), 1e-5, 1e-5, false));
        let one = model.encode_image(&pixels.narrow(0, 1, 1), None).unwrap();
        assert!(one.allclose(&all.narrow(0, 1, 1), 1e-5, 1e-6, false));
    }

    #[test]
    fn padding_is_not_seen() {
        let (_, _, model) = model();
        let ids = Tensor::from_slice(&[58i64, 5, 6, 59, 59, 59]).view([1, 6]);
        let mask = Tensor::from_slice(&[1i64, 1, 1, 1, 0, 0]).view([1, 6]);
        let padded = model.encode_text(&ids, &mask).unwrap();
        let trimmed = model.encode_text(&ids.narrow(1, 0, 4), &mask.narrow(1, 0, 4)).unwrap();
        assert!(padded.allclose(&trimmed, 1e-5, 1e-6, false));
    }

    #[test]
    fn every_parameter_gets_a_gradient() {
        let (_, mut params, _) = model();
        params.set_requires_grad(true).unwrap();
        let model = UniCl::new(&small(), &params).unwrap();
        let pixels = Tensor::randn([2, 3, 24, 20], (Kind::Float, Device::Cpu));
        let ids = Tensor::from_slice(&[58i64, 5, 6, 59, 58, 7, 8, 59]).view([2, 4]);
        let image = model.encode_image(&pixels, None).unwrap();
        let text = model.encode_text(&ids, &ids.ones_like()).unwrap();
        let loss = (image.matmul(&text.tr()) * model.logit_scale().exp()).pow_tensor_scalar(2).sum(Kind::Float);
        loss.backward();
        for (name, tensor) in params.iter() {
            assert!(tensor.grad().defined(), "{name} has no gradient");
        }
    }
    /// The features, and the gradients of the image tower's parameters that do not start with one of `frozen`.
    fn image_gradients(params: &Params, checkpointed: bool, bfloat16: bool, frozen: &[&str]) -> Vec<(String, Tensor)> {
        let mut config = small();
        config.image.activation_checkpoint = checkpointed;
        config.image.drop_path_rate = 0.4;
        let mut copies = Params::default();
        for (name, tensor) in params.entries() {
            let trained = !frozen.iter().any(|f| name.starts_with(f));
            copies.insert(name, tensor.copy().set_requires_grad(trained));
        }
        let model = UniCl::new(&config, &copies).unwrap();
        let floats = (Kind::Float, Device::Cpu);
        let pixels = (Tensor::arange(2 * 3 * 24 * 20, floats) * 1.7).sin().view([2, 3, 24, 20]);
        let drop_path = DropPath { seed: 1, epoch: 0, samples: vec![5, 6] };
        let features = {
            let _autocast = bfloat16.then(|| medtune_native::Autocast::enter(false, true).unwrap());
            model.encode_image(&pixels, Some(&drop_path)).unwrap()
        };
        (features.to_kind(Kind::Float) * Tensor::arange(config.projection, floats)).sum(Kind::Float).backward();
        let mut out = vec![("features".to_owned(), features.detach())];
        for (name, tensor) in copies.entries().into_iter().filter(|(n, _)| n.starts_with("image_encoder.")) {
            assert_eq!(tensor.grad().defined(), tensor.requires_grad(), "{name}");
            if tensor.grad().defined() {
                out.push((name, tensor.grad()));
            }
        }
        out
    }

    #[test]
    fn activation_checkpointing_changes_no_bit() {
        let params = random(&small(), 3).unwrap();
        let stem = ["image_encoder.convs.0.", "image_encoder.blocks.0."];
        for bfloat16 in [false, true] {
            for frozen in [&[][..], &stem[..1], &stem[..]] {
                let plain = image_gradients(&params, false, bfloat16, frozen);
                let recomputed = image_gradients(&params, true, bfloat16, frozen);
                assert_eq!(plain.len(), recomputed.len());
                for ((name, a), (_, b)) in plain.iter().zip(&recomputed) {
                    assert!(a.equal(b), "{name} differs, bf16: {bfloat16}, frozen: {frozen:?}");
                }
            }
        }
    }
}
