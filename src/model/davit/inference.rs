//! The image encoder for inference: the same network as [`super::DaVit`], over weights that are laid out once and cannot change any
//! more. On a CPU residuals and GELU are part of the products before them; [`gpu`] runs the same layers on a GPU.

pub(crate) mod gpu;

use super::blocks::Attention;
use super::{EPS, blocks_of};
use crate::error::Result;
use crate::model::config::ImageEncoderConfig;
use crate::model::layers::{Conv2d, LayerNorm};
use crate::model::params::Params;
use crate::model::{TchResult, engine, engine_text};
use medtune_native::FixedLinear;
use tch::{Kind, TchError, Tensor};

/// The image encoder, for inference on a CPU, or for `gpu` to run.
#[derive(Debug)]
pub struct FixedDaVit {
    stages: Vec<Stage>,
    norms: LayerNorm,
    kind: Kind,
}

#[derive(Debug)]
struct Stage {
    conv: Conv2d,
    norm: LayerNorm,
    prenorm: bool,
    blocks: Vec<Block>,
}

#[derive(Debug)]
struct Block {
    attention: Attention,
    conv1: Depthwise,
    conv2: Depthwise,
    attention_norm: LayerNorm,
    qkv: FixedLinear,
    /// The bias of `qkv`, which is what attention sees of tokens beyond the grid: in f32, on a GPU in bf16.
    outside: Tensor,
    proj: FixedLinear,
    ffn_norm: LayerNorm,
    fc1: FixedLinear,
    fc2: FixedLinear,
}

/// The weight `[C, 1, 3, 3]`, on a GPU `[9, C]`, and bias `[C]` of a 3x3 depthwise convolution, in f32 whatever the type of what goes in.
#[derive(Debug)]
struct Depthwise {
    weight: Tensor,
    bias: Tensor,
}

impl FixedDaVit {
    /// Takes the parameters under `image_encoder.` out of `params`, f32 on the device that computes, to compute in `kind`: f32 or bf16.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Package`] naming a missing parameter; [`crate::ErrorKind::Engine`].
    pub fn new(config: &ImageEncoderConfig, params: &mut Params, kind: Kind) -> Result<FixedDaVit> {
        let mut stages = Vec::new();
        for i in 0..config.dim_embed.len() {
            let blocks = blocks_of(config, i).map(|(path, attention)| Block::new(params, &path, attention, kind));
            let blocks = blocks.collect::<Result<_>>()?;
            let path = format!("image_encoder.convs.{i}");
            for part in ["weight", "bias"] {
                let name = format!("{path}.proj.{part}");
                let cast = params.take(&name)?.f_to_kind(kind).map_err(engine)?;
                params.insert(name, cast);
            }
            stages.push(Stage {
                conv: Conv2d::new(
                    params,
                    &format!("{path}.proj"),
                    (config.patch_stride[i], config.patch_padding[i], 1),
                )?,
                norm: LayerNorm::new(params, &format!("{path}.norm"), EPS)?,
                prenorm: config.patch_prenorm[i],
                blocks,
            });
        }
        Ok(FixedDaVit { stages, norms: LayerNorm::new(params, "image_encoder.norms", EPS)?, kind })
    }

    /// Pixels [B, 3, H, W] to features [B, C of the last stage], f32; on a CPU.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Engine`].
    pub fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        self.run(pixels).map_err(engine)
    }

    fn run(&self, pixels: &Tensor) -> TchResult<Tensor> {
        let mut grid = pixels.f_to_kind(self.kind)?.f_permute([0, 2, 3, 1])?;
        for stage in &self.stages {
            grid = stage.embed(&grid)?;
            for block in &stage.blocks {
                grid = block.forward(&grid)?;
            }
        }
        self.norms.forward(&grid.f_mean_dim(&[1i64, 2][..], false, Kind::Float)?)
    }
}

impl Stage {
    fn embed(&self, grid: &Tensor) -> TchResult<Tensor> {
        let before = if self.prenorm { self.norm.forward(grid)? } else { grid.shallow_clone() };
        let after = self.conv.forward(&before.f_permute([0, 3, 1, 2])?)?.f_permute([0, 2, 3, 1])?.f_contiguous()?;
        if self.prenorm { Ok(after) } else { self.norm.forward(&after) }
    }
}

impl Block {
    fn new(params: &mut Params, path: &str, attention: Attention, kind: Kind) -> Result<Block> {
        let name = attention.name();
        Ok(Block {
            attention,
            conv1: Depthwise::new(params, &format!("{path}.conv1.fn.dw"))?,
            conv2: Depthwise::new(params, &format!("{path}.conv2.fn.dw"))?,
            attention_norm: LayerNorm::new(params, &format!("{path}.{name}.norm"), EPS)?,
            outside: params.get(&format!("{path}.{name}.fn.qkv.bias"))?,
            qkv: linear(params, &format!("{path}.{name}.fn.qkv"), kind)?,
            proj: linear(params, &format!("{path}.{name}.fn.proj"), kind)?,
            ffn_norm: LayerNorm::new(params, &format!("{path}.ffn.norm"), EPS)?,
            fc1: linear(params, &format!("{path}.ffn.fn.net.fc1"), kind)?,
            fc2: linear(params, &format!("{path}.ffn.fn.net.fc2"), kind)?,
        })
    }

    /// [B, H, W, C] to the same shape.
    fn forward(&self, x: &Tensor) -> TchResult<Tensor> {
        let x = self.conv1.forward(x)?;
        let (b, h, w, c) = x.size4()?;
        let qkv = self.qkv.forward(&self.attention_norm.forward(&x)?).map_err(TchError::Torch)?;
        let mixed = match self.attention {
            Attention::Window { heads, size } => {
                medtune_native::window_attention(&qkv, &self.outside, heads, size).map_err(TchError::Torch)?
            }
            Attention::Channel { groups } => {
                let mixed = medtune_native::channel_attention(&qkv.f_view([b, h * w, 3 * c])?, groups);
                mixed.map_err(TchError::Torch)?.f_view([b, h, w, c])?
            }
        };
        let x = self.proj.add(&mixed, &x).map_err(TchError::Torch)?;
        let x = self.conv2.forward(&x)?;
        let hidden = self.fc1.gelu(&self.ffn_norm.forward(&x)?).map_err(TchError::Torch)?;
        self.fc2.add(&hidden, &x).map_err(TchError::Torch)
    }
}

impl Depthwise {
    fn new(params: &mut Params, path: &str) -> Result<Depthwise> {
        let (weight, bias) = (params.take(&format!("{path}.weight"))?, params.take(&format!("{path}.bias"))?);
        Ok(Depthwise { weight, bias })
    }

    /// The convolution of `x` plus `x`, on [B, H, W, C].
    fn forward(&self, x: &Tensor) -> TchResult<Tensor> {
        medtune_native::residual_depthwise(x, &self.weight, &self.bias).map_err(TchError::Torch)
    }
}

fn linear(params: &mut Params, path: &str, kind: Kind) -> Result<FixedLinear> {
    let mut take = |part| params.take(&format!("{path}.{part}"))?.f_to_kind(kind).map_err(engine);
    FixedLinear::new(take("weight")?, take("bias")?).map_err(|text| engine_text(&text))
}

#[cfg(test)]
mod tests {
    use crate::model::config::tests::small;
    use crate::model::init::random;
    use crate::model::params::Params;
    use crate::model::unicl::UniCl;
    use tch::{Device, Kind, Tensor};

    /// Parameters so large that every branch of the network matters.
    fn params() -> Params {
        let mut grown = Params::default();
        for (name, tensor) in random(&small(), 3).unwrap().entries() {
            grown.insert(&*name, if tensor.dim() > 1 { tensor * 12 } else { tensor + 0.1 });
        }
        grown
    }

    fn unlike(a: &Tensor, b: &Tensor) -> f64 {
        (a - b).abs().max().double_value(&[])
    }

    #[test]
    fn both_towers_equal_those_that_train() {
        let (config, floats) = (small(), (Kind::Float, Device::Cpu));
        let plain = UniCl::new(&config, &params()).unwrap();
        let ids = Tensor::from_slice(&[58i64, 5, 6, 59, 58, 7, 8, 59]).view([2, 4]);
        // grids of whole windows, of padded ones, and smaller than a window
        for (height, width) in [(32, 32), (24, 20), (7, 41)] {
            let pixels = Tensor::randn([3, 3, height, width], floats);
            let expected = plain.encode_image(&pixels, None).unwrap();
            assert!(unlike(&expected.get(0), &expected.get(1)) > 1e-2, "nothing is compared");
            for (bfloat16, tolerance) in [(false, 1e-5), (true, 5e-2)] {
                let fixed = UniCl::for_inference(&config, params(), bfloat16).unwrap();
                let _guard = tch::no_grad_guard();
                let images = fixed.encode_image(&pixels, None).unwrap();
                let texts = fixed.encode_text(&ids, &ids.ones_like()).unwrap();
                assert_eq!((images.kind(), texts.kind()), (Kind::Float, Kind::Float));
                assert!(unlike(&images, &expected) < tolerance, "{height} x {width}, bf16: {bfloat16}");
                let cosine = (&images * &expected).sum_dim_intlist(&[1i64][..], false, Kind::Float).min();
                assert!(cosine.double_value(&[]) > 0.999, "{height} x {width}: {cosine}");
                let expected_texts = plain.encode_text(&ids, &ids.ones_like()).unwrap();
                assert!(unlike(&texts, &expected_texts) < tolerance, "texts, bf16: {bfloat16}");
                let alone = fixed.encode_image(&pixels.narrow(0, 1, 1), None).unwrap();
                assert!(unlike(&alone, &images.narrow(0, 1, 1)) < tolerance / 2.0, "alone, bf16: {bfloat16}");
            }
        }
    }

    #[test]
    fn a_missing_parameter_is_named() {
        let mut params = params();
        let _fc1 = params.take("image_encoder.blocks.1.0.channel_block.ffn.fn.net.fc1.weight").unwrap();
        let error = UniCl::for_inference(&small(), params, false).unwrap_err().to_string();
        assert!(error.contains("fc1.weight"), "{error}");
    }
}
