//! The CLIP-style text transformer.

use super::config::TextConfig;
use super::layers::{LayerNorm, Linear};
use super::params::Params;
use super::{TchResult, engine};
use crate::error::Result;
use tch::{Kind, Tensor};

/// Epsilon of every layer norm of the text encoder.
pub(super) const EPS: f64 = 1e-12;

/// The text encoder.
#[derive(Debug)]
pub struct TextTransformer {
    token_embedding: Tensor,
    positional_embedding: Tensor,
    blocks: Vec<ResBlock>,
    ln_final: LayerNorm,
    causal: bool,
}

#[derive(Debug)]
struct ResBlock {
    heads: i64,
    ln_1: LayerNorm,
    in_proj: Linear,
    out_proj: Linear,
    ln_2: LayerNorm,
    c_fc: Linear,
    c_proj: Linear,
}

impl TextTransformer {
    /// Takes the parameters under `lang_encoder.`.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Package`] naming a missing parameter.
    pub fn new(config: &TextConfig, params: &Params) -> Result<TextTransformer> {
        let block = |i: i64| -> Result<ResBlock> {
            let path = format!("lang_encoder.resblocks.{i}");
            Ok(ResBlock {
                heads: config.heads,
                ln_1: LayerNorm::new(params, &format!("{path}.ln_1"), EPS)?,
                in_proj: Linear::named(
                    params,
                    [&format!("{path}.attn.in_proj_weight"), &format!("{path}.attn.in_proj_bias")],
                )?,
                out_proj: Linear::new(params, &format!("{path}.attn.out_proj"))?,
                ln_2: LayerNorm::new(params, &format!("{path}.ln_2"), EPS)?,
                c_fc: Linear::new(params, &format!("{path}.mlp.c_fc"))?,
                c_proj: Linear::new(params, &format!("{path}.mlp.c_proj"))?,
            })
        };
        Ok(TextTransformer {
            token_embedding: params.get("lang_encoder.token_embedding.weight")?,
            positional_embedding: params.get("lang_encoder.positional_embedding")?,
            blocks: (0..config.layers).map(block).collect::<Result<_>>()?,
            ln_final: LayerNorm::new(params, "lang_encoder.ln_final", EPS)?,
            causal: config.causal,
        })
    }

    /// Token ids [B, L] (i64) and their mask [B, L] (1 = a token, 0 = padding) to features [B, width], taken at the first
    /// maximum of the ids: the end token.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Engine`].
    pub fn forward(&self, ids: &Tensor, mask: &Tensor) -> Result<Tensor> {
        self.run(ids, mask).map_err(engine)
    }

    fn run(&self, ids: &Tensor, mask: &Tensor) -> TchResult<Tensor> {
        let (b, l) = ids.size2()?;
        let positions = self.positional_embedding.f_narrow(0, 0, l)?;
        let mut x = Tensor::f_embedding(&self.token_embedding, ids, -1, false, false)?.f_add(&positions)?;
        let bias = self.attention_bias(mask, b, l, x.kind())?;
        for block in &self.blocks {
            x = block.forward(&x, &bias)?;
        }
        let x = self.ln_final.forward(&x)?;
        let end = ids.f_argmax(-1, false)?;
        x.f_index(&[Some(Tensor::f_arange(b, (Kind::Int64, ids.device()))?), Some(end)])
    }

    /// [B, 1, 1 or L, L] to add to the logits: minus infinity where a token must not be seen.
    fn attention_bias(&self, mask: &Tensor, b: i64, l: i64, kind: Kind) -> TchResult<Tensor> {
        let options = (kind, mask.device());
        let hidden = mask.f_eq(0)?.f_view([b, 1, 1, l])?;
        let bias = Tensor::f_zeros([b, 1, 1, l], options)?.f_masked_fill(&hidden, f64::NEG_INFINITY)?;
        if !self.causal {
            return Ok(bias);
        }
        let future = Tensor::f_full([l, l], f64::NEG_INFINITY, options)?.f_triu(1)?;
        bias.f_add(&future)
    }
}

impl ResBlock {
    /// [B, L, width] to the same shape.
    fn forward(&self, x: &Tensor, bias: &Tensor) -> TchResult<Tensor> {
        let (b, l, width) = x.size3()?;
        let head = width / self.heads;
        let normed = self.ln_1.forward(x)?;
        let qkv = self.in_proj.forward(&normed)?.f_view([b, l, 3, self.heads, head])?.f_permute([2, 0, 3, 1, 4])?;
        let q = qkv.f_select(0, 0)?.f_mul_scalar((head as f64).powf(-0.5))?;
        let logits = q.f_matmul(&qkv.f_select(0, 1)?.f_transpose(-2, -1)?)?.f_add(bias)?;
        let mixed = logits.f_softmax(-1, Kind::Float)?.f_matmul(&qkv.f_select(0, 2)?)?;
        let x = x.f_add(&self.out_proj.forward(&mixed.f_transpose(1, 2)?.f_reshape([b, l, width])?)?)?;
        let hidden = self.c_fc.forward(&self.ln_2.forward(&x)?)?;
        // QuickGELU, the activation that CLIP was trained with
        let hidden = hidden.f_mul(&hidden.f_mul_scalar(1.702)?.f_sigmoid()?)?;
        x.f_add(&self.c_proj.forward(&hidden)?)
    }
}
