//! One block of DaViT: a depthwise convolution, attention, a second convolution and a feed-forward network, each residual.

use super::EPS;
use crate::error::Result;
use crate::model::TchResult;
use crate::model::droppath::DropPath;
use crate::model::layers::{Conv2d, LayerNorm, Linear, Shared};
use crate::model::params::Params;
use tch::{Kind, TchError, Tensor};

/// What a block attends over.
#[derive(Debug, Clone, Copy)]
pub(in crate::model) enum Attention {
    /// Tokens of a window of `size` x `size`.
    Window { heads: i64, size: i64 },
    /// Channels of a group.
    Channel { groups: i64 },
}

impl Attention {
    /// What its layers are called among the parameters of a block.
    pub(in crate::model) fn name(self) -> &'static str {
        match self {
            Attention::Window { .. } => "window_attn",
            Attention::Channel { .. } => "channel_attn",
        }
    }
}

/// A block's sizes and its place in the drop-path order.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlockSpec {
    pub(super) dim: i64,
    pub(super) attention: Attention,
    pub(super) drop_path: f64,
    pub(super) index: u64,
}

#[derive(Debug)]
pub(super) struct Block {
    spec: BlockSpec,
    conv1: Conv2d,
    conv2: Conv2d,
    attention_norm: LayerNorm,
    qkv: Linear,
    proj: Linear,
    ffn_norm: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl Block {
    pub(super) fn new(params: &Params, path: &str, spec: BlockSpec) -> Result<Block> {
        let attention = spec.attention.name();
        let depthwise = (1, 1, spec.dim);
        Ok(Block {
            spec,
            conv1: Conv2d::new(params, &format!("{path}.conv1.fn.dw"), depthwise)?,
            conv2: Conv2d::new(params, &format!("{path}.conv2.fn.dw"), depthwise)?,
            attention_norm: LayerNorm::new(params, &format!("{path}.{attention}.norm"), EPS)?,
            qkv: Linear::new(params, &format!("{path}.{attention}.fn.qkv"))?,
            proj: Linear::new(params, &format!("{path}.{attention}.fn.proj"))?,
            ffn_norm: LayerNorm::new(params, &format!("{path}.ffn.norm"), EPS)?,
            fc1: Linear::new(params, &format!("{path}.ffn.fn.net.fc1"))?,
            fc2: Linear::new(params, &format!("{path}.ffn.fn.net.fc2"))?,
        })
    }

    /// As [`Block::forward`], but keeps only `x` for the backward pass and runs a second time there. What drop path leaves out
    /// is a function of its keys, so that both runs are the same.
    pub(super) fn checkpointed(&self, x: &Tensor, drop_path: Option<&DropPath>) -> TchResult<Tensor> {
        if !x.requires_grad() && !self.trained() {
            return self.forward(x, drop_path);
        }
        let (block, drop_path) = (self.shared(), drop_path.cloned());
        medtune_native::checkpoint(x, move |x| block.forward(x, drop_path.as_ref())).map_err(TchError::Torch)
    }

    /// [B, H, W, C] to the same shape.
    pub(super) fn forward(&self, x: &Tensor, drop_path: Option<&DropPath>) -> TchResult<Tensor> {
        let x = self.conv1.residual_depthwise(x)?;
        let normed = self.attention_norm.forward(&x)?;
        let attended = match self.spec.attention {
            Attention::Window { heads, size } => self.window_attention(&normed, heads, size)?,
            Attention::Channel { groups } => self.channel_attention(&normed, groups)?,
        };
        let x = self.residual(&x, attended, drop_path, 0)?;
        let x = self.conv2.residual_depthwise(&x)?;
        let hidden = self.fc1.forward(&self.ffn_norm.forward(&x)?)?;
        self.residual(&x, self.fc2.after_gelu(&hidden)?, drop_path, 1)
    }

    fn residual(&self, x: &Tensor, branch: Tensor, drop_path: Option<&DropPath>, which: u64) -> TchResult<Tensor> {
        match drop_path {
            Some(drop) => x.f_add(&drop.apply(&branch, self.spec.drop_path, 2 * self.spec.index + which)?),
            None => x.f_add(&branch),
        }
    }

    /// Attention inside windows. The grid is padded with zeros after the norm up to a multiple of the window; padded
    /// tokens are not masked: their key and value are the bias of `qkv`, as in the original.
    fn window_attention(&self, x: &Tensor, heads: i64, size: i64) -> TchResult<Tensor> {
        // what goes in is of the type of x or, by autocast on a CPU, bf16: both have kernels
        if medtune_native::has_kernels(x) {
            // q, k, v and the projection of real tokens only; what attention sees of the others is the bias
            let qkv = self.qkv.forward(x)?;
            let mixed = medtune_native::window_attention(&qkv, self.qkv.bias(), heads, size);
            return self.proj.forward(&mixed.map_err(TchError::Torch)?);
        }
        let (b, h, w, c) = x.size4()?;
        let (pad_h, pad_w) = ((size - h % size) % size, (size - w % size) % size);
        let padded =
            if pad_h + pad_w > 0 { x.f_constant_pad_nd([0, 0, 0, pad_w, 0, pad_h])? } else { x.shallow_clone() };
        let (rows, columns) = ((h + pad_h) / size, (w + pad_w) / size);
        let windows = padded.f_view([b, rows, size, columns, size, c])?.f_permute([0, 1, 3, 2, 4, 5])?.f_reshape([
            b * rows * columns,
            size * size,
            c,
        ])?;
        let tokens = size * size;
        let qkv = self.qkv.forward(&windows)?.f_view([-1, tokens, 3, heads, c / heads])?.f_permute([2, 0, 3, 1, 4])?;
        let q = qkv.f_select(0, 0)?.f_mul_scalar(((c / heads) as f64).powf(-0.5))?;
        let attention = q.f_matmul(&qkv.f_select(0, 1)?.f_transpose(-2, -1)?)?.f_softmax(-1, Kind::Float)?;
        let mixed = attention.f_matmul(&qkv.f_select(0, 2)?)?.f_transpose(1, 2)?.f_reshape([-1, tokens, c])?;
        let grid = self
            .proj
            .forward(&mixed)?
            .f_view([b, rows, columns, size, size, c])?
            .f_permute([0, 1, 3, 2, 4, 5])?
            .f_reshape([b, h + pad_h, w + pad_w, c])?;
        if pad_h + pad_w > 0 { grid.f_narrow(1, 0, h)?.f_narrow(2, 0, w) } else { Ok(grid) }
    }

    /// Attention over the channels of each group, scaled by the number of tokens.
    fn channel_attention(&self, x: &Tensor, groups: i64) -> TchResult<Tensor> {
        let (b, h, w, c) = x.size4()?;
        let tokens = h * w;
        let qkv = self.qkv.forward(&x.f_reshape([b, tokens, c])?)?;
        if medtune_native::has_kernels(&qkv) {
            let mixed = medtune_native::channel_attention(&qkv, groups).map_err(TchError::Torch)?;
            return self.proj.forward(&mixed)?.f_view([b, h, w, c]);
        }
        let qkv = qkv.f_view([b, tokens, 3, groups, c / groups])?.f_permute([2, 0, 3, 1, 4])?;
        let q = qkv.f_select(0, 0)?.f_mul_scalar((tokens as f64).powf(-0.5))?;
        let attention = q.f_transpose(-1, -2)?.f_matmul(&qkv.f_select(0, 1)?)?.f_softmax(-1, Kind::Float)?;
        let mixed = qkv.f_select(0, 2)?.f_matmul(&attention.f_transpose(-1, -2)?)?;
        let flat = mixed.f_transpose(1, 2)?.f_reshape([b, tokens, c])?;
        self.proj.forward(&flat)?.f_view([b, h, w, c])
    }
}

impl Shared for Block {
    fn shared(&self) -> Block {
        Block {
            spec: self.spec,
            conv1: self.conv1.shared(),
            conv2: self.conv2.shared(),
            attention_norm: self.attention_norm.shared(),
            qkv: self.qkv.shared(),
            proj: self.proj.shared(),
            ffn_norm: self.ffn_norm.shared(),
            fc1: self.fc1.shared(),
            fc2: self.fc2.shared(),
        }
    }

    fn trained(&self) -> bool {
        [&self.conv1, &self.conv2].into_iter().any(Shared::trained)
            || [&self.attention_norm, &self.ffn_norm].into_iter().any(Shared::trained)
            || [&self.qkv, &self.proj, &self.fc1, &self.fc2].into_iter().any(Shared::trained)
    }
}
