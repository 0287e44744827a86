//! DaViT: stages of a patch-embedding convolution and blocks; each block attends over windows, then over channels.

mod blocks;
mod inference;

use super::config::ImageEncoderConfig;
use super::droppath::DropPath;
use super::layers::{Conv2d, LayerNorm};
use super::params::Params;
use super::{TchResult, engine};
use crate::error::Result;
pub(super) use blocks::Attention;
use blocks::{Block, BlockSpec};
pub use inference::FixedDaVit;
pub(super) use inference::gpu;
use tch::{Kind, Tensor};

/// Epsilon of every layer norm of the image encoder.
pub(super) const EPS: f64 = 1e-5;

/// The image encoder.
#[derive(Debug)]
pub struct DaVit {
    stages: Vec<Stage>,
    norms: LayerNorm,
    checkpoint: bool,
}

#[derive(Debug)]
struct Stage {
    conv: Conv2d,
    norm: LayerNorm,
    prenorm: bool,
    blocks: Vec<Block>,
}

/// The blocks of a stage in their order: where the parameters of each are, and what it attends over.
pub(super) fn blocks_of(config: &ImageEncoderConfig, stage: usize) -> impl Iterator<Item = (String, Attention)> {
    let kinds = [
        ("spatial_block", Attention::Window { heads: config.num_heads[stage], size: config.window_size }),
        ("channel_block", Attention::Channel { groups: config.num_groups[stage] }),
    ];
    (0..config.depths[stage]).flat_map(move |pair| {
        kinds.map(|(name, attention)| (format!("image_encoder.blocks.{stage}.{pair}.{name}"), attention))
    })
}

impl DaVit {
    /// Takes the parameters under `image_encoder.`.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Package`] naming a missing parameter.
    pub fn new(config: &ImageEncoderConfig, params: &Params) -> Result<DaVit> {
        let sub_blocks: i64 = 2 * config.depths.iter().sum::<i64>();
        let rate = |index: i64| config.drop_path_rate * index as f64 / (sub_blocks - 1).max(1) as f64;
        let mut index = 0;
        let mut stages = Vec::new();
        for i in 0..config.dim_embed.len() {
            let path = format!("image_encoder.convs.{i}");
            let shape = (config.patch_stride[i], config.patch_padding[i], 1);
            let mut blocks = Vec::new();
            for (path, attention) in blocks_of(config, i) {
                let spec =
                    BlockSpec { dim: config.dim_embed[i], attention, drop_path: rate(index), index: index as u64 };
                blocks.push(Block::new(params, &path, spec)?);
                index += 1;
            }
            stages.push(Stage {
                conv: Conv2d::new(params, &format!("{path}.proj"), shape)?,
                norm: LayerNorm::new(params, &format!("{path}.norm"), EPS)?,
                prenorm: config.patch_prenorm[i],
                blocks,
            });
        }
        let norms = LayerNorm::new(params, "image_encoder.norms", EPS)?;
        Ok(DaVit { stages, norms, checkpoint: config.activation_checkpoint })
    }

    /// Pixels [B, 3, H, W] to features [B, C of the last stage]; `drop_path` in training.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Engine`].
    pub fn forward(&self, pixels: &Tensor, drop_path: Option<&DropPath>) -> Result<Tensor> {
        self.run(pixels, drop_path).map_err(engine)
    }

    fn run(&self, pixels: &Tensor, drop_path: Option<&DropPath>) -> TchResult<Tensor> {
        // between stages the grid is [B, H, W, C]
        let mut grid = pixels.f_permute([0, 2, 3, 1])?;
        for stage in &self.stages {
            grid = stage.embed(&grid)?;
            for block in &stage.blocks {
                grid = match self.checkpoint {
                    true => block.checkpointed(&grid, drop_path)?,
                    false => block.forward(&grid, drop_path)?,
                };
            }
        }
        self.norms.forward(&grid.f_mean_dim(&[1i64, 2][..], false, Kind::Float)?)
    }
}

impl Stage {
    fn embed(&self, grid: &Tensor) -> TchResult<Tensor> {
        let before = if self.prenorm { self.norm.forward(grid)? } else { grid.shallow_clone() };
        let after = self.conv.forward(&before.f_permute([0, 3, 1, 2])?)?.f_permute([0, 2, 3, 1])?;
        if self.prenorm { Ok(after) } else { self.norm.forward(&after) }
    }
}
