//! The image encoder for inference in bfloat16 on a GPU: that of the module above, with kernels for depthwise convolution with its
//! residuals, norms, and attention inside windows and over channels. Products of matrices are libtorch's.

use super::{Attention, Block, Depthwise, FixedDaVit, Stage};
use crate::error::Result;
use crate::model::config::ImageEncoderConfig;
use crate::model::params::Params;
use crate::model::patches::Patches;
use crate::model::{TchResult, engine};
use medtune_native::GpuKernels;
use tch::{Device, Kind, TchError, Tensor};

const KIND: Kind = Kind::BFloat16;

/// The image encoder, for inference in bfloat16 on a GPU.
#[derive(Debug)]
pub(crate) struct GpuDaVit {
    fixed: FixedDaVit,
    /// Those of each stage.
    kernels: Vec<GpuKernels>,
    /// The first stage's convolution, where it can be had as a product.
    patches: Option<Patches>,
}

/// The kernels of each stage.
///
/// # Errors
/// A text that says why this model has none on this device.
pub(crate) fn kernels(config: &ImageEncoderConfig, device: Device) -> std::result::Result<Vec<GpuKernels>, String> {
    if config.patch_prenorm.first() == Some(&true) {
        return Err("there is no kernel for a norm of pixels".to_owned());
    }
    let stage = |((&channels, &heads), &groups): ((&i64, &i64), &i64)| {
        if channels > GpuKernels::MOST_CHANNELS {
            let most = GpuKernels::MOST_CHANNELS;
            return Err(format!("there are kernels for widths of up to {most} channels, not {channels}"));
        }
        GpuKernels::new(device, config.window_size, channels / heads, channels / groups)
    };
    config.dim_embed.iter().zip(&config.num_heads).zip(&config.num_groups).map(stage).collect()
}

impl GpuDaVit {
    /// Takes the parameters under `image_encoder.` out of `params`, f32 on the GPU that `kernels` are for, one set a stage.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Package`] naming a missing parameter; [`crate::ErrorKind::Engine`].
    pub(crate) fn new(config: &ImageEncoderConfig, params: &mut Params, kernels: Vec<GpuKernels>) -> Result<GpuDaVit> {
        let mut fixed = FixedDaVit::new(config, params, KIND)?;
        let patches = fixed.stages.first().map(|stage| Patches::of(&stage.conv)).transpose()?.flatten();
        fixed.stages.iter_mut().try_for_each(Stage::lay_out).map_err(engine)?;
        Ok(GpuDaVit { fixed, kernels, patches })
    }

    /// Pixels [B, 3, H, W] to features [B, C of the last stage], f32.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Engine`].
    pub(crate) fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        self.run(pixels).map_err(engine)
    }

    fn run(&self, pixels: &Tensor) -> TchResult<Tensor> {
        // between stages the grid is [B, H, W, C]
        let mut grid = pixels.f_permute([0, 2, 3, 1])?;
        // of the first stage alone
        let mut patches = self.patches.as_ref();
        for (stage, &kernels) in self.fixed.stages.iter().zip(&self.kernels) {
            grid = stage.on_gpu(kernels, &grid, patches.take())?;
        }
        self.fixed.norms.forward(&grid.f_mean_dim(&[1i64, 2][..], false, Kind::Float)?)
    }
}

impl Stage {
    /// Lays the weights out as the kernels want them.
    fn lay_out(&mut self) -> TchResult<()> {
        self.conv = self.conv.channels_last()?;
        for block in &mut self.blocks {
            for conv in [&mut block.conv1, &mut block.conv2] {
                conv.weight = conv.weight.f_reshape([-1, 9])?.f_transpose(0, 1)?.f_contiguous()?;
            }
            block.outside = block.outside.f_to_kind(KIND)?;
        }
        Ok(())
    }

    /// [B, H, W, C] to the grid of the next stage; `patches` stand for the convolution.
    fn on_gpu(&self, kernels: GpuKernels, grid: &Tensor, patches: Option<&Patches>) -> TchResult<Tensor> {
        let before = if self.prenorm { self.norm.on_gpu(kernels, grid)? } else { grid.shallow_clone() };
        let after = match patches {
            Some(patches) => patches.forward(&before)?,
            None => {
                let after = self.conv.forward(&before.f_to_kind(KIND)?.f_permute([0, 3, 1, 2])?)?;
                after.f_permute([0, 2, 3, 1])?.f_contiguous()?
            }
        };
        let mut x = if self.prenorm { after } else { self.norm.on_gpu(kernels, &after)? };
        // what a branch gives is added by the convolution that reads it next
        let mut branch = None;
        for block in &self.blocks {
            let (next, added) = block.on_gpu(kernels, &x, branch.as_ref())?;
            (x, branch) = (next, Some(added));
        }
        match branch {
            Some(mut branch) => branch.f_add_(&x),
            None => Ok(x),
        }
    }
}

impl Block {
    /// The grid `x + branch` [B, H, W, C] to the next one, in two parts again.
    fn on_gpu(&self, kernels: GpuKernels, x: &Tensor, branch: Option<&Tensor>) -> TchResult<(Tensor, Tensor)> {
        let x = self.conv1.on_gpu(kernels, x, branch)?;
        let qkv = self.qkv.forward(&self.attention_norm.on_gpu(kernels, &x)?).map_err(TchError::Torch)?;
        let mixed = match self.attention {
            Attention::Window { .. } => kernels.window_attention(&qkv, &self.outside),
            Attention::Channel { .. } => kernels.channel_attention(&qkv),
        }
        .map_err(TchError::Torch)?;
        drop(qkv);
        let attended = self.proj.forward(&mixed).map_err(TchError::Torch)?;
        let x = self.conv2.on_gpu(kernels, &x, Some(&attended))?;
        let hidden = self.fc1.gelu(&self.ffn_norm.on_gpu(kernels, &x)?).map_err(TchError::Torch)?;
        let branch = self.fc2.forward(&hidden).map_err(TchError::Torch)?;
        Ok((x, branch))
    }
}

impl Depthwise {
    /// The convolution of `x + y` plus `x + y`, on [B, H, W, C], after [`Stage::lay_out`].
    fn on_gpu(&self, kernels: GpuKernels, x: &Tensor, y: Option<&Tensor>) -> TchResult<Tensor> {
        kernels.depthwise(x, y, &self.weight, &self.bias).map_err(TchError::Torch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::config::ModelConfig;
    use crate::model::config::tests::small;
    use crate::model::init::random;
    use crate::model::unicl::UniCl;

    const F32: (Kind, Device) = (Kind::Float, Device::Cpu);

    /// The small model with heads and groups that there are kernels for.
    fn config() -> ModelConfig {
        let mut config = small();
        for (stage, heads) in config.image.num_heads.iter_mut().enumerate() {
            *heads = stage as i64 + 1;
            config.image.num_groups[stage] = *heads;
            config.image.dim_embed[stage] = 32 * *heads;
        }
        config
    }

    #[test]
    fn sizes_without_kernels_are_named() {
        let refused = |change: fn(&mut ImageEncoderConfig), named: &str| {
            let mut image = config().image;
            change(&mut image);
            let error = kernels(&image, Device::Cuda(0)).unwrap_err();
            assert!(error.contains(named), "{error}");
        };
        refused(|image| image.patch_prenorm[0] = true, "norm of pixels");
        refused(|image| image.dim_embed[0] = 4096, "4096");
        refused(|image| image.num_heads[0] = 2, "heads of 16");
        refused(|image| image.num_groups[0] = 2, "groups of 16");
    }

    #[test]
    #[ignore = "needs a GPU"]
    fn equals_the_encoder_that_trains() {
        assert!(medtune_native::load_cuda());
        let (config, gpu) = (config(), Device::Cuda(0));
        let params = || {
            let mut grown = Params::default();
            for (name, tensor) in random(&config, 3).unwrap().entries() {
                // every branch matters, and rounding to bfloat16 is not all that is left
                grown.insert(&*name, if tensor.dim() > 1 { tensor * 6 } else { tensor + 0.1 });
            }
            grown
        };
        let plain = UniCl::new(&config, &params()).unwrap();
        for (height, width) in [(32, 32), (24, 20), (7, 41), (96, 130)] {
            let pixels = Tensor::randn([3, 3, height, width], F32);
            let expected = plain.encode_image(&pixels, None).unwrap();
            let others = (expected.get(0) * expected.get(1)).sum(Kind::Float).double_value(&[]);
            assert!(others < 0.99, "nothing is compared: {others}");
            let _guard = tch::no_grad_guard();
            let fixed = UniCl::for_inference(&config, params().to_device(gpu).unwrap(), true).unwrap();
            assert!(format!("{fixed:?}").contains("GpuDaVit"), "there are no kernels for it");
            let found = fixed.encode_image(&pixels.to_device(gpu), None).unwrap().to_device(Device::Cpu);
            let cosine = (&found * &expected).sum_dim_intlist(&[1i64][..], false, Kind::Float).min();
            assert!(cosine.double_value(&[]) > 0.999, "{height} x {width}: {cosine:?}");
        }
    }
}
